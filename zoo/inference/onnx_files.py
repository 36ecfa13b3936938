"""A traced program as one ``.onnx`` file: written, checked, and run."""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ExportError

LARGEST = 2 << 30  # bytes of one protobuf file

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Runs a model on inputs by name. -> its results by name."""


def write(program: Any, path: Path, inputs: list[str], outputs: list[str]) -> None:
    """Write the file, its inputs and outputs under these names, and have it checked by onnx."""
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > LARGEST:
        raise ExportError(f"one ONNX file holds 2 GiB at most, these weights are {size:,} bytes; write .pt2 instead")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it tells of packages that no model here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # torch raises of all kinds here
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", _chain(error))
        why = f"it has nothing for {missing[1]}" if missing else _first_line(error)
        raise ExportError(f"torch can't write this model as ONNX: {why}; write .pt2 instead") from error
    finally:
        quiet.setLevel(level)
    _rename(made.model, inputs, outputs)
    made.save(path, external_data=False)
    try:
        onnx.checker.check_model(path, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"onnx's checker refuses the file: {str(error).strip().splitlines()[0]}") from error


def _rename(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Give a graph's inputs and outputs these names, and another to the inner values that had one of
    them: torch calls a value after its operation, which may be what a result is called.
    """
    from onnxscript import ir

    ends = [*model.graph.inputs, *model.graph.outputs]
    names = [*inputs, *outputs]
    inner = [value for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs]
    taken = {*names, *(value.name for value in inner)}
    for value in inner:
        if value.name in names and value not in ends:
            value.name = next(new for n in itertools.count(1) if (new := f"{value.name}_{n}") not in taken)
            taken.add(value.name)
    for value, name in zip(ends, names, strict=True):
        value.name = name


def opened(path: Path, outputs: list[str]) -> tuple[Run | None, str | None]:
    """The file as a function, and what runs it: onnxruntime with its version, or nothing where that
    is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        return None, None
    library = f"onnxruntime {onnxruntime.__version__}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise ExportError(
            f"{library} can't open the file: {_first_line(error)}; it knows float32 best: export model.float()"
        ) from error

    def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            found = session.run(outputs, {name: tensor.numpy() for name, tensor in batch.items()})
        except Exception as error:
            raise ExportError(f"{library} can't run the file: {_first_line(error)}") from error
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return run, library


def _chain(error: BaseException | None) -> str:
    """What an error and those that led to it say."""
    return "" if error is None else f"{error}\n{_chain(error.__cause__)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
