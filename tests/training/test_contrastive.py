"""Contrastive objectives through `fit`: with GradCache, after a kill, and in two processes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import zoo
from tests.processes import in_processes
from tests.references.moco import StandIn, StandInConfig, momentum_model, pixels
from tests.training.test_parallel import curve
from zoo.errors import ConfigError, TaskError
from zoo.models.clip import Clip, ClipConfig
from zoo.registry.tasks import task_spec
from zoo.tasks.base import check_options
from zoo.tasks.views import ImageTextContrast, MomentumContrast, ViewContrast
from zoo.tokenization.wordpiece import wordpiece
from zoo.training import fit, shard
from zoo.training.cached_gradients import grad_cache

SIZES = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 8, "max_positions": 16}
CLIP = {
    **{"vocab_size": 30, "patch_size": 4, "image_size": 8, "projection_size": 6},
    **{f"image_{name}": size for name, size in SIZES.items() if name != "max_positions"},
}
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"{language}{n}" for language in "ab" for n in range(20))]


def tokenizer() -> Any:
    return wordpiece({token: number for number, token in enumerate(TOKENS)})


def translations(count: int = 48, seed: int = 0) -> list[dict[str, str]]:
    """Sentences of one language, word by word in another."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        words = [draw.randrange(20) for _ in range(draw.randrange(2, 7))]
        found.append({"text": " ".join(f"a{w}" for w in words), "pair": " ".join(f"b{w}" for w in words)})
    return found


def contrast_of(**options: Any) -> Any:
    """A small model with InfoXLM's objective."""
    settings = {"vocab_size": len(TOKENS), "dropout": 0.0, "attention_dropout": 0.0, "queue_size": 32, **options}
    generator = torch.Generator().manual_seed(0)
    return zoo.create("bert-base", task="cross-lingual-contrast", generator=generator, **SIZES, **settings)


def towers(dropout: float = 0.0, **options: Any) -> ImageTextContrast:
    generator = torch.Generator().manual_seed(0)
    spec = task_spec("image-text-contrast")
    made = Clip(ClipConfig(**SIZES, **CLIP, dropout=dropout)).double()
    model = ImageTextContrast.build(made, check_options(spec, options), spec.name)
    model.task = spec.name
    model.init_weights(generator)
    return model.train()


def pairs(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 28, (rows, 7), generator=generator)
    ids[:, -1] = 29
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)}


def share(batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: x[rows] for name, x in batch.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.full_tensor() if hasattr(x, "full_tensor") else x.clone() for name, x in found.items()}


