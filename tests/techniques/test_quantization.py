"""Quantisation: grids, packed codes, training on a grid, integers that run, and what is saved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tests.strategies import build, randomised, relative, small_batch, small_config
from zoo.errors import ConfigError, TechniqueError
from zoo.inference.int8 import Int8Linear
from zoo.techniques.quantization.grids import Grid, pack, range_rounding, unpack
from zoo.techniques.quantization.hessian import choose_bits, sensitivity, top_eigenvalues
from zoo.techniques.quantization.integer import QuantAct, int_exp, int_gelu, int_layer_norm, int_softmax
from zoo.techniques.quantization.stored import CodedEmbedding, CodedLinear, Int8StaticLinear
from zoo.techniques.quantization.technique import stored_bytes
from zoo.techniques.quantization.trained import LowHighRange, MovingRange, SymmetricLinear

SETTINGS = {"deadline": None, "derandomize": True}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bert(task: str | None = None, **fields: object) -> nn.Module:
    return build("bert", small_config("bert", **fields), task, seed=3)


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**small_batch("bert").inputs).last_hidden_state


grids = st.one_of(
    st.builds(Grid, bits=st.integers(2, 8), symmetric=st.just(True), rows=st.integers(0, 5)),
    st.builds(Grid, bits=st.integers(1, 8), symmetric=st.just(False), rows=st.integers(0, 5)),
    st.builds(Grid, bits=st.integers(2, 8), symmetric=st.booleans(), rows=st.just(0), block=st.integers(1, 7)),
)


@settings(**SETTINGS)
@given(grid=grids, rows=st.integers(1, 6), inputs=st.integers(1, 9), seed=st.integers(0, 99))
def test_rounding_errs_by_half_a_step_at_most_and_rounding_again_changes_nothing(grid, rows, inputs, seed):
    weight = rand(rows, inputs, seed=seed)
    codes, step, low = grid.codes(weight)
    values = grid.values(codes, step, low)
    error = (values - weight).abs().reshape(len(step), -1)
    assert bool((error <= step[:, None] * (0.5 + 1e-9)).all())
    least = -grid.top if grid.symmetric else 0
    assert codes.min() >= least
    assert codes.max() <= grid.top
    assert torch.equal(codes, codes.round())
    if grid.symmetric or grid.bits > 1:
        assert torch.allclose(grid.rounded(values), values, atol=1e-12)


@settings(**SETTINGS)
@given(bits=st.integers(1, 8), rows=st.integers(1, 4), count=st.integers(1, 17), seed=st.integers(0, 99))
def test_codes_are_packed_without_loss_into_as_few_bytes_as_they_fit(bits, rows, count, seed):
    codes = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert tuple(packed.shape) == (rows, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits, count).long(), codes)


@settings(**SETTINGS)
@given(grid=grids, seed=st.integers(0, 99))
def test_a_coded_layer_and_table_give_what_their_rounded_weights_give(grid, seed):
    linear, table = nn.Linear(7, 6).double(), nn.Embedding(6, 7).double()
    randomised(linear, seed), randomised(table, seed)
    x, ids = rand(3, 7, seed=seed), torch.tensor([[0, 5, 2], [3, 3, 1]])
    wanted = F.linear(x, grid.rounded(linear.weight), linear.bias)
    assert torch.allclose(CodedLinear(linear, grid)(x), wanted, atol=1e-12)
    assert torch.allclose(CodedEmbedding(table, grid)(ids), F.embedding(ids, grid.rounded(table.weight)), atol=1e-12)


def test_a_group_has_its_own_range_so_that_one_large_row_spoils_no_other():
    weight = rand(8, 16)
    weight[0] *= 1000
    whole, grouped = (F.mse_loss(Grid(4, rows=n).rounded(weight)[1:], weight[1:]) for n in (1, 8))
    assert float(grouped) < float(whole) / 50
    assert Grid(3, rows=5).groups((8, 16)) == 4
    assert Grid(4, rows=0, block=6).groups((8, 16)) == 8 * 4


def test_the_gradient_passes_a_symmetric_rounding_whole_and_stops_where_a_range_cuts():
    linear = nn.Linear(4, 3).double()
    zoo.Q8Bert(decay=0.0).on_linear(linear.train(), requantize=False)
    x = rand(2, 4).requires_grad_()
    linear(x).sum().backward()
    assert torch.allclose(x.grad, linear.weight.sum(0).expand(2, 4))
    y = torch.tensor([-3.0, 0.2, 4.0], requires_grad=True)
    range_rounding(y, torch.tensor(-1.0), torch.tensor(1.0)).sum().backward()
    assert y.grad.tolist() == [0.0, 1.0, 0.0]


def test_a_moving_range_starts_at_its_first_tensor_moves_before_rounding_and_rests_in_eval():
    follow = MovingRange(decay=0.9, start_step=1).double().train()
    follow(torch.tensor([5.0], dtype=torch.float64))  # only counted
    assert float(follow.largest) == 0
    follow(torch.tensor([2.0, -1.0], dtype=torch.float64))
    follow(torch.tensor([4.0], dtype=torch.float64))
    assert float(follow.largest) == pytest.approx(0.9 * 2 + 0.1 * 4)
    follow.eval()(torch.tensor([100.0], dtype=torch.float64))
    assert float(follow.largest) == pytest.approx(2.2)
    assert float(follow(torch.tensor([100.0], dtype=torch.float64))) == pytest.approx(2.2)


def test_with_a_start_step_tables_wait_as_long_as_layers_do_and_are_rounded_in_eval():
    model = bert()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.apply(model, zoo.Q8Bert(start_step=2))
    table = model.train().embeddings.token
    ids = torch.arange(5)
    rounded = Grid(8).rounded(plain["embeddings.token.weight"])[ids]
    for step in range(4):
        made = table(ids)
        assert torch.equal(made, plain["embeddings.token.weight"][ids] if step < 2 else rounded), step
    assert torch.equal(model.eval().embeddings.token(ids), rounded)
    fresh = bert()
    zoo.apply(fresh, zoo.Q8Bert(start_step=2))
    assert torch.equal(fresh.eval().embeddings.token(ids), rounded)


def test_zero_is_exactly_on_a_grid_that_says_so():
    follow = LowHighRange(4, zero=True).double().train()
    follow(rand(50) + 0.7)
    assert float(follow.eval()(torch.zeros(1, dtype=torch.float64))) == 0.0


@settings(**SETTINGS)
@given(inputs=st.integers(1, 20), outputs=st.integers(1, 9), requantize=st.booleans(), seed=st.integers(0, 99))
def test_integers_that_run_agree_with_the_layer_that_was_trained(inputs, outputs, requantize, seed):
    linear = randomised(nn.Linear(inputs, outputs).double(), seed)
    zoo.Q8Bert().on_linear(linear.train(), requantize=requantize)
    linear(rand(5, inputs, seed=seed))
    linear.eval()
    x = rand(2, 3, inputs, seed=seed + 1)
    made = Int8StaticLinear(linear)
    largest = (
        1.0 if linear.output_range is None else float(linear.output_range.largest) / 127 * 1.01 + 1e-4
    )  # a tie may fall the other way
    tolerance = 1e-4 if linear.output_range is None else largest
    assert float((made(x) - linear(x)).abs().max()) <= tolerance
    assert made.weight.dtype == torch.int8
    assert made.bias.dtype == torch.int32


def test_a_model_trained_by_q8bert_runs_in_integers_and_is_saved_as_such(tmp_path):
    model = bert()
    full = run(model)
    zoo.apply(model, zoo.Q8Bert(decay=0.9))
    model.train()
    for _ in range(3):
        model(**small_batch("bert").inputs).last_hidden_state.square().sum().backward()
    model.eval()
    rounded = run(model)
    assert 0 < relative(rounded, full) < 0.2
    with pytest.raises(TechniqueError, match="no training step"):
        zoo.apply(bert(), zoo.Q8Bert(), zoo.Int8())
    zoo.apply(model, zoo.Int8())
    assert {type(m) for m in model.modules()} >= {Int8StaticLinear, CodedEmbedding}
    assert relative(run(model), rounded) < 0.02
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert torch.equal(run(loaded), run(model))
    assert [type(t).__name__ for t in loaded.techniques] == ["Q8Bert", "Int8"]


def test_plain_layers_in_int8_are_those_of_the_speed_path_and_near_the_model(tmp_path):
    model = bert()
    full, size = run(model), stored_bytes(model)
    zoo.apply(model, zoo.Int8())
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == 2 * 6
    assert 0 < relative(run(model), full) < 0.05
    assert stored_bytes(model) < size / 2
    assert (zoo.save(model, tmp_path / "saved") / "model.safetensors").is_file()


def test_a_dynamic_q8bert_becomes_int8_without_any_training():
    model = bert()
    zoo.apply(model, zoo.Q8Bert(mode="dynamic"))
    wanted = run(model)
    zoo.apply(model, zoo.Int8())
    assert relative(run(model), wanted) < 0.1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_only_errs_less_with_more_bits_and_stores_them_packed(bits, tmp_path):
    model = bert(hidden_size=32, num_heads=2, intermediate_size=64)
    full = run(model)
    zoo.apply(model, zoo.WeightOnly(bits=bits, block=16))
    error = relative(run(model), full)
    assert error < {2: 3.0, 3: 1.5, 4: 0.7, 8: 0.04}[bits]
    assert error > 1e-6
    coded = model.encoder.blocks[0].feed_forward.up
    assert tuple(coded.codes.shape) == (64, 32 * bits // 8)
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert torch.equal(run(loaded), run(model))


def test_lora_trains_on_top_of_four_bits_which_stay(tmp_path):
    model = bert()
    zoo.apply(model, zoo.WeightOnly(bits=4, block=4), zoo.LoRA(rank=2))
    codes = model.encoder.blocks[0].attention.query.codes.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = run(model)
    model(**small_batch("bert").inputs).last_hidden_state.square().sum().backward()
    optimizer.step()
    assert torch.equal(codes, model.encoder.blocks[0].attention.query.codes)
    assert not torch.equal(run(model), before)
    assert torch.equal(run(zoo.load(zoo.save(model, tmp_path / "saved"))), run(model))


def test_qbert_gives_each_depth_its_bits_and_weight_only_stores_the_grid_it_was_trained_on():
    model = bert(num_layers=2)
    zoo.apply(model, zoo.QBert(bits=(2, 4), groups=4))
    model.train()
    model(**small_batch("bert").inputs)
    model.eval()
    ups = [block.feed_forward.up for block in model.encoder.blocks]
    assert [up.grid.bits for up in ups] == [2, 4]
    seen = [up.weight.clone() for up in ups]
    assert len(seen[0].unique()) <= 4 * 4
    zoo.apply(model, zoo.WeightOnly(embeddings=True))
    ups = [block.feed_forward.up for block in model.encoder.blocks]
    assert [up.grid.bits for up in ups] == [2, 4]
    assert all(torch.allclose(up.weight, old, atol=1e-12) for up, old in zip(ups, seen, strict=True))
    with pytest.raises(TechniqueError, match="for 1 depths"):
        zoo.apply(bert(num_layers=2), zoo.QBert(bits=(2,)))


def test_power_iteration_finds_the_eigenvalues_of_largest_magnitude():
    matrix = torch.diag(torch.tensor([3.0, -5.0, 1.0], dtype=torch.float64))
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * x @ matrix @ x + x.sum()
    found = top_eigenvalues(loss, [x], 2, steps=500, tolerance=1e-12, generator=torch.Generator().manual_seed(0))
    assert found == pytest.approx([-5.0, 3.0], abs=1e-4)


def test_sensitivity_is_that_of_each_layer_alone_and_picks_the_layer_to_keep_fine():
    model = bert("sequence-classification", num_layers=2)
    with torch.no_grad():
        for parameter in model.model.encoder.blocks[0].parameters():
            parameter.mul_(0.01)  # the second layer decides
    batches = [dict(small_batch("bert").inputs)] * 2
    labels = torch.zeros(len(batches[0]["input_ids"]), dtype=torch.long)
    omega = sensitivity(
        model, lambda m, b: m(**b, labels=labels).loss, batches, steps=8, generator=torch.Generator().manual_seed(0)
    )
    assert sorted(omega) == [0, 1]
    assert all(value >= 0 for value in omega.values())
    assert choose_bits({0: 1.0, 1: 5.0, 2: 3.0, 3: 0.1}, low=2, high=4) == (2, 4, 4, 2)
    with pytest.raises(TechniqueError, match="between 0 and 1"):
        choose_bits({0: 1.0}, share=2.0)


def test_fullyqt_rounds_every_step_once_it_has_seen_a_batch_and_learns_through_it():
    model = bert()
    full = run(model)
    zoo.apply(model, zoo.FullyQt(bits=8))
    model.train()
    model(**small_batch("bert").inputs).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "pooler" not in name)
    model.eval()
    assert 0 < relative(run(model), full) < 0.6
    norm = model.encoder.blocks[0].attention_norm
    assert {int(r.step) for r in norm.ranges.values()} >= {1}
    quotient = norm.ranges["quotient"]
    values = quotient(rand(400))
    assert len(values.unique()) <= 256


def test_ibert_runs_near_the_model_and_nearer_than_its_steps_are_coarse():
    model = bert(activation="gelu")
    full = run(model)
    zoo.apply(model, zoo.IBert())
    model.train()
    model(**small_batch("bert").inputs).last_hidden_state.square().sum().backward()
    model.eval()
    assert 0 < relative(run(model), full) < 0.3
    with pytest.raises(TechniqueError, match="GELU"):
        zoo.apply(bert(activation="silu"), zoo.IBert())


def quantised(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    return QuantAct(bits).train()(x)


def test_integer_polynomials_are_near_the_functions_they_stand_for():
    x, step = quantised(torch.linspace(-4, 4, 201, dtype=torch.float64), 16)
    assert float((int_gelu(x, step)[0] - F.gelu(x)).abs().max()) < 0.05
    codes = -torch.arange(0, 100, dtype=torch.float64)
    whole, whole_step = int_exp(codes, torch.tensor(0.05, dtype=torch.float64))
    assert float((whole * whole_step - (codes * 0.05).exp()).abs().max()) < 0.05
    scores, score_step = quantised(rand(2, 3, 6))
    allowed = torch.ones(2, 3, 6, dtype=torch.bool)
    allowed[:, :, 4:] = False
    made, _ = int_softmax(scores, score_step, QuantAct(16).eval(), 8, allowed)
    wanted = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    assert float((made - wanted).abs().max()) < 0.03
    assert float(made[..., 4:].abs().max()) == 0
    values, value_step = quantised(rand(2, 3, 16), 16)
    weight, bias = rand(16, seed=4).abs() + 0.5, rand(16, seed=5)
    norm, _ = int_layer_norm(values, value_step, weight, bias, torch.zeros((), dtype=torch.float64))
    assert float((norm - F.layer_norm(values, (16,), weight, bias)).abs().max()) < 1e-3


def test_a_model_with_stored_integers_starts_from_random_weights_too():
    sizes = small_config("bert").to_dict()
    for technique in (zoo.Int8(), zoo.WeightOnly(bits=4, block=4, embeddings=True)):
        model = zoo.create(
            "bert-base", techniques=[technique], generator=torch.Generator().manual_seed(0), **sizes
        ).eval()
        assert bool(run(model).isfinite().all())
        spread = (
            float(model.encoder.blocks[0].attention.query.scale.mean()) if isinstance(technique, zoo.Int8) else 1e-3
        )
        assert 0 < spread < 1


def test_mobilebert_in_int8_takes_less_than_a_3_8th():
    sizes = {}
    for techniques in ([], [zoo.Int8()]):
        model = zoo.create("mobilebert-base", device="meta", techniques=techniques)
        sizes[len(techniques)] = stored_bytes(model)
    assert sizes[0] / sizes[1] >= 3.8


def test_what_does_not_fit_is_refused_with_the_reason():
    model = bert()
    zoo.apply(model, zoo.LoRA(rank=2))
    with pytest.raises(TechniqueError, match="plain linear layers"):
        zoo.apply(model, zoo.Int8())
    model = bert()
    zoo.apply(model, zoo.Q8Bert())
    assert isinstance(model.encoder.blocks[0].attention.query, SymmetricLinear)
    with pytest.raises(TechniqueError, match="SymmetricLinear"):
        zoo.apply(model, zoo.Q8Bert())
    with pytest.raises(TechniqueError, match="layers left for Int8"):
        zoo.apply(bert(), zoo.Int8(), zoo.Int8())
    with pytest.raises(TechniqueError, match="SparseAttention"):
        zoo.apply(bert(), zoo.SlidingWindow(radius=1), zoo.FullyQt())
    with pytest.raises(ConfigError, match="2 to 8"):
        zoo.Q8Bert(bits=1)
    with pytest.raises(ConfigError, match="whole rows or of blocks"):
        Grid(4, rows=2, block=3)
