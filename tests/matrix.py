"""The whole matrix: every technique on every family, built, run, trained, saved, reloaded, combined
and converted.

    python -m tests.matrix [--families bert albert] [--techniques LoRA] [--json FILE]

Prints a line for each cell that does not do what `zoo matrix` says of it, and the share of the
cells that work; exit code 1 where one differs. The suite runs a sample of the same cells
(`tests/techniques/test_techniques.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tests import strategies
from tests.strategies import build, randomised, relative, small_batch, small_config, states
from zoo.errors import TechniqueError, ZooError
from zoo.maps import layouts
from zoo.tasks.base import canonical_state
from zoo.techniques import new_tensors
from zoo.techniques.adaptive_span.technique import clamp_spans, spans_of
from zoo.techniques.matrix import EXAMPLES, cells, refusal

MORE = (zoo.LoRA(rank=2, name="more", roles=("feed-forward-up",)), zoo.BottleneckAdapter(name="more", kind="parallel"))
"""What each technique is combined with: the first of them that goes onto the family."""

AS_REGISTERED: dict[str, dict[str, Any]] = {
    "albert": {"num_groups": 1, "num_inner_blocks": 1},
    "ernie-thu": {"num_layers": 4, "layer_types": ()},
}
"""Where the tests' small model is wired unlike the registered ones, on which the matrix stands."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(model: nn.Module, family: str = "bert") -> dict[str, Tensor]:
    with torch.no_grad():
        return states(family, model(**small_batch(family).inputs))


def same(saved: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-12) -> bool:
    pairs = list(zip(saved.values(), other.values(), strict=True))
    return all(a.shape == b.shape and relative(a, b) <= tolerance for a, b in pairs)


def unreached(model: nn.Module, family: str) -> set[str]:
    """The parts of a model that the small batch does not reach at all: what stands there can't be
    reached either.
    """
    sum(value.sum() for value in states(family, model(**small_batch(family).inputs)).values()).backward()
    parts: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        parts[part] = parts.get(part, False) or parameter.grad is not None
    model.zero_grad()
    return {part for part, reached in parts.items() if not reached}


def check_cell(technique: str, family: str, folder: Path) -> str | None:
    """All that a cell promises, by assertions; or the reason of a refusal that touches nothing. ->
    the reason, None where it works.
    """
    config, examples = small_config(family, **AS_REGISTERED.get(family, {})), EXAMPLES[technique]
    model = build(family, config, seed=1)
    before, names = run(model, family), list(model.state_dict())
    reason = refusal(type(model), config, examples)
    if reason is not None:
        check_refusal(technique, family, model, before, reason)
        return reason
    idle = unreached(model, family)
    zoo.apply(model, *examples, generator=seeded())
    if technique not in (
        "Sharing",
        "LongShortRange",
        "LayerPruning",
        "Int8",
        "WeightOnly",
    ):  # share, replace, drop, store otherwise
        assert set(names) <= set(model.state_dict()), "existing tensors keep their names"
    check_effect(model, family, before, type(examples[-1]).adds_tensors)
    randomised(model, 5, 0.3) if technique != "Sharing" else None
    if technique == "AdaptiveSpan":
        clamp_spans(model)
        with torch.no_grad():
            for span in spans_of(model):
                span.fraction.fill_(0.3)
    assert all(value.isfinite().all() for value in run(model, family).values())
    check_gradients(model, family, idle)
    check_reload(model, family, folder / "alone")
    check_conversion(model, family, folder, all(type(example).only_values for example in examples))
    check_combination(model, family, folder / "combined")
    return None


def check_refusal(technique: str, family: str, model: nn.Module, before: dict[str, Tensor], reason: str) -> None:
    names = list(model.state_dict())
    assert len(reason.split()) > 4, "a refusal says why"
    try:
        zoo.apply(model, *EXAMPLES[technique])
    except TechniqueError:
        pass
    else:
        raise AssertionError("it was refused on the meta device and taken here")
    if len(EXAMPLES[technique]) == 1:
        assert list(model.state_dict()) == names
        assert same(run(model, family), before, 0), "a refusal touches nothing"


