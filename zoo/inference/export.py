"""`zoo.export`: a model as one file that runs without zoo: torch.export's ``.pt2``, or
``.onnx``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ExportError, InputError, missing_extra
from zoo.formats.disk import Sink, workspace, writing
from zoo.inference import onnx_files
from zoo.models.base.model import bare_model

FORMATS = (".pt2", ".onnx")
TOLERANCE = 1e-3  # of a result's largest value: how far the file may be from the model
STEPS = 8  # of the result's dtype, where these are more

Case = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Inputs by name, and what the model gives for them."""


class Positional(nn.Module):
    """A model whose inputs come by position, in the order of ``names``, and whose results are a
    dict of tensors.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """-> each tensor of the result by its field; of a part by both names with a dot between,
        ``text.last_hidden_state``.
        """
        return flat(self.model(**dict(zip(self.names, inputs, strict=True))))


def flat(result: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a result by their fields' names, and of a dict by its keys."""
    found: dict[str, Tensor] = {}
    parts = (
        result if isinstance(result, Mapping) else {item.name: getattr(result, item.name) for item in fields(result)}
    )
    for name, value in parts.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif is_dataclass(value) or isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
    return found


def example_inputs(model: nn.Module, rows: int = 2, length: int = 16, regions: int = 5) -> dict[str, Tensor]:
    """Inputs that the model takes: random ids, everything real, zeros as segments; what it can do
    without is left out, and the segments of a model that has one.
    """
    bare = bare_model(model)
    config, generator = bare.config, torch.Generator().manual_seed(0)
    sizes = {"batch": rows, "length": length, "target length": max(length - 1, 1), "regions": regions}
    repeated, number = getattr(model, "several", None) or ("", 0)
    found = {}
    for row in (bare.input_table[name] for name in bare.inputs):
        if not row.example or not _has(config, row.where):
            continue
        shape = [sizes[axis] if axis in sizes else getattr(config, axis.replace(" ", "_")) for axis in row.axes]
        if repeated in row.axes:
            shape.insert(1, number)
        if row.example == "ids":
            ids = torch.randint(0, config.vocab_size, shape, generator=generator)
            if getattr(config, "pad_token_id", None) is not None:
                ids[ids == config.pad_token_id] = (config.pad_token_id + 1) % config.vocab_size
            found[row.name] = ids
        elif row.example == "random":
            found[row.name] = torch.rand(shape, generator=generator, dtype=bare.dtype)
        else:
            found[row.name] = torch.full(shape, int(row.example))
    return found


