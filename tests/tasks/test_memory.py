"""Queues, momentum encoders and memory banks against plain loops, in one process and in two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from tests.oracle import way_back
from tests.processes import in_processes
from tests.references.moco import StandIn, StandInConfig, momentum_model, pixels
from tests.tasks.test_contrast import vectors
from zoo.errors import ConfigError, InputError, TaskError, UnknownNameError
from zoo.tasks.memory import MemoryBank, MomentumTwin, Queue, momentum_schedule, shuffled_keys
from zoo.tasks.views import MomentumContrast


def test_a_queue_overwrites_the_oldest_and_wraps():
    queue, wanted = Queue(5, 2, wrap=True), [None] * 5
    written = 0
    for batch in range(4):
        keys = torch.full((3, 2), float(batch))
        queue.enqueue(keys)
        for key in keys:
            wanted[written % 5] = key
            written += 1
    assert torch.equal(queue.keys, torch.stack(wanted))
    assert int(queue.pointer) == written % 5


def test_a_batch_that_does_not_divide_the_queue_is_refused():
    with pytest.raises(ConfigError, match=r"queue of 5 keys can't take 3 keys.*queue_wrap"):
        Queue(5, 2).enqueue(torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="can't take 6"):
        Queue(5, 2, wrap=True).enqueue(torch.zeros(6, 2))
    queue = Queue(8, 2)
    queue.enqueue(torch.zeros(2, 2))
    queue.enqueue(torch.zeros(4, 2))
    with pytest.raises(ConfigError, match=r"4 keys.*place 6"):
        queue.enqueue(torch.zeros(4, 2))


def test_two_processes_write_the_queue_and_the_bank_of_one():
    def work(rank: int, shares: int) -> dict[str, torch.Tensor]:
        queue, bank = Queue(7, 4, wrap=True), MemoryBank(6, 4, generator=torch.Generator().manual_seed(0))
        for batch in range(3):
            keys = vectors(5, 4, seed=batch).float()[rank::shares]
            queue.enqueue(keys)
            bank.update((torch.arange(5) + batch)[rank::shares] % 6, keys, 0.3)
        return dict(queue.named_buffers()) | dict(bank.named_buffers())

    alone = work(0, 1)
    for part in in_processes(lambda rank: work(rank, 2)):
        assert all(torch.equal(part[name], alone[name]) for name in ("keys", "pointer", "vectors"))


def test_a_twin_follows_parameters_and_no_buffer():
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    twin = MomentumTwin(source)
    assert not list(twin.parameters())
    before = {name: x.clone() for name, x in twin.twin.named_buffers()}
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 1.5
    source[1].running_mean += 3
    twin.follow(source, 0.9)
    for name, x in twin.twin.named_buffers():
        moved = dict(source.named_parameters()).get(name)
        wanted = before[name] if moved is None else 0.9 * before[name] + 0.1 * moved
        assert torch.allclose(x, wanted, atol=1e-15), name
    assert int(twin.steps) == 1


def test_a_twin_of_a_half_precision_module_stays_float32_and_moves():
    source = nn.Linear(3, 2).bfloat16()
    twin = MomentumTwin(source)
    start = twin.twin.weight.clone()
    with torch.no_grad():
        source.weight += 1
    for _ in range(5):
        twin.follow(source, 0.999)
    assert twin.twin.weight.dtype == torch.float32
    assert ((twin.twin.weight - start) > 0.004).all()  # in bfloat16 steps of a thousandth are lost
    assert not twin(torch.ones(1, 3, dtype=torch.bfloat16)).requires_grad


def test_what_is_tied_stays_tied_in_a_twin():
    source = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    source["b"].weight = source["a"].weight
    twin = MomentumTwin(source)
    twin.follow(source, 0.5)
    assert twin.twin["a"].weight is twin.twin["b"].weight


def test_a_memory_bank_mixes_rows_and_draws_from_all():
    bank = MemoryBank(9, 4, generator=torch.Generator().manual_seed(0)).double()
    old, new, places = bank.vectors.clone(), vectors(2, 4), torch.tensor([7, 2])
    bank.update(places, new, 0.3)
    for row in range(9):
        wanted = old[row]
        if row in (7, 2):
            mixed = 0.3 * old[row] + 0.7 * new[[7, 2].index(row)]
            wanted = mixed / mixed.square().sum().sqrt()
        assert torch.allclose(bank.vectors[row], wanted)
    drawn = bank.draw(places, 400, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], places)
    assert set(drawn[0, 1:].tolist()) == set(range(9))
    scores = bank.scores(new, drawn[:, :3])
    assert all(
        float(scores[i, j]) == pytest.approx(float(new[i] @ bank.vectors[drawn[i, j]]))
        for i in (0, 1)
        for j in range(3)
    )
    with pytest.raises(InputError, match=r"0\.\.8, got 2\.\.9"):
        bank.update(torch.tensor([2, 9]), new)


@pytest.mark.parametrize("written", ["constant", "linear,1,2", "cosine,0.9", "constant,x", "constant,0.9,3"])
def test_a_momentum_that_is_no_schedule_is_refused(written):
    with pytest.raises(ConfigError, match="no schedule"):
        momentum_schedule(written)


def test_keys_are_computed_among_rows_of_other_processes_and_come_back_in_order():
    def work(rank: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(rank)
        rows = torch.arange(8.0)[rank::2, None]
        seen = []

        def encode(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            seen.append(inputs["x"])
            return 10 * inputs["x"]

        return {"keys": shuffled_keys(encode, {"x": rows}), "own": rows, "seen": seen[0]}

    parts = in_processes(work)
    for part in parts:
        assert torch.equal(part["keys"], 10 * part["own"])
        assert not torch.equal(part["seen"].sort(0).values, part["own"])
    assert torch.equal(torch.cat([part["seen"] for part in parts]).sort(0).values, torch.arange(8.0)[:, None])


def moco(**options):
    torch.manual_seed(0)
    encoder = StandIn(StandInConfig())
    given = {"queue_size": 8, "projection_size": 4, **options}
    model = momentum_model(MomentumContrast, encoder, **given)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.train()


def test_a_step_without_its_state_says_what_to_call():
    with pytest.raises(TaskError, match=r"model\.start\(\)"):
        moco()(pixels(torch.randn(4, 10), torch.randn(4, 10)))


def test_three_views_and_bad_options_are_refused():
    model = moco()
    model.start()
    with pytest.raises(InputError, match=r"\(batch, 2, \.\.\.\).*\(4, 3, 1, 1, 10\)"):
        model(torch.randn(4, 3, 1, 1, 10))
    with pytest.raises(ConfigError, match="queue_size=0"):
        moco(queue_size=0)
    with pytest.raises(ConfigError, match="temperature"):
        moco(temperature=0)
    with pytest.raises(UnknownNameError, match="batch-norm"):
        moco(projection="batchnorm")
    with pytest.raises(ConfigError, match="projection_layers=0"):
        moco(projection_layers=0)


def test_a_started_model_is_saved_without_what_trains_beside_it(tmp_path):
    sizes = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    model = zoo.create("bert-tiny", task="cross-lingual-contrast", projection="mlp", queue_size=4, layer=1, **sizes)
    model.train().start()
    ids = torch.randint(1, 20, (2, 2, 5))
    model.before_step()
    model.after_step([model(ids)])
    assert int(model.queue.pointer) == 2
    again = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert again.options == model.options
    assert not len(again.beside)
    own = model.state_dict()
    assert {name for name in own if not name.startswith("beside.")} == set(again.state_dict())
    assert torch.equal(again.eval()(ids[:, 0]).embedding, model.eval()(ids[:, 0]).embedding)
    torch.save(own, tmp_path / "own.pt")
    plain = zoo.load(tmp_path / "own.pt", config=tmp_path / "saved" / "config.json")
    assert torch.equal(plain.eval()(ids[:, 0]).embedding, again(ids[:, 0]).embedding)


def test_in_eval_mode_the_batch_gives_the_wrong_answers():
    model = moco(temperature=0.5).eval()
    first, second = torch.randn(3, 10), torch.randn(3, 10)
    out = model(pixels(first, second))
    query, key = (model(x[:, None, None]).embedding for x in (first, second))
    wanted = nn.functional.cross_entropy(query @ key.T / 0.5, torch.arange(3))
    assert torch.allclose(out.loss, wanted, atol=1e-6)


@pytest.mark.parametrize(("layers", "layout"), [(1, "moco"), (2, "moco-v2")])
def test_mocos_files_of_both_versions_go_on_with_their_projection(layers, layout):
    sizes = {"stage_channels": (4, 4, 8, 8), "stage_blocks": (1, 1, 1, 1), "stem_channels": 4, "image_size": 32}
    model = zoo.create(
        "resnet-50", task="momentum-contrast", projection_layers=layers, projection_size=6, queue_size=4, **sizes
    )
    model.train().start()
    model.before_step()
    out = model(torch.randn(2, 2, 3, 32, 32))
    model.after_step([out])
    assert int(model.queue.pointer) == 2
    assert out.loss.requires_grad
    theirs = {f"module.{name}": x for name, x in way_back(layout, model).items()}
    theirs |= {name.replace("encoder_q", "encoder_k"): torch.zeros_like(x) for name, x in theirs.items()}
    theirs |= {"module.queue": model.queue.keys.T, "module.queue_ptr": model.queue.pointer}
    config = {"layers": [1, 1, 1, 1], "inplanes": 4, "planes": [4, 4, 8, 8]}
    again = zoo.load(theirs, config=config, task="momentum-contrast")
    assert (again.load_report.layout, again.options["projection_layers"]) == (layout, layers)
    own = model.state_dict()
    assert all(torch.equal(x, own[name]) for name, x in again.state_dict().items())
    assert "heads.projection.layers.0.weight" in again.state_dict()
    assert not zoo.load(theirs, config=config).load_report.random
