"""Odd values at every argument of every family's call, and at the labels of its tasks: how many end in an error
that is not the zoo's, and how many in numbers that are not finite without a word.

    python -m benchmarks.odd_calls [FAMILY ...]

A few minutes on two cores. Prints each raw error and each silent NaN, then the counts. The suite runs every
ninth of these calls (`tests/models/test_odd_calls.py`).
"""

from __future__ import annotations

import collections
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.strategies import build, families, for_task, labels_for, small_batch, small_config, tasks_of

Change = Callable[[Tensor], Any]


def _first(value: float) -> Change:
    """The first number another."""

    def change(x: Tensor) -> Tensor:
        made = x.clone()
        made.view(-1)[:1] = value
        return made

    return change


DTYPES: tuple[torch.dtype, ...] = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16)
DTYPES += (
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
)
ODD: dict[str, Change] = {
    **{f"as {str(dtype).removeprefix('torch.')}": lambda x, dtype=dtype: x.to(dtype) for dtype in DTYPES},  # type: ignore[misc]
    "no rows": lambda x: x[:0],
    "no length": lambda x: x[:, :0] if x.dim() > 1 else x[:0],
    "one row more": lambda x: torch.cat([x, x[:1]]),
    "one place more": lambda x: torch.cat([x, x[:, :1]], 1) if x.dim() > 1 else x,
    "an axis fewer": lambda x: x[0],
    "an axis more": lambda x: x[None],
    "an axis more behind": lambda x: x[..., None],
    "a number": lambda x: x.reshape(-1)[0],
    "nothing": lambda x: torch.zeros(0),
    "-1": _first(-1),
    "-100": _first(-100),
    "2": _first(2),
    "100": _first(100),
    "2^31": lambda x: _first(2**31)(x) if x.dtype in (torch.int64, torch.float32, torch.float64) else x,
    "NaN": lambda x: _first(float("nan"))(x) if x.is_floating_point() else x.double() * float("nan"),
    "infinity": lambda x: _first(float("inf"))(x) if x.is_floating_point() else x.double() + float("inf"),
    "-10000 for 0": lambda x: (1 - x.long()) * -10000 if not x.is_floating_point() else x * -10000,
    "a list": lambda x: x.tolist(),
    "a tuple": lambda x: tuple(x),
    "an array": lambda x: x.numpy(),
    "a text": lambda x: "x",
    "an int": lambda x: 3,
    "a dict": lambda x: {"x": x},
    "True": lambda x: True,
    "on meta": lambda x: x.to("meta"),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x,
    "expanded": lambda x: x[:1].expand_as(x),
    "sparse": lambda x: x.to_sparse(),
    "None": lambda x: None,
}


def small(name: str, task: str | None = None) -> tuple[Any, dict[str, Any]]:
    """A small model of a family in float32, and a batch that it takes."""
    model = build(name, small_config(name), task, dtype=torch.float32).eval()
    batch = small_batch(name)
    given: Mapping[str, Any] = batch.inputs if task is None else for_task(task, batch)
    given = {key: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in given.items()}
    labels = labels_for(task, model, batch) if task is not None else {}
    return model, {**given, **labels}


def calls(name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every odd call of a family, alone and with its tasks' labels."""
    for task in (None, *tasks_of(name)):
        model, given = small(name, task)
        table = (model if task is None else model.model).input_table
        odd = [
            key
            for key in given
            if isinstance(given[key], Tensor) and (task is None or key not in table or "label" in key)
        ]
        more = {} if task is not None else _more(model, given)
        for key in [*odd, *more]:
            value = given.get(key, more.get(key))
            for what, change in ODD.items():
                try:
                    changed = change(value)
                except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
                    continue  # torch has no such tensor
                yield (
                    f"{name} {task or 'alone'}: {key} {what}",
                    lambda changed=changed, model=model, given=given, key=key: model(**{**given, key: changed}),
                )


def _more(model: Any, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arguments that the small batch lacks and that every model of texts reads."""
    ids = given.get("input_ids")
    if ids is None or "attention_mask" in given:
        return {}
    return {"attention_mask": torch.ones_like(ids)}


def outcome(call: Callable[[], Any]) -> str:
    """taken, refused, raw (another error), or silent NaN."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            output = call()
        except zoo.ZooError:
            return "refused"
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/zoo/" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
            return f"raw {type(error).__name__} in {where}: {str(error)[:80]}"
    return "taken" if all(_finite(tensor) for tensor in _tensors(output)) else "silent NaN"


def _finite(tensor: Tensor) -> bool:
    return tensor.is_meta or not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from _tensors(getattr(output, name))


def main() -> None:
    counts: collections.Counter[str] = collections.Counter()
    for name in sys.argv[1:] or families():
        for what, call in calls(name):
            found = outcome(call)
            counts[found.partition(" ")[0] if found.startswith("raw") else found] += 1
            if found not in ("taken", "refused"):
                print(f"{what}: {found}", flush=True)
    print(sum(counts.values()), dict(counts))


if __name__ == "__main__":
    main()