def same(mine: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    for name, x in mine.items():
        assert torch.allclose(x, other[name], atol=1e-12), name


def whole(model: nn.Module, batch: Mapping[str, Any]) -> tuple[float, dict[str, Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach()), gradients(model)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_grad_cache_has_the_gradients_of_one_large_batch(loss):
    batch = pairs(7)
    wanted, alone = whole(towers(loss=loss), batch)
    model = towers(loss=loss)
    found = grad_cache(model, [share(batch, slice(0, 3)), share(batch, slice(3, 5)), share(batch, slice(5, 7))])
    assert found == pytest.approx(wanted, abs=1e-12)
    same(gradients(model), alone)
    assert "model.logit_scale" in alone


def test_grad_cache_draws_the_same_dropout_twice():
    batches, model = [pairs(3), pairs(4, 1)], towers(dropout=0.5)
    torch.manual_seed(5)
    scores = [model(**batch, only_vectors=True).scores for batch in batches]
    after = torch.get_rng_state()
    loss, _ = model.contrast({name: torch.cat([each[name] for each in scores]) for name in scores[0]})
    loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    torch.manual_seed(5)
    assert grad_cache(model, batches) == pytest.approx(float(loss.detach()), abs=1e-12)
    same(gradients(model), wanted)
    assert torch.equal(torch.get_rng_state(), after)


def views_model(**options: Any) -> ViewContrast:
    spec = task_spec("view-contrast")
    model = ViewContrast.build(StandIn(StandInConfig()), check_options(spec, options), spec.name)
    model.task = spec.name
    model.init_weights(torch.Generator().manual_seed(0))
    return model.double().train()


def looks(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": pixels(*torch.randn(2, rows, 10, generator=generator, dtype=torch.float64))}


def test_grad_cache_moves_batch_norms_once():
    batches = [looks(4), looks(4, 1)]
    plain, cached = views_model(projection="batch-norm"), views_model(projection="batch-norm")
    for batch in batches:
        plain(**batch)
    grad_cache(cached, batches)
    same(dict(cached.named_buffers()), dict(plain.named_buffers()))


def test_fit_takes_grad_cache_for_losses_over_the_batch_alone():
    batches = [pairs(3, seed) for seed in range(4)]
    large = [{n: torch.cat([batches[i][n], batches[i + 1][n]]) for n in batches[0]} for i in (0, 2)]
    one, two = towers(), towers()
    settings = {"epochs": 2, "log_every": 1, "lr": 1e-2}
    mine = fit(two, batches, accumulate=2, grad_cache=True, **settings)
    theirs = fit(one, large, **settings)
    assert [row["loss"] for row in mine.history] == pytest.approx([row["loss"] for row in theirs.history], abs=1e-9)
    with pytest.raises(ConfigError, match="cross-lingual-contrast has none"):
        fit(contrast_of(), translations(), tokenizer=tokenizer(), grad_cache=True)
    with pytest.raises(TaskError, match="MomentumContrast has none"):
        grad_cache(momentum_model(MomentumContrast, StandIn(StandInConfig())), [looks(2)])
    with pytest.raises(ConfigError, match="adversarial"):
        fit(towers(), batches, grad_cache=True, adversarial={"steps": 1})


def learned(
    out: Any = None, kill: int = 0, wrap: Any = lambda model: model, optimizer: str = "adamw", **options: Any
) -> Any:
    """A run of InfoXLM's objective over rows, killed behind an update where ``kill`` says so."""

    def event(row: Mapping[str, Any]) -> None:
        if row["step"] == kill:
            raise KeyboardInterrupt

    model = contrast_of(**options).double()
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 2, "accumulate": 2}
    try:
        fit(
            wrap(model),
            translations(),
            translations(16, 1),
            tokenizer=tokenizer(),
            out=out,
            resume=True,
            on_event=event,
            optimizer=optimizer,
            **settings,
        )
    except KeyboardInterrupt:
        return None
    return model


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_killed_run_goes_on_with_its_queue_and_twin(tmp_path, optimizer):
    options: dict[str, Any] = {"optimizer": optimizer, "dropout": 0.1}
    options |= {"momentum": "linear,1,5,0.5,0.9", "projection": "matrix", "layer": 1}
    alone = learned(tmp_path / "whole", **options)
    assert learned(tmp_path / "cut", kill=5, **options) is None
    again = learned(tmp_path / "cut", **options)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    mine, other = (dict(model.beside.named_buffers()) for model in (again, alone))
    assert {"queue.keys", "queue.pointer", "twin.steps", "twin.twin.projection.weight"} <= set(mine)
    assert all(torch.equal(x, other[name]) for name, x in mine.items())
    assert int(mine["twin.steps"]) == 6
    assert not any("beside" in name for name in zoo.load(tmp_path / "cut").state_dict())


def test_two_processes_learn_what_one_learns_queue_and_twin_alike(tmp_path):
    def work(rank: int) -> dict[str, Tensor]:
        model = learned(tmp_path / "two", wrap=DistributedDataParallel, momentum=0.5)
        return dict(model.state_dict())

    alone = learned(tmp_path / "one", momentum=0.5).state_dict()
    parts = in_processes(work)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for left, right in zip(one, two, strict=True):
        left, right = ({n: v for n, v in row.items() if n != "eval_loss"} for row in (left, right))
        assert right == pytest.approx(left, abs=1e-9)
    for part in parts:
        assert part.keys() == alone.keys()
        for name, x in part.items():
            assert torch.allclose(x.double(), alone[name].double(), atol=1e-9), name


def test_two_processes_that_were_killed_go_on_with_the_same_curve(tmp_path):
    def work(rank: int) -> dict[str, Tensor]:
        options: dict[str, Any] = {"wrap": DistributedDataParallel, "momentum": 0.5, "dropout": 0.1}
        alone = learned(tmp_path / "whole", **options)
        assert learned(tmp_path / "cut", kill=4, **options) is None
        again = learned(tmp_path / "cut", **options)
        other = dict(alone.beside.named_buffers())
        assert all(torch.equal(x, other[name]) for name, x in again.beside.named_buffers())
        return {}

    in_processes(work)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


SHARES = (slice(0, 4), slice(4, 7))


def test_copies_and_shards_have_the_loss_and_gradients_of_one_process():
    batch = pairs(7)

    def work(rank: int) -> dict[str, Any]:
        own, found = share(batch, SHARES[rank]), {}
        for name, wrap in (("copies", DistributedDataParallel), ("shards", shard)):
            model = towers()
            wrapped = wrap(model)
            loss = wrapped(**own).loss
            loss.backward()
            found[name] = [loss.detach(), gradients(model)]
            model = towers()
            chunks = [share(own, slice(0, 2)), share(own, slice(2, None))]
            found[f"{name}, cached"] = [
                torch.tensor(grad_cache(wrap(model), chunks), dtype=torch.float64),
                gradients(model),
            ]
        return found

    wanted, alone = whole(towers(), batch)
    parts = in_processes(work)
    for name in parts[0]:
        assert sum(float(part[name][0]) for part in parts) / 2 == pytest.approx(wanted, abs=1e-12), name
        for part in parts:
            same(part[name][1], alone)


def test_a_momentum_model_in_copies_shuffles_and_learns():
    def work(rank: int) -> dict[str, Any]:
        torch.manual_seed(0)
        model = momentum_model(
            MomentumContrast, StandIn(StandInConfig()), queue_size=8, projection_size=4, momentum=0.5
        )
        model.init_weights(torch.Generator().manual_seed(0))
        model.train().start()
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            model.before_step()
            out = wrapped(pixels(*torch.randn(2, 2, 10, generator=torch.Generator().manual_seed(10 * step + rank))))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            model.after_step([out])
        kept = {n: x for n, x in model.named_buffers() if "running" not in n and "num_batches" not in n}
        return {**kept, **{n: p.detach() for n, p in model.named_parameters()}}

    one, two = in_processes(work)
    assert all(torch.equal(x, two[name]) for name, x in one.items())


def test_two_processes_learn_from_the_queues_of_two_towers_what_one_learns():
    def learn(rank: int, world: int) -> dict[str, Tensor]:
        model: Any = zoo.create(
            "clip-vit-b-32",
            task="image-text-momentum",
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
            queue_size=8,
            momentum=0.5,
            **SIZES,
            **CLIP,
        )
        model.train().start()
        unused = {"find_unused_parameters": True}  # the logits' scale
        wrapped = model if world == 1 else DistributedDataParallel(model, **unused)
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        for step in range(3):
            batch = pairs(4, seed=step)
            batch["input_ids"][1, 3:] = torch.tensor([29, 0, 0, 0])  # a text of four tokens
            model.before_step()
            out = wrapped(**share(batch, slice(rank, None, world)), lengths=[7, 4, 7, 7][rank::world])
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            model.after_step([out])
            losses.append(out.loss.detach())
        return {**model.state_dict(), "losses": torch.stack(losses)}

    alone, parts = learn(0, 1), in_processes(lambda rank: learn(rank, 2))
    losses = [part.pop("losses") for part in parts]
    assert torch.allclose(sum(losses) / 2, alone.pop("losses"), atol=1e-12)
    assert not torch.allclose(*losses)
    for part in parts:
        same(part, alone)
