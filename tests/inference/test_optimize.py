"""`zoo.optimize` and its parts: every fast path gives what the plain one gives, the original stays
as it is, misuse is refused.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

import zoo
from tests import strategies
from tests.strategies import batches, build, configs, pooled, relative, small_batch, small_config, states
from zoo.errors import InputError, UnknownNameError
from zoo.inference.int8 import Int8Linear, int8_product, quantize_rows
from zoo.inference.prepared import FUSED, JoinedAttention, PreparedLinear, ShortAttention
from zoo.layers import Mask
from zoo.layers.attention import Attention, AttentionArgs, DenseAttention
from zoo.layers.feed_forward import ACTIVATIONS
from zoo.layers.masks import window

FAMILIES = strategies.families()
SETTINGS = {"deadline": None, "derandomize": True}


def run(model, inputs, **more):
    with torch.no_grad():
        return model(**{k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}, **more)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=6, **SETTINGS)
def test_an_optimized_model_gives_what_the_plain_one_gives(name, data):
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config, least=0))
    plain = build(name, config, dtype=torch.float32)
    fast = zoo.optimize(plain)
    for more in ({}, {"output_attentions": True}):
        mine, theirs = run(fast, batch.inputs, **more), run(plain, batch.inputs, **more)
        for (field, a), b in zip(states(name, mine).items(), states(name, theirs).values(), strict=True):
            assert relative(a, b) < 2e-4, field
        if pooled(mine) is not None:
            assert relative(pooled(mine), pooled(theirs)) < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.06), ("int8", 0.15)])
def test_rounding_keeps_every_family_near_its_float32(name, dtype, bound):
    plain, batch = build(name, small_config(name), dtype=torch.float32), small_batch(name)
    fast = zoo.optimize(plain, dtype)
    for (field, a), b in zip(
        states(name, run(fast, batch.inputs)).items(), states(name, run(plain, batch.inputs)).values(), strict=True
    ):
        off = (a.float() - b).norm() / b.norm()
        assert 0 < off < bound, f"{field} is off by {off:.3f}"


def test_every_product_of_a_block_is_prepared_and_takes_its_activation():
    plain = build("bert", small_config("bert", activation="gelu"), dtype=torch.float32)
    fast, layers = zoo.optimize(plain), plain.config.num_layers
    prepared = [part for part in fast.modules() if isinstance(part, PreparedLinear)]
    assert len(prepared) == 6 * layers
    assert sum(part.attribute == "gelu" for part in prepared) == layers
    assert not any(type(part) is nn.Linear for part in fast.encoder.modules())
    assert f"{6 * layers} linear layers" in str(fast.prepared)


def test_the_original_keeps_its_weights_its_mode_and_its_gradient():
    plain = build("albert", small_config("albert"), dtype=torch.float32).train()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for dtype in ("float32", "bfloat16", "int8"):
        fast = zoo.optimize(plain, dtype)
        assert not any(part.training for part in fast.modules())
        assert not any(p.requires_grad for p in fast.parameters())
    assert plain.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in plain.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_a_model_with_a_head_and_a_technique_is_prepared_around_them():
    given = {
        "task": "masked-lm",
        "vocab_size": 60,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 48,
    }
    plain = zoo.create(
        "bert-base", techniques=[zoo.LoRA(rank=2)], generator=torch.Generator().manual_seed(3), **given
    ).eval()
    for name, parameter in plain.named_parameters():
        if ".up" in name or "lora" in name:
            nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(4))
    batch = small_batch("bert")
    fast = zoo.optimize(plain)
    assert relative(run(fast, batch.inputs).logits, run(plain, batch.inputs).logits) < 1e-4


def test_a_prepared_model_can_be_copied_and_compiled_but_not_saved(tmp_path):
    batch = small_batch("bert")
    plain = build("bert", small_config("bert"), dtype=torch.float32)
    fast = zoo.optimize(plain)
    wanted = run(plain, batch.inputs).last_hidden_state
    twin = copy.deepcopy(fast)
    del fast
    assert relative(run(twin, batch.inputs).last_hidden_state, wanted) < 1e-4
    torch._dynamo.reset()
    graph = torch.compile(twin, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert relative(graph(**batch.inputs).last_hidden_state, wanted) < 1e-4
    for dtype in ("float32", "int8"):
        with pytest.raises(InputError, match="save the original"):
            zoo.save(zoo.optimize(plain, dtype), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_what_cannot_be_prepared_is_refused_with_the_nearest_name():
    model = build("bert", small_config("bert"), dtype=torch.float32)
    with pytest.raises(UnknownNameError, match="bfloat16"):
        zoo.optimize(model, "bfloat")
    with pytest.raises(InputError, match=r"call model\.cpu"):
        zoo.optimize(copy.deepcopy(model).to("meta"))


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FUSED))
@given(
    rows=st.integers(0, 5),
    sizes=st.tuples(st.integers(1, 33), st.integers(1, 40)),
    bias=st.booleans(),
    leading=st.booleans(),
)
@settings(max_examples=15, **SETTINGS)
def test_a_prepared_layer_is_the_layer_and_its_activation(name, rows, sizes, bias, leading):
    linear = nn.Linear(*sizes, bias=bias)
    x = seeded(3, rows, sizes[0]).transpose(0, 1) if leading else seeded(rows, sizes[0])
    with torch.no_grad():
        wanted = ACTIVATIONS[name](linear(x))
        made = PreparedLinear(linear.weight, linear.bias, name)(x)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


@given(
    rows=st.integers(0, 6),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bias=st.booleans(),
    scale=st.sampled_from([1e-6, 1, 1e6]),
)
@settings(max_examples=60, **SETTINGS)
def test_an_int8_product_errs_by_its_two_roundings_alone(rows, sizes, bias, scale):
    linear = nn.Linear(*sizes, bias=bias)
    x = seeded(rows, sizes[0]) * scale
    with torch.no_grad():
        made = Int8Linear.from_linear(linear)(x)
        wanted = copy.deepcopy(linear).double()(x.double())
    w = linear.weight.detach().double().abs()
    step_x, step_w = x.double().abs().amax(-1, keepdim=True) / 127, w.amax(-1) / 127
    bound = (
        step_x / 2 * w.sum(-1) + step_w / 2 * x.double().abs().sum(-1, keepdim=True) + step_x * step_w / 4 * sizes[0]
    )
    assert ((made - wanted).abs() <= bound * 1.001 + 1e-6 * (1 + wanted.abs())).all()


def test_int8_products_are_exact_where_nothing_is_rounded():
    weight = torch.tensor([[127.0, -3, 5], [1, 127, 0]]) / 4
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(weight)
    x = torch.tensor([[127.0, 1, -2], [0, 0, 0], [-5, 127, 9]])
    with torch.no_grad():
        torch.testing.assert_close(Int8Linear.from_linear(linear)(x), linear(x), rtol=1e-6, atol=1e-6)


@given(rows=st.integers(1, 5), size=st.integers(1, 30), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40, **SETTINGS)
def test_rows_are_rounded_to_the_nearest_of_255_steps(rows, size, scale):
    x = seeded(rows, size) * scale
    q, step = quantize_rows(x)
    assert q.dtype == torch.int8
    assert (q.abs().amax(-1) == 127).all()
    assert ((step * q - x).abs() <= step / 2 * 1.0001).all()


def test_an_int8_layer_refuses_weights_of_another_kind():
    with pytest.raises(InputError, match="int8 weight"):
        Int8Linear(torch.ones(2, 3), torch.ones(2), None)
    with pytest.raises(InputError, match=r"scale \(3,\)"):
        Int8Linear(torch.ones(2, 3, dtype=torch.int8), torch.ones(3), None)


def test_the_compiled_int8_product_is_the_same_function():
    torch._dynamo.reset()
    graph = torch.compile(int8_product, dynamic=True, fullgraph=True, backend="eager")
    layer = Int8Linear.from_linear(nn.Linear(8, 5), "gelu")
    for rows in (3, 7, 12):
        x = seeded(rows, 8, seed=rows)
        assert torch.equal(graph(x, layer.weight, layer.scale, layer.bias, "gelu"), layer(x))


def test_one_product_for_query_key_and_value_is_the_three():
    attention = Attention(16, 2)
    for name in ("query", "key", "value", "output"):
        setattr(attention, name, Int8Linear.from_linear(getattr(attention, name)))
    x = seeded(3, 7, 16)
    assert torch.equal(JoinedAttention(attention)(x, x, x, Mask()), attention(x, x, x, Mask()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    keys=st.integers(1, 70),
    masked=st.sampled_from(["no", "keys", "window"]),
    data=st.data(),
)
@settings(max_examples=40, **SETTINGS)
def test_short_attention_is_attention(dtype, batch, length, keys, masked, data):
    q, k, v = (seeded(batch, n, 2, 8, seed=i).to(dtype).transpose(1, 2) for i, n in enumerate((length, keys, keys)))
    mask = Mask()
    if masked == "keys":
        real = torch.tensor(
            data.draw(st.lists(st.lists(st.booleans(), min_size=keys, max_size=keys), min_size=batch, max_size=batch))
        )
        mask = Mask(keys=real)
    elif masked == "window":
        mask = Mask() & window(3)
    bias = seeded(1, 2, 80, 80, seed=9).to(dtype) if data.draw(st.booleans()) else None
    mine, theirs = (core(q, k, v, AttentionArgs(mask, bias)) for core in (ShortAttention(), DenseAttention()))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


# -- compilation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_one_graph_serves_ragged_lengths(name):
    model, batch = build(name, small_config(name)), small_batch(name)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    shortest = min(x.shape[1] for x in batch.inputs.values() if x.dim() > 1)
    with torch.no_grad():
        for cut in range(min(3, shortest - 2)):
            inputs = {key: x[:, : x.shape[1] - cut] if x.dim() > 1 else x for key, x in batch.inputs.items()}
            compiled(**inputs)
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs"
