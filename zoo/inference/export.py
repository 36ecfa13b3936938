"""`zoo.export`: a model as one file that runs without zoo: torch.export's ``.pt2``, or
``.onnx``.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, ZooError, missing_extra
from zoo.formats.disk import Target, workspace
from zoo.formats.writer import writing
from zoo.models.base.model import bare_model

FORMATS = (".pt2", ".onnx")
LARGEST_ONNX = 2 << 30  # bytes of one protobuf file


class ExportError(ZooError):
    """A model that can't leave, or that says something else once it has left."""


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
    """The tensors of a result by their fields' names."""
    found: dict[str, Tensor] = {}
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Tensor):
            found[prefix + field.name] = value
        elif is_dataclass(value):
            found |= flat(value, f"{prefix}{field.name}.")
    return found


def example_inputs(model: nn.Module, rows: int = 2, length: int = 16, regions: int = 5) -> dict[str, Tensor]:
    """Inputs that the model takes: random ids, everything real, zeros as segments; what it can do
    without is left out.
    """
    bare = bare_model(model)
    config, generator = bare.config, torch.Generator().manual_seed(0)
    sizes = {"batch": rows, "length": length, "target length": max(length - 1, 1), "regions": regions}
    found = {}
    for row in (bare.input_table[name] for name in bare.inputs):
        if not row.example or not (row.where is None or getattr(config, row.where, False)):
            continue
        shape = [sizes[axis] if axis in sizes else getattr(config, axis.replace(" ", "_")) for axis in row.axes]
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
    packing depends on the data. Before anything is written the exported program has given what the
    model gives, also for another batch. -> ``inputs`` in their order, ``outputs``, ``bytes``.

    A ``.pt2`` is opened with ``torch.export.load(path).module()`` and called with the inputs in
    their order; it gives a dict of tensors. Raises InputError for another ending, ExportError where
    the model can't be traced or the file would be too large.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise InputError(f"the path must end in {' or '.join(FORMATS)}, got {path.name!r}")
    if getattr(model, "prepared", None) is not None:
        raise InputError("this model was prepared by zoo.optimize for this processor; export the original")
    if path.suffix == ".onnx":
        try:
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise missing_extra("writing ONNX", "onnxscript", "onnx") from error
    given = dict(inputs) if inputs is not None else example_inputs(model, rows or 2, length or min(16, _longest(model)))
    was = model.training
    positional = Positional(model, list(given))
    try:
        with torch.no_grad():
            program = _traced(positional.eval(), given, rows, length)
            outputs = _checked(positional, program, given, rows, length)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path), workspace(path) as folder:
                stage = folder / path.name
                _write(program, stage, list(given), outputs)
                os.replace(stage, path)
    finally:
        model.train(was)
    return {"path": str(path), "inputs": list(given), "outputs": outputs, "bytes": path.stat().st_size}


def _traced(positional: Positional, given: Mapping[str, Tensor], rows: int | None, length: int | None) -> Any:
    """The exported program, in which every first axis is the batch and, of texts, the second the
    length.
    """
    static = torch.export.Dim.STATIC
    batch = torch.export.Dim("rows", min=1) if rows is None else static
    dims: dict[str, Any] = {}
    shapes = []
    for name, tensor in given.items():
        second: Any = static
        if tensor.dim() > 1 and not (name in _TEXT and length is not None):
            kind = "length" if name in _TEXT else name.partition("_")[0]  # visual, decoder
            limit = 4096 if kind == "visual" else _longest(positional.model)
            second = dims.setdefault(kind, torch.export.Dim(kind, min=3, max=limit))
        shapes.append({0: batch, **({1: second} if tensor.dim() > 1 else {})})
    try:
        return torch.export.export(positional, tuple(given.values()), dynamic_shapes={"inputs": tuple(shapes)})
    except Exception as error:  # torch raises of all kinds here
        reason = str(error).strip().splitlines()
        raise ExportError(f"torch can't trace this model: {reason[0] if reason else type(error).__name__}") from error


_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "language_ids", "task_type_ids")


def _longest(model: nn.Module) -> int:
    config = bare_model(model).config
    return int(getattr(config, "longest", getattr(config, "max_positions", 512)))


def _checked(
    positional: Positional, program: Any, given: Mapping[str, Tensor], rows: int | None, length: int | None
) -> list[str]:
    """The results' names, once the program has given what the model gives: for the examples and,
    where it may, for other sizes.
    """
    run = program.module()
    batches = [dict(given)]
    if rows is None:
        batches += [{name: tensor[picked] for name, tensor in given.items()} for picked in ([0], [0, 0, 0])]
    if length is None and all(tensor.shape[1] > 3 for name, tensor in given.items() if name in _TEXT):
        batches.append({name: tensor[:, :-1] if name in _TEXT else tensor for name, tensor in given.items()})
    names: list[str] = []
    for batch in batches:
        expected = positional(*batch.values())
        try:
            given_back = run(*batch.values())
        except (RuntimeError, AssertionError) as error:
            raise ExportError(
                f"the exported program takes the examples' sizes alone ({error}); fix them with rows= and length="
            ) from error
        names = list(expected)
        for name, value in expected.items():
            scale = float(value.abs().max()) or 1.0
            if float((value - given_back[name]).abs().max()) > 1e-3 * scale:
                raise ExportError(f"the exported program gives another {name} than the model; nothing was written")
    return names


def _write(program: Any, path: Path, inputs: list[str], outputs: list[str]) -> None:
    if path.suffix == ".pt2":
        with path.open("wb") as file:
            target = Target(file)
            about = json.dumps({"inputs": inputs, "outputs": outputs})
            torch.export.save(program, target, extra_files={"zoo.json": about})  # type: ignore[arg-type]
            target.check()
        return
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise ExportError(f"one ONNX file holds 2 GiB at most, these weights are {size:,} bytes; write .pt2 instead")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it tells of packages that no model here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.onnx.export(
                program,
                f=path,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
