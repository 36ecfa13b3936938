"""A golden case as the adapters see it: what the reference was given, and, apart from that, what it
answered.

An adapter maps ``Case -> {reference output name: value}`` and reads nothing of ``expected``. A
value is a tensor, number, string, or lists and dicts of them as the case stores them; ``Output``
wraps a value that may be compared in part or more loosely, ``Skipped`` says that (and why) a stored
output cannot be reproduced.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# what case.json holds besides answers; `items` and `output` are read by `expected`
DESCRIPTION = frozenset(
    [
        "system",
        "case",
        "kind",
        "source",
        "paper",
        "checkpoint_format",
        "config",
        "call",
        "input",
        "items",
        "output",
        "outputs",
        "notes",
        "tied",
        "tied_in_reference",
        "shapes",
        "head",
        "float_noise",
        "float_noise_per_output",
        "float_noise_real_positions",
        "float_noise_without_padding_positions",
        "reload_check_max_abs",
        "input_rule",
        "weights_rule",
        "state_dict_names",
        "non_tensor_inputs",
        "parameter_count",
        "position_offset",
        "span_length_probs",
    ]
)


GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Case:
    """One folder of ``golden/``: ``inputs`` are the ``input.*`` tensors without that prefix,
    ``data`` is ``io.json``.
    """

    folder: Path
    info: dict[str, Any]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    answers: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        return self.info.get("config") or {}

    @property
    def object(self) -> str:
        """The reference's function or class, as the case names it; several one after another."""
        source = self.info["source"]
        return "; ".join(str(each["object"]) for each in (source if isinstance(source, list) else [source]))

    @property
    def given(self) -> Any:
        """The inputs of a data case: from io.json where it has them, else from case.json."""
        return self.data["input"] if "input" in self.data else self.info.get("input", {})


@dataclass(frozen=True)
class Output:
    """A value that counts only ``where`` True (broadcast over trailing dimensions), or that has its
    own ``tolerance``, for a reason.
    """

    value: Any
    where: Tensor | None = None
    tolerance: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Skipped:
    """A stored output that is not compared, and why."""

    reason: str


Adapter = Callable[[Case], Mapping[str, Any]]


def load_case(folder: Path | str) -> Case:
    folder = Path(folder)
    info = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "io.safetensors") if (folder / "io.safetensors").exists() else {}
    data = json.loads((folder / "io.json").read_text(encoding="utf-8")) if (folder / "io.json").exists() else {}
    weights = load_file(folder / "weights.safetensors") if (folder / "weights.safetensors").exists() else {}
    inputs = {name.removeprefix("input."): tensor for name, tensor in tensors.items() if name.startswith("input.")}
    answers = {name.removeprefix("output."): tensor for name, tensor in tensors.items() if name.startswith("output.")}
    return Case(folder, info, inputs, data, weights, answers)


def golden_cases(*patterns: str) -> list[Path]:
    """The folders of ``tests/golden`` that match ``system/case`` patterns; none for a pattern is an
    error, so that no test runs empty.
    """
    folders = []
    for pattern in patterns:
        found = sorted(folder for folder in GOLDEN.glob(pattern) if (folder / "case.json").exists())
        if not found:
            raise LookupError(f"no golden case matches {pattern!r}")
        folders += found
    return folders


def expected(case: Case) -> dict[str, Any]:
    """What the reference answered, by name, wherever the case keeps it.

    ``output.*`` tensors and the entries of an ``output`` object stand under their own names; a list
    of items (or an ``output`` that is a list) stands under ``items``, in order; other top-level
    entries of case.json that describe nothing are answers too.
    """
    answers: dict[str, Any] = dict(case.answers)
    for stored in (case.data.get("output"), case.info.get("output")):
        if isinstance(stored, dict):
            answers |= stored
        elif stored is not None:
            answers["items"] = stored
    if "items" in case.info:
        named = {name.strip() for names in case.info.get("outputs", {}) for name in names.replace("/", ",").split(",")}
        answers["items"] = [
            item["output"] if "output" in item else {name: value for name, value in item.items() if name in named}
            for item in case.info["items"]
        ]
    return answers | {name: value for name, value in case.info.items() if name not in DESCRIPTION}


def flatten(value: Any, name: str = "", *, lengths: bool = False) -> dict[str, Any]:
    """``{"items": [{"x": [[1, 2]]}]}`` -> ``{"items.0.x": tensor([[1, 2]])}``.

    Leaves are tensors, strings, lists of strings, None, ``Output`` or ``Skipped``; numbers,
    booleans and rectangular lists of them become tensors (float64, int64 or bool). ``lengths`` adds
    ``items.length``, so that a list with entries too many is seen.
    """
    if isinstance(value, Mapping):
        children = value
    elif isinstance(value, list | tuple):
        if value and all(isinstance(v, str) for v in value):
            return {name: list(value)}
        tensor = _as_tensor(value)
        if tensor is not None:
            return {name: tensor}
        children = {str(k): v for k, v in enumerate(value)} | ({"length": len(value)} if lengths else {})
    elif isinstance(value, bool | int | float):
        return {name: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)}
    else:
        return {name: value}
    prefix = f"{name}." if name else ""
    return {
        leaf: v for k, child in children.items() for leaf, v in flatten(child, f"{prefix}{k}", lengths=lengths).items()
    }


def find_adapter(case: Case) -> Adapter:
    """The adapter in ``tests/references/<system>.py`` whose key begins the case name or occurs in the
    reference object.

    Of several the one that stands first there, then the longest.
    """
    system = case.info["system"]
    module = importlib.import_module(f"tests.references.{system.replace('-', '_')}")
    table: dict[str, Adapter] = module.ADAPTERS
    fitting = [key for key in table if key in case.object or case.info["case"].startswith(key)]
    if not fitting:
        raise LookupError(
            f"no adapter of {system!r} fits case {case.info['case']!r} (object {case.object!r}); its keys are "
            f"{sorted(table)}"
        )
    return table[min(fitting, key=lambda key: (case.object.find(key) if key in case.object else 0, -len(key)))]


def _as_tensor(value: list[Any] | tuple[Any, ...]) -> Tensor | None:
    kinds = {type(v) for v in _scalars(value)}
    if not kinds <= {bool, int, float} or (bool in kinds and len(kinds) > 1):
        return None
    try:
        return torch.tensor(value, dtype=torch.float64 if float in kinds else None if kinds else torch.int64)
    except ValueError:  # ragged
        return None


def _scalars(value: Any) -> list[Any]:
    return [s for v in value for s in _scalars(v)] if isinstance(value, list | tuple) else [value]
