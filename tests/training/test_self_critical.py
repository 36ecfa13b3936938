"""Self-critical training beside the exact gradient: over so few texts that all can be summed."""

from __future__ import annotations

import itertools

import pytest
import torch

import zoo
from tests.training.test_captions import SIZES, WORDS, built, rows, words
from zoo.errors import ConfigError, InputError, TaskError
from zoo.tasks.metrics.writing import Cider, chrf
from zoo.training import SelfCritical, evaluate, fit

DRAWN = zoo.Search(do_sample=True, max_new_tokens=2)


def double(name):
    """A writer of two words at most, in float64, with weights that prefer some."""
    model, tokens = built(name)
    model = model.double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    _, pictures = rows()
    shown = pictures["0"].for_model(model.config)
    shown = {n: x.double() if x.is_floating_point() else x for n, x in shown.items()}
    before = {"input_ids": torch.tensor([[2, 3]])} if name == "vlp" else {}
    return model, tokens, {**before, **shown}


def all_texts(end, size):
    """Every text of two tokens, or of the end alone."""
    others = [token for token in range(size) if token != end]
    return [[end], *([first, second] for first, second in itertools.product(others, range(size)))]


def log_probability(name, model, given, ids):
    """By one pass for each word, over all that stands before it."""
    total = 0.0
    for place, token in enumerate(ids):
        if name == "unimo":  # the state of the word before predicts
            shown, ranks, at = [0, *ids[:place]], list(range(1, place + 2)), place
            logits = model(
                torch.tensor([shown]), ranks=torch.tensor([ranks]),
                **{n: x for n, x in given.items() if n != "input_ids"},
            ).logits[0, at]  # fmt: skip
        else:  # a mask behind the words before predicts
            shown = [2, 3, *ids[:place], 4]
            extra = {n: x for n, x in given.items() if n != "input_ids"}
            segments = torch.tensor([[0, 0] + [5] * (place + 1)])
            ranks = torch.tensor([[0, 0, *range(1, place + 2)]])
            logits = model(torch.tensor([shown]), token_type_ids=segments, ranks=ranks, **extra).logits[0, place + 2]
        total = total + logits.log_softmax(0)[token]
    return total


def reward_of(text, references):
    """Any numbers that tell texts apart."""
    return 0.3 + sum((3 * i + 1) * len(word) for i, word in enumerate(text.split())) / 7.0 + (text == references[0])


