"""Adversarial training: each step is the loop written out, for texts and for pictures, and `fit` takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.pictures import labels_for as picture_labels
from tests.strategies import build, families, labels_for, model_class, several_streams, small_batch, small_config
from tests.training.test_loop import classifier, rows, tokenizer  # noqa: F401
from tests.training.test_parallel import torchrun
from zoo.errors import ConfigError, InputError, UnknownNameError
from zoo.training import Adversarial, fit
from zoo.training.adversarial import attacks, divergence

PICTURES = ("visualbert", "vilbert", "lxmert")
TEXTS = [name for name in families() if not several_streams(name) and "inputs_embeds" in model_class(name).arguments]


def plain_run(model: Any, batch: Any) -> Any:
    output = model(**batch)
    return output.loss, output


def case(name: str) -> tuple[Any, dict[str, Any]]:
    """A small task model in training mode, without dropout, and a batch with labels."""
    batch = small_batch(name)
    if name in PICTURES:
        model = build(name, small_config(name), "visual-question-answering", num_labels=5)
        return model.train(), {**batch.inputs, **picture_labels("visual-question-answering", model, batch)}
    model = build(name, small_config(name), "sequence-classification", num_labels=3)
    return model.train(), {**batch.inputs, **labels_for("sequence-classification", model, batch)}


def two_way_divergence(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) + KL(other || one), row by row and class by class."""
    total = torch.zeros((), dtype=one.dtype)
    for a, b in zip(one, other, strict=True):
        p, q = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
        for k in range(len(a)):
            total = total + p[k] * (p[k].log() - q[k].log()) + q[k] * (q[k].log() - p[k].log())
    return total


def written_out(model: Any, batch: dict[str, Any], chosen: Adversarial) -> tuple[list[dict[str, Tensor]], list[float]]:
    """VILLA's loop for one update, gradients left in the parameters: the deltas and the loss of each step."""
    embeddings = model.model.embeddings
    ids = batch["input_ids"]
    others = {key: x for key, x in batch.items() if key != "input_ids"}
    if hasattr(embeddings, "count"):
        others["position_ids"] = embeddings.count(ids, None)
    words = torch.zeros(*ids.shape, embeddings.token.embedding_dim, dtype=torch.float64)
    regions = torch.zeros_like(batch["visual_features"]) if chosen.image_lr else None
    clean = model(**batch).logits
    seen, losses = [], []
    for step in range(chosen.steps):
        words.requires_grad_()
        seen.append({"inputs_embeds": words.detach().clone()})
        given = {**others}
        if regions is not None:
            regions.requires_grad_()
            seen[-1]["visual_features"] = regions.detach().clone()
            given["visual_features"] = batch["visual_features"] + regions
        output = model(inputs_embeds=embeddings.token(ids) + words, **given)
        kl = two_way_divergence(clean, output.logits) / len(ids)
        kl = kl / clean.shape[1] if chosen.kl == "mean" else kl
        loss = (output.loss + chosen.kl_weight * kl) / chosen.steps
        loss.backward(retain_graph=step + 1 < chosen.steps)
        losses.append(float(loss.detach()))
        moved = []
        for delta, rate in ((words, chosen.text_lr), (regions, chosen.image_lr)):
            if delta is None:
                moved.append(None)
                continue
            new = torch.zeros_like(delta)
            for row in range(len(ids)):
                g = delta.grad[row]
                length = g.pow(2).sum().sqrt() if chosen.norm == "l2" else g.abs().max()
                new[row] = delta[row].detach() + rate * g / max(float(length), 1e-8)
                if chosen.max_norm and chosen.norm == "linf":
                    new[row] = new[row].clamp(-chosen.max_norm, chosen.max_norm)
                elif chosen.max_norm and float(new[row].pow(2).sum().sqrt()) > chosen.max_norm:
                    new[row] = new[row] * chosen.max_norm / new[row].pow(2).sum().sqrt()
            moved.append(new)
        words, regions = moved
    return seen, losses


def compared(name: str, chosen: Adversarial) -> None:
    model, batch = case(name)
    deltas, losses = written_out(model, batch, chosen)
    wanted = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for step, attack in enumerate(attacks(plain_run, model, batch, chosen)):
        assert set(attack.deltas) == set(deltas[step])
        for key, delta in attack.deltas.items():
            assert torch.allclose(delta.detach(), deltas[step][key], rtol=1e-9, atol=1e-12), (step, key)
        attack.loss.backward(retain_graph=not attack.last)
        assert float(attack.loss.detach()) == pytest.approx(losses[step], rel=1e-10)
        assert attack.last == (step == chosen.steps - 1)
    assert step == chosen.steps - 1
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(wanted)
    largest = max(float(x.abs().max()) for x in wanted.values())
    for key, x in wanted.items():
        assert float((found[key] - x).abs().max()) <= 1e-9 * largest, key


@pytest.mark.parametrize("name", TEXTS)
def test_words_of_every_family_are_perturbed_as_the_loop_written_out_does(name):
    compared(name, Adversarial(steps=2, text_lr=0.1))


@pytest.mark.parametrize(
    "chosen",
    [
        Adversarial(steps=3, text_lr=0.3, norm="linf", max_norm=0.05, kl="mean"),
        Adversarial(steps=3, text_lr=0.3, max_norm=0.2, kl_weight=0.7),
        Adversarial(steps=1, text_lr=0.3),
    ],
)
def test_norms_bounds_and_both_means_are_the_loop_written_out(chosen):
    compared("bert", chosen)


