"""MobileBERT beyond what tests/models/test_equivalence.py asks transformers: wirings it cannot
build, tensors it builds and never reads, and the way between the two public layouts.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from zoo.errors import ConfigError, InputError, UnknownNameError
from zoo.formats.archive import Info
from zoo.formats.memory import DictArchive
from zoo.maps import layouts
from zoo.models.mobilebert import MobileBertConfig
from zoo.tasks.base import canonical_state

TOLERANCE = 1e-9
SMALL = MobileBertConfig(
    vocab_size=17,
    embedding_size=3,
    hidden_size=7,
    num_layers=2,
    num_heads=2,
    intermediate_size=5,
    num_feed_forwards=3,
    bottleneck_size=4,
    max_positions=9,
)
WIRINGS = {
    "none": {"bottleneck": False, "hidden_size": 8},
    "full": {"shared_key_query": False},
    "narrow": {"bottleneck_attention": True, "shared_key_query": False},
    "shared": {},
}


def build(config: MobileBertConfig, task: str | None = None, seed: int = 0) -> Any:
    """A model in float64 with every parameter random, norms too."""
    model = zoo.create("mobilebert-base", task=task, dtype=torch.float64, **config.to_dict())
    return randomised(model, seed)


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


def text(config: Any, seed: int, batch: int = 2, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and segments of a batch whose rows end in padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, config.vocab_size, (batch, length), generator=generator)
    real = torch.arange(length) < torch.tensor([length - row for row in range(batch)])[:, None]
    return ids, real.long(), torch.randint(config.num_segments, (batch, length), generator=generator)


# --- the paper's equations in loops over tokens and heads -------------------------------------------------------------


def oracle(
    config: MobileBertConfig, weights: dict[str, Tensor], ids: list[int], segments: list[int], real: int
) -> list[Tensor]:
    """The states of one text after the last block, at its ``real`` tokens; padding counts only in
    the trigram.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        if config.norm != "no_norm":
            center = x - x.mean()
            x = center / (center.square().mean() + (1e-6 if config.norm == "manual_layer_norm" else eps)).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    outer = 1e-5 if config.norm == "layer_norm_hf" else config.norm_eps
    act = {"relu": lambda x: x.clamp(min=0), "tanh": torch.tanh}[config.activation]
    none = torch.zeros(config.embedding_size, dtype=torch.float64)
    tokens = [weights["embeddings.token.weight"][i] for i in ids]
    h = []
    for t in range(real):
        x = tokens[t]
        if config.trigram:
            x = torch.cat([tokens[t + 1] if t + 1 < len(ids) else none, x, tokens[t - 1] if t else none])
        if config.trigram or config.embedding_size != config.hidden_size:
            x = linear("embeddings.projection", x)
        x = x + weights["embeddings.position.weight"][t] + weights["embeddings.segment.weight"][segments[t]]
        h.append(norm("embeddings.norm", x, outer))
    width = config.bottleneck_size if config.bottleneck else config.hidden_size
    size = width // config.num_heads
    for layer in range(config.num_layers):
        block = f"encoder.blocks.{layer}"

        def narrowed(name: str, x: Tensor, block: str = block) -> Tensor:
            return norm(f"{block}.{name}.norm", linear(f"{block}.{name}.dense", x), config.norm_eps)

        residual = [narrowed("input_bottleneck", x) for x in h] if config.bottleneck else h
        looked = residual if config.bottleneck_attention else h
        asked = looked
        if config.bottleneck and config.shared_key_query and not config.bottleneck_attention:
            asked = [narrowed("key_query_bottleneck", x) for x in h]
        query, key = ([linear(f"{block}.attention.{name}", x) for x in asked] for name in ("query", "key"))
        value = [linear(f"{block}.attention.value", x) for x in looked]
        after = []
        for t in range(real):
            heads = []
            for head in range(config.num_heads):
                part = slice(head * size, (head + 1) * size)
                scores = torch.stack([query[t][part] @ key[s][part] / math.sqrt(size) for s in range(real)])
                heads.append(sum(p * value[s][part] for s, p in enumerate(scores.softmax(0))))
            a = norm(
                f"{block}.attention_norm",
                linear(f"{block}.attention.output", torch.cat(heads)) + residual[t],
                config.norm_eps,
            )
            for j in range(config.num_feed_forwards - 1):
                op = f"{block}.inner_feed_forwards.{j}"
                a = norm(
                    f"{block}.inner_feed_forward_norms.{j}",
                    linear(f"{op}.down", act(linear(f"{op}.up", a))) + a,
                    config.norm_eps,
                )
            op = f"{block}.feed_forward"
            a = norm(f"{op}_norm", linear(f"{op}.down", act(linear(f"{op}.up", a))) + a, outer)
            if config.bottleneck:
                a = norm(
                    f"{block}.output_bottleneck.norm",
                    linear(f"{block}.output_bottleneck.dense", a) + h[t],
                    config.norm_eps,
                )
            after.append(a)
        h = after
    return h