def check_effect(model: Any, family: str, before: dict[str, Tensor], adds_tensors: bool) -> None:
    """It changes the number of parameters, and what is new changes the result; or, where it has no
    tensors, the result.
    """
    if not adds_tensors:
        assert not same(run(model, family), before), "it changes what the model gives"
        return
    change = model.changes[-1]
    if change.before == change.after:  # what it adds are ranges, which follow what passes
        assert not same(run(model, family), before), "it changes what the model gives"
        assert set(change.added) & {name for name, _ in model.named_buffers()}
        return
    new = [parameter for _, parameter in new_tensors(model)]
    if not new:  # sharing only takes away
        assert change.after < change.before
        return
    with torch.no_grad():
        for parameter in new:
            parameter.mul_(0.5).add_(0.3)
    assert not same(run(model, family), before), "what is new changes what the model gives"


def check_gradients(model: nn.Module, family: str, idle: set[str]) -> None:
    model.train()
    output = states(family, model(**small_batch(family).inputs))
    sum(
        (value * torch.randn(value.shape, generator=seeded(2), dtype=value.dtype)).sum() for value in output.values()
    ).backward()
    without = [name for name, parameter in new_tensors(model) if parameter.grad is None]
    assert not [name for name in without if name.split(".")[0] not in idle], "every new tensor gets a gradient"
    model.eval()
    model.zero_grad()


def check_reload(model: Any, family: str, folder: Path) -> None:
    loaded: Any = zoo.load(zoo.save(model, folder))
    assert type(loaded) is type(model)
    assert loaded.techniques == model.techniques, "the techniques stand in the saved config"
    saved, again = canonical_state(model), canonical_state(loaded)
    assert list(saved) == list(again)
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert same(run(loaded, family), run(model, family), 1e-14)
    assert zoo.verify(folder).ok


def check_combination(model: Any, family: str, folder: Path) -> None:
    """One more technique on top: it changes the result, and both are saved and loaded."""
    wanted = run(model, family)
    for other in MORE:
        try:
            zoo.apply(model, other, generator=seeded(3))
            break
        except TechniqueError:
            continue
    else:
        raise AssertionError("nothing goes on top of it")
    with torch.no_grad():
        for name, parameter in new_tensors(model):
            if ".more." in name:
                parameter.add_(
                    torch.randn(parameter.shape, generator=seeded(4), dtype=parameter.dtype) * 0.4
                )  # a norm forgets a constant
    assert not same(run(model, family), wanted), "the second technique changes what the model gives"
    check_reload(model, family, folder)


def check_conversion(model: Any, family: str, folder: Path, only_values: bool) -> None:
    """Where all that it does stands in the values of the weights, a foreign layout takes it; what has
    new tensors, or gives other outputs by the same ones, is refused, since no foreign layout can say it.
    """
    bare = build(family, model.config, seed=1)
    zoo.save(bare, folder / "bare")
    maps = {layouts.load(name).family for name in layouts.available()}
    if family not in maps:
        return
    for layout in [name for name in layouts.available() if layouts.load(name).family == family]:
        try:
            zoo.convert(folder / "bare", folder / f"{layout}.safetensors", to=layout)
        except ZooError:  # a layout of a task that this model has not
            continue
        try:
            zoo.convert(folder / "alone", folder / f"{layout}-2.safetensors", to=layout)
            taken, why = True, "it cannot say what the technique does, but took the model"
        except ZooError as error:
            taken, why = False, f"it should take the model: {error}"
        assert taken == only_values, f"{layout}: {why}"
        return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=strategies.families(), choices=strategies.families())
    parser.add_argument("--techniques", nargs="+", default=list(EXAMPLES), choices=list(EXAMPLES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    said = {(row["technique"], row["family"]): row for row in cells(options.families, options.techniques)}
    rows, failed = [], 0
    started = time.perf_counter()
    for (technique, family), row in said.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                reason = check_cell(technique, family, Path(folder))
                problem = (
                    ""
                    if (reason is None) == (row["state"] == "works")
                    else f"zoo matrix says {row['state']}, the run says {reason}"
                )
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
        if problem:
            failed += 1
            print(f"{technique} on {family}: {problem}", flush=True)
        rows.append({**row, "problem": problem})
    works = sum(row["state"] == "works" and not row["problem"] for row in rows)
    print(
        f"{works} of {len(rows)} cells work ({works / len(rows):.1%}), {failed} are not as said, "
        f"{time.perf_counter() - started:.0f} s"
    )
    if options.json:
        options.json.write_text(json.dumps({"cells": rows}, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
