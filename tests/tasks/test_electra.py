"""ELECTRA: its replaced-token head, the step that trains the pair, and the two networks in one
TensorFlow file.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import zoo
from tests.strategies import examples
from zoo.errors import CheckpointError, ConfigError, TaskError
from zoo.formats.archive import Info
from zoo.formats.memory import DictArchive
from zoo.maps import layouts
from zoo.models.electra import ElectraConfig
from zoo.tasks.base import canonical_state
from zoo.tasks.electra import ElectraDraws, ElectraMasking, ElectraPretraining, sample_words

TOLERANCE = 1e-9
CLS, SEP, MASK = 1, 2, 3
SMALL = ElectraConfig(
    vocab_size=19,
    embedding_size=3,
    hidden_size=6,
    num_layers=2,
    num_heads=2,
    intermediate_size=5,
    max_positions=9,
    dropout=0.0,
    attention_dropout=0.0,
)
NARROW = SMALL.replace(hidden_size=4, num_layers=1)


def build(config: ElectraConfig, task: str | None = None, seed: int = 0) -> Any:
    """A model in float64 with every parameter random."""
    return randomised(zoo.create("electra-base", task=task, dtype=torch.float64, **config.to_dict()), seed)


@torch.no_grad()
def randomised(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4 + 0.1)
    return model.eval()


def error(mine: Tensor, reference: Tensor) -> float:
    assert mine.shape == reference.shape
    assert mine.isfinite().all()
    return float((mine - reference).abs().max() / reference.abs().max())


@given(data=st.data())
@settings(max_examples=examples(20), deadline=None, derandomize=True)
def test_the_replaced_token_head_is_transformers_head(data):
    heads = data.draw(st.integers(1, 2))
    hidden = heads * data.draw(st.integers(1, 3))
    foreign = transformers.ElectraConfig(
        vocab_size=19,
        hidden_size=hidden,
        embedding_size=data.draw(st.sampled_from([hidden, 5])),
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=7,
        max_position_embeddings=9,
        hidden_act=data.draw(st.sampled_from(["gelu", "gelu_new", "relu", "silu"])),
        layer_norm_eps=data.draw(st.sampled_from([1e-12, 1e-3])),
    )
    theirs = randomised(transformers.ElectraForPreTraining(foreign).double(), data.draw(st.integers(0, 99)))
    ours = zoo.load(theirs.state_dict(), config=foreign.to_dict(), task="replaced-token-detection")
    assert not ours.load_report.random
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    ids = torch.randint(19, (3, 5), generator=generator)
    labels = torch.randint(2, (3, 5), generator=generator)
    real = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    with torch.no_grad():
        mine, reference = ours(ids, real, labels=labels), theirs(input_ids=ids, attention_mask=real.long())
    assert error(mine.logits[real], reference.logits[real]) <= TOLERANCE
    expected = F.binary_cross_entropy_with_logits(
        reference.logits[real], labels[real].double()
    )  # theirs rounds to single precision
    assert error(mine.loss, expected) <= TOLERANCE
    assert not mine.logits[~real].any()


def test_labels_of_replaced_tokens_are_zero_or_one():
    model = build(SMALL, "replaced-token-detection")
    with pytest.raises(TaskError, match=r"0\.\.1"):
        model(torch.tensor([[4, 5]]), labels=torch.tensor([[0, 2]]))


# --- the step ---------------------------------------------------------------------------------------------------------


def pair(probability: float = 0.4, predictions: int = 2, **options: Any) -> ElectraPretraining:
    step = ElectraPretraining(
        build(NARROW, "masked-lm", 1),
        build(SMALL, "replaced-token-detection", 2),
        ElectraMasking(
            mask_id=MASK, special_ids=(CLS, SEP, MASK), max_predictions=predictions, mask_probability=probability
        ),
        **options,
    )
    return step.eval()


IDS = torch.tensor([[CLS, 7, 8, 9, 10, SEP], [CLS, 11, 12, SEP, 0, 0]])
REAL = (IDS != 0).long()


def test_a_step_by_hand():
    step = pair()
    noise = torch.rand(2, 2, 19, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = ElectraDraws(torch.tensor([[2, 4], [1, 1]]), torch.tensor([[0.2, 0.9], [0.84, 0.2]]), noise)
    with torch.no_grad():
        result = step(IDS, REAL, draws=draws)
        guessed = step.generator(result.masked_ids, REAL).prediction_logits
    # 6 · 0.4 = 2.4 -> 2 places; 4 · 0.4 = 1.6 -> 2 places, both the same one
    assert result.masked_ids.tolist() == [[CLS, 7, MASK, 9, 10, SEP], [CLS, MASK, 12, SEP, 0, 0]]  # 0.9 keeps its token
    assert result.originals.tolist() == [[8, 10], [11, 11]]
    words = torch.stack([guessed[0, [2, 4]], guessed[1, [1, 1]]])
    assert error(result.generator_logits, words) <= TOLERANCE
    nll = F.cross_entropy(words.flatten(0, 1), torch.tensor([8, 10, 11, 11]), reduction="sum")
    assert float(result.losses["masked_lm"]) == pytest.approx(float(nll) / (4 + 1e-6), rel=1e-12)
    drawn = (words - torch.log(-torch.log(noise + 1e-9) + 1e-9)).argmax(2)
    assert torch.equal(result.samples, drawn)
    corrupted = IDS.clone()
    corrupted[0, 2], corrupted[0, 4] = drawn[0]
    corrupted[1, 1] = drawn[1].sum() // 2
    assert torch.equal(result.corrupted_ids, corrupted)
    assert torch.equal(result.replaced, corrupted != IDS)
    with torch.no_grad():
        logits = step.discriminator(corrupted, REAL).logits
    losses = F.binary_cross_entropy_with_logits(logits, (corrupted != IDS).double(), reduction="none") * REAL
    token_loss = float(losses.sum()) / (10 + 1e-6)
    assert float(result.losses["replaced_token"]) == pytest.approx(token_loss, rel=1e-12)
    assert float(result.loss) == pytest.approx(float(result.losses["masked_lm"]) + 50 * token_loss, rel=1e-12)


def test_draws_never_choose_special_tokens_or_padding_and_come_from_the_generator():
    step = pair(predictions=40)
    first, second = (step.draw(IDS, REAL, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("positions", "keep", "noise"))
    assert set(first.positions[0].tolist()) == {1, 2, 3, 4}
    assert set(first.positions[1].tolist()) == {1, 2}


def test_a_sample_that_happens_to_be_right_counts_as_original_unless_it_is_disallowed():
    logits = torch.full((1, 1, 5), -20.0)
    logits[0, 0, 3] = 20.0
    noise = torch.full((1, 1, 5), 0.5)
    assert sample_words(logits, noise).item() == 3
    assert sample_words(logits, noise, disallowed=torch.tensor([[3]])).item() != 3
    assert sample_words(torch.tensor([0.0, 1.0]), torch.tensor([0.9, 0.5])).item() == 0  # Gumbel: 2.25 against 1.37
    assert sample_words(torch.tensor([0.0, 1.0]), torch.tensor([0.9, 0.5]), temperature=0.5).item() == 1


def test_the_discriminators_loss_does_not_reach_the_generators_own_layers():
    step = pair(weights=(0.0, 1.0))
    step(IDS, REAL, generator=torch.Generator().manual_seed(1)).loss.backward()
    own = [
        p
        for name, p in step.generator.named_parameters()
        if "encoder" in name or "heads" in name or "projection" in name
    ]
    assert own
    assert all(p.grad is None or not p.grad.any() for p in own)
    assert all(p.grad is not None for p in step.discriminator.parameters())


def test_the_pair_shares_all_embeddings_but_the_projection():
    step = pair()
    mine, theirs = step.generator.model.embeddings, step.discriminator.model.embeddings
    for part in ("token", "position", "segment", "norm"):
        assert getattr(mine, part) is getattr(theirs, part)
    assert mine.projection is not theirs.projection
    apart = pair(shared=False)
    assert apart.generator.model.embeddings.token is not apart.discriminator.model.embeddings.token
    saved = sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in step.parameters())
    assert saved == (19 + 9 + 2 + 2) * 3
    with pytest.raises(ConfigError, match=r"\(19, 2\) and \(19, 3\)"):
        ElectraPretraining(
            build(NARROW.replace(embedding_size=2), "masked-lm"),
            apart.discriminator,
            ElectraMasking(mask_id=3, special_ids=(), max_predictions=1),
        )


def test_the_pair_learns_to_tell_replaced_tokens():
    torch_generator = torch.Generator().manual_seed(0)
    step = pair(0.3)
    optimizer = torch.optim.Adam(step.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        ids = torch.arange(4, 10)[None] + torch.randint(9, (8, 1), generator=torch_generator)  # every text counts up
        loss = step(ids, generator=torch_generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


# --- one TensorFlow file, two networks --------------------------------------------------------------------------------


def one_file(untied: bool) -> tuple[Any, Any, dict[str, Tensor]]:
    """A generator, a discriminator and the file that holds both."""
    step = pair(shared=not untied)
    both: dict[str, Tensor] = {}
    for layout, model in (("tf-electra-generator", step.generator), ("tf-electra", step.discriminator)):
        ours = canonical_state(model)
        plan = layouts.load(layout).back(
            {name: Info(tuple(x.shape), "F64") for name, x in ours.items()}, model.config.to_dict()
        )
        both |= plan.run(ours.__getitem__)
    if untied:
        tables = (
            "word_embeddings",
            "position_embeddings",
            "token_type_embeddings",
            "LayerNorm/gamma",
            "LayerNorm/beta",
        )
        names = ("token.weight", "position.weight", "segment.weight", "norm.weight", "norm.bias")
        state = canonical_state(step.generator)
        both |= {f"generator/embeddings/{t}": state[f"embeddings.{n}"] for t, n in zip(tables, names, strict=True)}
    return step.generator, step.discriminator, both


@pytest.mark.parametrize("untied", [False, True])
def test_both_networks_come_out_of_one_tensorflow_file(untied):
    generator, discriminator, both = one_file(untied)
    assert layouts.recognise(DictArchive(both)) == "tf-electra"
    for layout, model in (("tf-electra-generator", generator), ("tf-electra", discriminator)):
        foreign = layouts.load(layout).config_back(model.config.replace(classifier_dropout=None).to_dict())
        again = canonical_state(zoo.load(both, config=foreign, layout=layout, task=model.task))
        ours = canonical_state(model)
        assert ours.keys() == again.keys()
        assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_a_file_without_the_generator_is_no_generator():
    _, _, both = one_file(False)
    alone = {name: x for name, x in both.items() if not name.startswith("generator")}
    foreign = layouts.load("tf-electra-generator").config_back(NARROW.to_dict())
    with pytest.raises(CheckpointError, match="projection"):
        zoo.load(alone, config=foreign, layout="tf-electra-generator", task="masked-lm")


def test_the_generators_head_ignores_the_configs_activation_in_the_hugging_face_layout():
    keymap = layouts.load("hf-electra")
    foreign = keymap.config_back(SMALL.to_dict())
    assert keymap.config_forward(foreign | {"hidden_act": "relu"})["masked_lm_activation"] == "gelu"
    with pytest.raises(ConfigError, match="masked_lm_activation"):
        keymap.config_back(SMALL.replace(masked_lm_activation="relu").to_dict())