@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_wiring_is_the_papers_equations(data):
    heads = data.draw(st.integers(1, 3))
    wiring = data.draw(st.sampled_from(list(WIRINGS)))
    hidden = data.draw(st.integers(2, 9)) if wiring != "none" else heads * data.draw(st.integers(1, 3))
    config = SMALL.replace(
        **{
            **WIRINGS[wiring],
            "num_heads": heads,
            "hidden_size": hidden,
            "bottleneck_size": heads * data.draw(st.integers(1, 3)),
            "embedding_size": data.draw(st.integers(1, hidden)),
            "num_feed_forwards": data.draw(st.integers(1, 3)),
            "trigram": data.draw(st.booleans()),
            "norm": data.draw(st.sampled_from(["no_norm", "layer_norm", "layer_norm_hf", "manual_layer_norm"])),
            "norm_eps": data.draw(st.sampled_from([1e-12, 1e-2])),
            "activation": data.draw(st.sampled_from(["relu", "tanh"])),
        }
    )
    model = build(config, seed=data.draw(st.integers(0, 99)))
    ids, mask, segments = text(config, data.draw(st.integers(0, 99)), batch=3, length=5)
    with torch.no_grad():
        mine = model(ids, mask, segments)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for row in range(3):
        real = int(mask[row].sum())
        expected = torch.stack(oracle(config, weights, ids[row].tolist(), segments[row].tolist(), real))
        assert error(mine.last_hidden_state[row, :real], expected) <= TOLERANCE
        assert torch.equal(mine.pooler_output[row], mine.last_hidden_state[row, 0])


# --- transformers -----------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_transformers_model_with_tensors_that_it_never_reads_gives_its_numbers(data):
    heads = data.draw(st.integers(1, 2))
    hidden = heads * data.draw(st.integers(2, 4))
    bottleneck = data.draw(st.booleans())
    foreign = transformers.MobileBertConfig(
        vocab_size=17,
        hidden_size=hidden,
        embedding_size=hidden if data.draw(st.booleans()) else data.draw(st.integers(1, hidden)),
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=5,
        use_bottleneck=bottleneck,
        intra_bottleneck_size=heads * data.draw(st.integers(1, 4)),
        use_bottleneck_attention=bottleneck,
        key_query_shared_bottleneck=True,
        num_feedforward_networks=data.draw(st.integers(1, 3)),
        normalization_type=data.draw(st.sampled_from(["no_norm", "layer_norm"])),
        trigram_input=data.draw(st.booleans()),
        classifier_activation=data.draw(st.booleans()),
        tie_word_embeddings=data.draw(st.booleans()),
        max_position_embeddings=9,
    )
    theirs = randomised(transformers.MobileBertForPreTraining(foreign).double(), data.draw(st.integers(0, 99)))
    ours = zoo.load(theirs.state_dict(), config=foreign.to_dict(), task="pretraining")
    ids, mask, segments = text(ours.config, 1)
    with torch.no_grad():
        mine, reference = ours(ids, mask, segments), theirs(input_ids=ids, attention_mask=mask, token_type_ids=segments)
    real = mask.bool()
    assert error(mine.prediction_logits[real], reference.prediction_logits[real]) <= TOLERANCE
    assert error(mine.seq_relationship_logits, reference.seq_relationship_logits) <= TOLERANCE


def test_what_transformers_stores_and_never_reads_is_carried_along():
    foreign = transformers.MobileBertConfig(
        vocab_size=9,
        hidden_size=8,
        embedding_size=4,
        num_hidden_layers=1,
        intermediate_size=5,
        use_bottleneck_attention=True,
    )
    tensors = {name: Info(tuple(x.shape)) for name, x in transformers.MobileBertModel(foreign).state_dict().items()}
    keymap = layouts.load("hf-mobilebert")
    plan = keymap.forward(tensors, keymap.config_forward(foreign.to_dict(), tensors))
    assert sorted(plan.passengers) == sorted(
        f"encoder.layer.0.bottleneck.attention.{part}.{p}"
        for part in ("LayerNorm", "dense")
        for p in ("bias", "weight")
    )


