"""Every ordered pair of techniques on a small model: both are applied, or refused with the model as it was; what
they give is finite and stays the same through save and load, through a smaller vocabulary, and, in training,
with blocks that are computed again.

    python -m benchmarks.technique_pairs [FAMILY ...]

About five minutes a family on two cores. Prints each pair that does otherwise, then the counts. The suite runs
one in eleven (`tests/techniques/test_pairs.py`).
"""

from __future__ import annotations

import collections
import copy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.strategies import build, relative, small_batch, small_config, states
from zoo.errors import TechniqueError
from zoo.techniques.base import Technique
from zoo.techniques.matrix import EXAMPLES
from zoo.techniques.trimming import with_vocabulary
from zoo.training.fine_tuning import checkpoint_blocks


def named(technique: Technique, name: str) -> Technique:
    """The second of a pair under a name of its own, where it has one."""
    return technique.replace(name=name) if "name" in technique.field_names() else technique


def pair(first: str, second: str) -> tuple[Technique, ...]:
    if first == second:
        return (*EXAMPLES[first], *(named(technique, "other") for technique in EXAMPLES[second]))
    return (*EXAMPLES[first], *(technique for technique in EXAMPLES[second] if technique not in EXAMPLES[first]))


def run(model: Any, family: str, inputs: dict[str, Any] | None = None) -> dict[str, Tensor]:
    with torch.no_grad():
        return states(family, model(**(inputs or small_batch(family).inputs)))


def differ(one: dict[str, Tensor], other: dict[str, Tensor], bound: float) -> bool:
    return any(a.shape != b.shape or relative(a, b) > bound for a, b in zip(one.values(), other.values(), strict=True))


def check_pair(first: str, second: str, family: str, folder: Path) -> str:
    """ "works" or "refused"; raises AssertionError where the pair breaks a promise."""
    model = build(family, small_config(family), seed=1).eval()
    before, names = run(model, family), list(model.state_dict())
    try:
        zoo.apply(model, *pair(first, second), generator=torch.Generator().manual_seed(0))
    except TechniqueError:
        assert list(model.state_dict()) == names, "a refusal leaves the parts"
        assert not differ(run(model, family), before, 0), "a refusal leaves the model as it was"
        return "refused"
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    wanted = run(model, family)
    assert all(bool(value.isfinite().all()) for value in wanted.values()), "what it gives is finite"
    check_kept(model, family, wanted, folder)
    check_smaller_vocabulary(model, family, wanted)
    check_recomputed(model, family)
    return "works"


def check_kept(model: Any, family: str, wanted: dict[str, Tensor], folder: Path) -> None:
    again = zoo.load(zoo.save(model, folder))
    assert again.techniques == model.techniques, "the techniques are saved"
    assert not differ(run(again, family), wanted, 1e-12), "save and load keep what it gives"


def check_smaller_vocabulary(model: Any, family: str, wanted: dict[str, Tensor]) -> None:
    inputs = dict(small_batch(family).inputs)
    used = [key for key in ("input_ids", "decoder_input_ids") if key in inputs]
    special = {
        value for key, value in model.config.to_dict().items() if key.endswith("_token_id") and value is not None
    }
    kept = sorted({0, *special, *(int(i) for key in used for i in inputs[key].flatten())})
    rows = torch.tensor(kept)
    fields = {
        key: kept.index(value)
        for key, value in model.config.to_dict().items()
        if key.endswith("_token_id") and value is not None
    }
    try:
        smaller = with_vocabulary(
            model, model.config.replace(vocab_size=len(kept), **fields), lambda old, axis: old.index_select(axis, rows)
        )
    except TechniqueError:
        return  # refused by name, as packed tables are
    for key in used:
        inputs[key] = torch.searchsorted(rows, inputs[key])
    assert not differ(run(smaller.eval(), family, inputs), wanted, 1e-12), "a smaller vocabulary keeps what it gives"


def check_recomputed(model: Any, family: str) -> None:
    """One step of training, with and without blocks that are computed again."""
    plain, recomputed = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    checkpoint_blocks(recomputed)
    found = []
    for one in (plain, recomputed):
        torch.manual_seed(0)
        output = states(family, one(**small_batch(family).inputs))
        sum(value.pow(2).mean() for value in output.values()).backward()
        found.append(
            (
                {key: value.detach() for key, value in output.items()},
                dict(one.named_parameters()),
                dict(one.named_buffers()),
            )
        )
    (outputs, parameters, buffers), (others, again, kept) = found
    assert not differ(outputs, others, 1e-12), "recomputing keeps what it gives in training"
    for name, parameter in parameters.items():
        one, other = parameter.grad, again[name].grad
        assert (one is None) == (other is None), f"recomputing keeps the gradient of {name}"
        assert one is None or other is None or relative(one, other) <= 1e-9, f"recomputing keeps the gradient of {name}"
    for name, buffer in buffers.items():
        assert torch.equal(buffer, kept[name]), f"recomputing keeps the buffer {name}"


def main() -> None:
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    for family in sys.argv[1:] or ["bert"]:
        for first in EXAMPLES:
            for second in EXAMPLES:
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        found = check_pair(first, second, family, Path(folder) / "model")
                    except Exception as error:
                        found = "broken"
                        print(
                            f"{family}: {first} then {second}: {type(error).__name__}: {str(error)[:150]}", flush=True
                        )
                counts[found] += 1
    print(sum(counts.values()), dict(counts))


if __name__ == "__main__":
    main()