@pytest.mark.parametrize("name", ["unimo", "vlp"])
def test_the_loss_of_a_draw_is_the_advantage_times_the_log_probability(name):
    model, tokens, given = double(name)
    chosen = SelfCritical(reward=reward_of, samples=3, search=DRAWN)
    references = [["a red"]]
    loss, found = chosen.run(
        model, {**given, "references": references}, tokenizer=tokens, generator=torch.Generator().manual_seed(1)
    )
    end = 2 if name == "unimo" else 3
    table = {}
    for ids in all_texts(end, model.config.vocab_size):
        table.setdefault(tokens.decode(ids).strip(), []).append(ids)
    greedy = []
    for _ in range(2):  # word by word
        size = range(model.config.vocab_size)
        values = [float(log_probability(name, model, given, [*greedy, token]).detach()) for token in size]
        best = values.index(max(values))
        greedy.append(best)
        if best == end:
            break
    base = reward_of(tokens.decode(greedy).strip(), references[0])
    assert found.baseline.tolist() == [[pytest.approx(base)] * 3]
    assert found.rewards[0].tolist() == pytest.approx([reward_of(text, references[0]) for text in found.texts])
    wanted = 0.0
    for text, value in zip(found.texts, found.log_probs[0].tolist(), strict=True):
        known = [log_probability(name, model, given, ids) for ids in table[text]]  # several ids may read alike
        one = min(known, key=lambda x: abs(float(x) - value))
        assert float(one) == pytest.approx(value, abs=1e-9)
        wanted = wanted - (reward_of(text, references[0]) - base) * one / 3
    assert float(loss) == pytest.approx(float(wanted), abs=1e-9)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(wanted, parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.allclose(one, other, atol=1e-10)


def test_the_mean_of_many_draws_is_the_gradient_of_the_expected_reward():
    model, tokens, given = double("unimo")
    chosen = SelfCritical(reward=reward_of, samples=4000, search=DRAWN)
    for baseline in ("greedy", "samples"):
        chosen = SelfCritical(reward=reward_of, samples=4000, baseline=baseline, search=DRAWN)
        generator = torch.Generator().manual_seed(0)
        loss, _ = chosen.run(model, {**given, "references": [["a red"]]}, tokenizer=tokens, generator=generator)
        bias = model.heads["masked_lm"].bias
        (ours,) = torch.autograd.grad(loss, bias)
        expected = torch.zeros((), dtype=torch.float64)
        for ids in all_texts(2, model.config.vocab_size):
            probability = log_probability("unimo", model, given, ids).exp()
            expected = expected - probability * reward_of(tokens.decode(ids).strip(), ["a red"])
        (wanted,) = torch.autograd.grad(expected, bias)
        assert float((ours - wanted).norm() / wanted.norm()) < 0.15, baseline


def test_training_on_a_reward_raises_it():
    model, tokens = built("unimo")
    table, pictures = rows()
    fit(model, table, tokenizer=tokens, regions=pictures, steps=25, batch_size=16, lr=1e-2)

    def mean_reward():
        from zoo.data.regions.regions import stack

        write = zoo.pipeline(
            "image-captioning", model, tokenizer=tokens, max_new_tokens=6,
            regions=lambda names: stack([pictures[name] for name in names]),
        )  # fmt: skip
        found = write([row["image"] for row in table[:4]])
        return sum(chrf(f["text"], [row["caption"]]) for f, row in zip(found, table, strict=False)) / 4

    before, loss = mean_reward(), evaluate(model, table, tokenizer=tokens, regions=pictures)["loss"]
    chosen = SelfCritical(reward=chrf, samples=4, search=zoo.Search(do_sample=True, max_new_tokens=6))
    report = fit(
        model, table, table, tokenizer=tokens, regions=pictures, steps=30, batch_size=16, lr=3e-3, self_critical=chosen
    )
    assert before < 0.9
    assert mean_reward() > before + 0.1
    assert report.best["eval_loss"] != pytest.approx(loss)  # evaluations are the task's own


def test_a_run_goes_on_with_the_same_reward_alone(tmp_path):
    model, tokens = built("unimo")
    table, pictures = rows()
    same = {"tokenizer": tokens, "regions": pictures, "steps": 3, "batch_size": 8, "save_every": 1}
    chosen = SelfCritical(reward=chrf, search=DRAWN)
    fit(model, table, out=tmp_path, self_critical=chosen, **same)
    fit(model, table, out=tmp_path, self_critical=chosen, resume=True, **same)
    other = SelfCritical(reward=Cider([["a red dog"]]), search=DRAWN)
    with pytest.raises(ConfigError, match="other settings: self_critical"):
        fit(model, table, out=tmp_path, self_critical=other, resume=True, **same)


def test_an_encoder_decoder_learns_from_a_reward_too():
    sizes = {"decoder_num_layers": 1, "decoder_num_heads": 2, "decoder_intermediate_size": 16}
    model = zoo.create(
        "bart-base", task="conditional-generation", generator=torch.Generator().manual_seed(0),
        **{**SIZES, "vocab_size": len(WORDS)}, **sizes, start_token_id=2, end_token_id=2, pad_token_id=1,
    )  # fmt: skip
    tokens, table = words(), [{"source": "a red dog", "target": "a cat"}, {"source": "a", "target": "blue"}]
    chosen = SelfCritical(
        reward=chrf, samples=2, baseline="samples", search=zoo.Search(do_sample=True, max_new_tokens=4)
    )
    report = fit(model, table, tokenizer=tokens, steps=2, batch_size=2, self_critical=chosen)
    assert report.steps == 2
    batch = {**tokens(["a red dog", "a"]), "references": [["a cat"], ["blue"]]}
    loss, found = chosen.run(model, batch, tokenizer=tokens, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found.baseline, found.rewards.flip(1))
    assert not model.training
    assert loss.requires_grad


def test_what_can_not_be_judged_is_refused():
    model, tokens, given = double("unimo")
    with pytest.raises(ConfigError, match="reward must be a function"):
        SelfCritical(reward="chrf")
    with pytest.raises(ConfigError, match="draw 2 samples at least"):
        SelfCritical(reward=chrf, baseline="samples")
    with pytest.raises(ConfigError, match="do_sample=True and one beam"):
        SelfCritical(reward=chrf, search=zoo.Search(num_beams=2))
    chosen = SelfCritical(reward=lambda text, references: float("nan"), search=DRAWN)
    with pytest.raises(InputError, match="must be a finite number, got nan"):
        chosen.run(model, {**given, "references": [["a"]]}, tokenizer=tokens)
    with pytest.raises(InputError, match="for each of 1 sources, got 2 lists"):
        chosen.run(model, {**given, "references": [["a"], ["b"]]}, tokenizer=tokens)
    bert = zoo.create("bert-base", task="sequence-classification", **SIZES)
    with pytest.raises(TaskError, match="has no texts that a model would write"):
        fit(bert, [{"text": "a", "label": 1}] * 2, tokenizer=tokens, self_critical=chosen, steps=1)
    with pytest.raises(ConfigError, match="give one of them"):
        fit(bert, [{"text": "a", "label": 1}] * 2, tokenizer=tokens, self_critical=chosen, adversarial={"text_lr": 1.0})