def test_the_published_sizes_have_transformers_parameter_counts():
    with torch.device("meta"):
        published = transformers.MobileBertConfig(classifier_activation=False)
        theirs = transformers.MobileBertModel(published), transformers.MobileBertForPreTraining(published)
    ours = (
        zoo.create("mobilebert-base", device="meta"),
        zoo.create("mobilebert-base", task="pretraining", device="meta"),
    )
    assert (
        [m.num_parameters() for m in ours]
        == [sum(p.numel() for p in m.parameters()) for m in theirs]
        == [24_581_888, 36_597_564]
    )


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("embedding_size", [3, 7])
def test_the_tensorflow_layout_is_recognised_and_comes_back_bit_for_bit(wiring, norm, embedding_size):
    config = SMALL.replace(**WIRINGS[wiring], norm=norm, pooler_dense=True, embedding_size=embedding_size)
    model = build(config, "pretraining")
    ours = canonical_state(model)
    keymap = layouts.load("tf-mobilebert")
    theirs = keymap.back({name: Info(tuple(x.shape), "F64") for name, x in ours.items()}, config.to_dict()).run(
        ours.__getitem__
    )
    assert ("bert/embeddings/FakeLayerNorm/gamma" in theirs) == (norm == "no_norm")
    assert ("bert/embeddings/LayerNorm/gamma" in theirs) == (norm != "no_norm")
    assert theirs["bert/encoder/layer_1/ffn_layer_1/intermediate/dense/kernel"].shape == (
        config.inner_size,
        config.intermediate_size,
    )
    rest = config.hidden_size - embedding_size
    assert theirs.get("cls/predictions/extra_output_weights", torch.empty(17, 0)).shape == (17, rest)
    assert layouts.recognise(DictArchive(theirs)) == "tf-mobilebert"
    foreign = keymap.config_back(config.replace(classifier_dropout=None).to_dict())
    again = canonical_state(zoo.load(theirs, config=foreign, layout="tf-mobilebert", task="pretraining"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_a_layer_norm_with_one_eps_cannot_be_said_in_the_port_that_has_two():
    keymap = layouts.load("hf-mobilebert")
    with pytest.raises(ConfigError, match="norm='layer_norm'"):
        keymap.config_back(SMALL.replace(norm="layer_norm").to_dict())
    assert keymap.config_back(SMALL.replace(norm="layer_norm_hf").to_dict())["normalization_type"] == "layer_norm"
    assert (
        layouts.load("tf-mobilebert").config_forward(
            {
                "vocab_size": 9,
                "embedding_size": 4,
                "hidden_size": 4,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 3,
                "normalization_type": "layer_norm",
            }
        )["norm"]
        == "layer_norm"
    )


# --- what is its own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigram", [True, False])
def test_only_the_last_token_reads_the_padding_behind_it_and_only_with_the_trigram(trigram):
    model = build(SMALL.replace(trigram=trigram, num_layers=1))
    ids = torch.tensor([[3, 4, 5, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    other = torch.tensor([[3, 4, 5, 9, 2]])
    with torch.no_grad():
        first, second = (model(x, mask, output_hidden_states=True).hidden_states[0] for x in (ids, other))
    changed = (first != second).any(2)[0].tolist()
    assert changed == [False, False, trigram, False, False]
    assert "padding" in type(model).exceptions


def test_the_word_predictor_reads_table_and_extra_columns():
    model = build(SMALL, "masked-lm")
    x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = model.heads["masked_lm"]
    with torch.no_grad():
        inner = head.norm(head.dense(x).relu())
        expected = inner @ torch.cat([model.token_table, head.extra.weight], 1).T + head.bias
        assert error(head(x, model.token_table), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"bottleneck_size": 5}, ["num_heads=2", "bottleneck_size=5", "nearest"]),
        ({"bottleneck": False}, ["num_heads=2", "hidden_size=7"]),
        ({"embedding_size": 8}, ["embedding_size=8", "hidden_size=7"]),
        ({"num_feed_forwards": 0}, ["num_feed_forwards=0"]),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(fields, names):
    with pytest.raises(ConfigError) as caught:
        SMALL.replace(**fields)
    assert all(name in str(caught.value) for name in names)


def test_an_unknown_norm_is_refused_with_the_closest():
    with pytest.raises(UnknownNameError, match="no_norm"):
        SMALL.replace(norm="nonorm")


def test_embeddings_given_instead_of_ids_have_the_tables_width():
    model = build(SMALL)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(
            model(inputs_embeds=model.embeddings.token(ids)).last_hidden_state, model(ids).last_hidden_state
        )
    with pytest.raises(InputError, match=r"\(batch, length, 3\)"):
        model(inputs_embeds=torch.zeros(1, 3, 7, dtype=torch.float64))


def test_fresh_norms_pass_their_input_and_the_teacher_has_layer_norms():
    model = zoo.create("mobilebert-base", **SMALL.to_dict())
    x = torch.randn(2, 7)
    assert torch.equal(model.embeddings.norm(x), x)
    assert zoo.config("mobilebert-teacher").norm == "layer_norm"
    teacher = zoo.create("mobilebert-teacher", device="meta")
    assert 293e6 * 0.99 < teacher.num_parameters() < 293e6 * 1.01  # the paper's 293 M