@pytest.mark.parametrize("name", PICTURES)
def test_words_and_regions_are_perturbed_together(name):
    compared(name, Adversarial(steps=3, text_lr=0.2, image_lr=0.4, max_norm=0.3))


def test_by_turns_each_pass_has_one_side_perturbed():
    model, batch = case("visualbert")
    chosen = Adversarial(steps=2, text_lr=0.2, image_lr=0.4, alternate=True)
    for step, attack in enumerate(attacks(plain_run, model, batch, chosen)):
        embeds = model.model.embeddings.token(batch["input_ids"]) + attack.deltas["inputs_embeds"]
        rest = {key: x for key, x in batch.items() if key != "input_ids"}
        words = model(inputs_embeds=embeds, **rest)
        regions = model(**{**batch, "visual_features": batch["visual_features"] + attack.deltas["visual_features"]})
        clean = model(**batch).logits
        apart = sum(two_way_divergence(clean, each.logits) / len(clean) for each in (words, regions))
        wanted = (words.loss + regions.loss + 1.5 * apart) / 4
        assert float(attack.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
        attack.loss.backward(retain_graph=not attack.last)
        assert (step == 0) is not bool(attack.deltas["visual_features"].any())


def test_padding_has_no_gradient_and_so_no_perturbation():
    model, batch = case("bert")
    for attack in attacks(plain_run, model, batch, Adversarial(steps=3, text_lr=0.2)):
        delta = attack.deltas["inputs_embeds"]
        assert not delta[batch["attention_mask"] == 0].any()
        attack.loss.backward(retain_graph=not attack.last)


def test_of_two_scores_for_spans_and_of_one_for_yes_or_no_the_divergence_is_taken_too():
    class Spans:
        logits = None
        start_logits = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
        end_logits = torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 1.0]], dtype=torch.float64)

    class Others(Spans):
        start_logits, end_logits = Spans.end_logits, Spans.start_logits

    wanted = 2 * two_way_divergence(Spans.start_logits, Spans.end_logits) / 2
    assert float(divergence(Spans(), Others(), "sum")) == pytest.approx(float(wanted), rel=1e-12)

    class Yes:
        logits = torch.tensor([0.3, -1.0], dtype=torch.float64)

    class No:
        logits = torch.tensor([0.1, 2.0], dtype=torch.float64)

    pairs = [torch.stack([torch.zeros(2, dtype=torch.float64), each.logits], 1) for each in (Yes, No)]
    assert float(divergence(Yes(), No(), "sum")) == pytest.approx(float(two_way_divergence(*pairs) / 2), rel=1e-12)


def test_fit_trains_with_it_and_the_first_steps_differ_from_plain_ones(tokenizer):  # noqa: F811
    losses = []
    for chosen in (None, {"text_lr": 0.5, "steps": 2}):
        model = classifier(dropout=0.0, attention_dropout=0.0)
        report = fit(
            model, rows(), tokenizer=tokenizer, epochs=8, batch_size=16, lr=5e-3, log_every=6, adversarial=chosen
        )
        losses.append([row["loss"] for row in report.history])
    assert losses[0] != losses[1]
    assert losses[1][-1] < losses[1][0]


COPIES = """
from tests.training.test_adversarial import batches
from tests.training.test_loop import classifier
from torch.nn.parallel import DistributedDataParallel
from zoo.training import fit
model = DistributedDataParallel(classifier(dropout=0.0, attention_dropout=0.0).double())
fit(model, batches(rank, 2), epochs=2, lr=1e-2, log_every=1, adversarial={"text_lr": 0.5, "steps": 2})
if rank == 0:
    torch.save(model.module.state_dict(), sys.argv[1])
"""


def batches(rank: int, processes: int) -> list[dict[str, Tensor]]:
    """A process's share of a few batches."""
    draw = torch.Generator().manual_seed(0)
    whole = [(torch.randint(5, 45, (8, 6), generator=draw), torch.randint(2, (8,), generator=draw)) for _ in range(3)]
    return [{"input_ids": ids[rank::processes], "labels": labels[rank::processes]} for ids, labels in whole]


@pytest.mark.slow
def test_two_copies_learn_what_one_learns(tmp_path):
    torchrun(COPIES, tmp_path / "two.pt")
    model = classifier(dropout=0.0, attention_dropout=0.0).double()
    fit(model, batches(0, 1), epochs=2, lr=1e-2, adversarial={"text_lr": 0.5, "steps": 2})
    other = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, other[name], rtol=1e-8, atol=1e-9), name


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="nothing would be perturbed"):
        Adversarial(text_lr=0)
    with pytest.raises(ConfigError, match="norm must be one of l2, linf, got 'l1'"):
        Adversarial(norm="l1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give text_lr and image_lr"):
        Adversarial(alternate=True)
    with pytest.raises(UnknownNameError, match="steps"):
        zoo.training.Settings.of({"adversarial": {"step": 3}})
    model, batch = case("bert")
    with pytest.raises(InputError, match="visual_features"):
        next(attacks(plain_run, model, batch, Adversarial(image_lr=0.1)))