def _has(config: Any, field: str | None) -> bool:
    """Whether a config has what a field names: it is true, or there are several."""
    value = field is None or getattr(config, field, False)
    return value is True or (value or 0) > 1


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Mapping[str, Tensor] | None = None,
    *,
    rows: int | None = None,
    length: int | None = None,
) -> dict[str, Any]:
    """Write a model in eval mode as one file: by the path's ending torch.export's ``.pt2`` or
    ``.onnx`` (extra "onnx"). The file is whole or not there.

    inputs: examples by name, which fix what the file reads; None = what `example_inputs` makes.
    rows, length: fix the batch and the text's length; None = any. Padding is computed, since
    packing depends on the data.

    Before the file takes its name it has been opened and has given what the model gives, for
    several sizes of the batch: a ``.pt2`` in torch, an ``.onnx``, once onnx's checker has passed
    it, in onnxruntime where that is installed. Returns ``inputs`` in their order, ``outputs``,
    ``bytes``, ``ran_in`` (the library with its version; None where the file was not run) and
    ``difference``, the largest one that was found, as a part of the result's largest value.

    A ``.pt2`` is opened with ``torch.export.load(path).module()`` and called with the inputs in
    their order; it gives a dict of tensors. Raises InputError for another ending, ExportError where
    the model can't be traced, the file would be too large, or gives something else.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise InputError(f"the path must end in {' or '.join(FORMATS)}, got {path.name!r}")
    if getattr(model, "prepared", None) is not None:
        raise InputError("this model was prepared by zoo.optimize for this processor; export the original")
    if path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise missing_extra("writing ONNX", "onnxscript", "onnx") from error
    given = dict(inputs) if inputs is not None else example_inputs(model, rows or 2, length or min(16, _longest(model)))
    was = model.training
    positional = Positional(model, list(given))
    try:
        with torch.no_grad():
            program = _traced(positional.eval(), given, rows, length)
            cases = _cases(positional, given, rows, length)
            outputs = list(cases[0][1])
            difference = _compared(cases, _in_torch(program), "the exported program")
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path), workspace(path) as folder:
                stage = folder / path.name
                _write(program, stage, list(given), outputs)
                run, ran_in = _opened(stage, outputs)
                if run is not None:
                    difference = max(difference, _compared(cases, run, f"the file, in {ran_in},"))
                os.replace(stage, path)
    finally:
        model.train(was)
    return {
        "path": str(path),
        "inputs": list(given),
        "outputs": outputs,
        "bytes": path.stat().st_size,
        "ran_in": ran_in,
        "difference": difference,
    }


def _traced(positional: Positional, given: Mapping[str, Tensor], rows: int | None, length: int | None) -> Any:
    """The exported program, in which the axes of `_axes` may have any size that is not fixed."""
    longest = _longest(positional.model)
    dims: dict[str | None, Any] = {
        None: torch.export.Dim.STATIC,
        "batch": torch.export.Dim("rows", min=1),
        "several": torch.export.Dim.AUTO,  # choices may be more or fewer, pictures of a pair may not
    }
    shapes = []
    for name, tensor in given.items():
        axes = _axes(positional.model, name, tensor, rows, length)
        for axis in axes:
            if axis not in dims:
                most = _MOST.get(axis or "", longest)
                dims[axis] = torch.export.Dim((axis or "").replace(" ", "_").replace("-", "_"), min=3, max=most)
        shapes.append({place: dims[axis] for place, axis in enumerate(axes)})
    try:
        return torch.export.export(positional, tuple(given.values()), dynamic_shapes={"inputs": tuple(shapes)})
    except Exception as error:  # torch raises of all kinds here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        violated = re.match(r"Constraints violated \((.+?)\)", reason)
        if violated:
            reason = f"it works with the examples' {violated[1]} alone; fix them with rows= and length="
        raise ExportError(f"torch can't trace this model: {reason}") from error


_MOST = {"regions": 4096, "n-grams": 4096}  # where it is not the number of positions


def _axes(model: nn.Module, name: str, tensor: Tensor, rows: int | None, length: int | None) -> list[str | None]:
    """Of each axis of an input what it runs along, None where its size is fixed: the batch, what has
    a mask (texts, regions, n-grams), and "several" for the choices of a row.
    """
    table = bare_model(model).input_table
    row = table.get(name)
    axes = list(row.axes) if row is not None else ["batch", name][: tensor.dim()]
    if tensor.dim() > len(axes) > 1:
        axes.insert(1, "several" if getattr(model, "several", None) else axes[1])  # or a matrix of who sees whom
    fixed = {"batch": rows is not None, "length": length is not None}
    known = ("batch", "several", *(() if row is not None else (name,)))
    return [axis if (axis in known or table.mask(axis)) and not fixed.get(axis) else None for axis in axes]


def _longest(model: nn.Module) -> int:
    config = bare_model(model).config
    return int(getattr(config, "longest", getattr(config, "max_positions", 512)))


def _cases(positional: Positional, given: Mapping[str, Tensor], rows: int | None, length: int | None) -> list[Case]:
    """What the model gives for the examples, and for other sizes of each axis that may vary."""
    axes = {name: _axes(positional.model, name, tensor, rows, length) for name, tensor in given.items()}
    batches = [dict(given)]
    if rows is None:
        batches += [{name: tensor[picked] for name, tensor in given.items()} for picked in ([0], [0, 0, 0])]
    shorter = {name: _shortened(tensor, axes[name]) for name, tensor in given.items()}
    if any(shorter[name].shape != tensor.shape for name, tensor in given.items()):
        batches.append(shorter)
    cases = [(batch, positional(*batch.values())) for batch in batches]
    for _, expected in cases:
        for name, value in expected.items():
            if not value.isfinite().all():
                raise ExportError(f"the model gives NaN or infinity in {name} for the examples; give others as inputs=")
    return cases


def _shortened(tensor: Tensor, axes: Sequence[str | None]) -> Tensor:
    """The input with one place fewer along each axis that may vary and is longer than three."""
    for place, axis in enumerate(axes):
        if axis not in (None, "batch") and tensor.shape[place] > 3:
            tensor = tensor.narrow(place, 0, tensor.shape[place] - 1)
    return tensor


def _compared(cases: Sequence[Case], run: onnx_files.Run, which: str) -> float:
    """The largest difference between what the model and what its copy gives, as a part of the
    result's largest value. Raises ExportError where that is above the tolerance, or not a number.
    """
    largest = 0.0
    for batch, expected in cases:
        found = run(batch)
        for name, value in expected.items():
            scale = float(value.abs().max()) or 1.0
            difference = float((value.float() - found[name].float()).abs().max()) / scale
            if not difference <= max(TOLERANCE, STEPS * torch.finfo(value.dtype).eps):
                raise ExportError(
                    f"{which} gives another {name} than the model, by {difference:.1e} of its largest value; nothing "
                    "was written"
                )
            largest = max(largest, difference)
    return largest


def _in_torch(program: Any) -> onnx_files.Run:
    run: Callable[..., dict[str, Tensor]] = program.module()

    def by_name(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return run(*batch.values())
        except (RuntimeError, AssertionError) as error:
            raise ExportError(
                f"the exported program takes the examples' sizes alone ({error}); fix them with rows= and length="
            ) from error

    return by_name


def _write(program: Any, path: Path, inputs: list[str], outputs: list[str]) -> None:
    if path.suffix == ".onnx":
        onnx_files.write(program, path, inputs, outputs)
        return
    about = json.dumps({"inputs": inputs, "outputs": outputs})
    with path.open("wb") as file:
        sink = Sink(file)
        torch.export.save(program, sink, extra_files={"zoo.json": about})  # type: ignore[arg-type]
        sink.check()


def _opened(path: Path, outputs: list[str]) -> tuple[onnx_files.Run | None, str | None]:
    """The written file as a function, and the library that runs it; None where it is not installed."""
    if path.suffix == ".onnx":
        return onnx_files.opened(path, outputs)
    return _in_torch(torch.export.load(path)), f"torch {torch.__version__}"
