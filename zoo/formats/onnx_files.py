"""ONNX models: the parameters among the initialisers, under the names and in the layout that the
torch model had.

Exporters keep most names, but fold the weight of a linear layer into an anonymous, transposed
initialiser. Its name is taken from the bias that is added behind it, or from the node that uses it
(``/encoder/layer.0/query/MatMul`` gives ``encoder.layer.0.query.weight``), and it is transposed
back. int8 weights are dequantised, ``(q - zero_point) * scale``, also where rows are picked from a
table first and scaled behind that; integers that no followed node turns into floats are refused.
What is a constant of the graph is listed in ``metadata["onnx"]`` and not shown as a tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.buffers import tensor_at
from zoo.formats.disk import plain_name
from zoo.formats.limits import MAX_DIMENSIONS, is_count, printable
from zoo.formats.protobuf import fields, integers, message, number, signed, text

MAX_NODES = 200_000
MAX_INPUTS = 1_000_000
MAX_TENSORS = 100_000
MAX_INTEGERS = 1 << 26
DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2",
}  # fmt: skip
FIXED_FIELDS = {4: "F32", 10: "F64"}  # lists of floats are stored as they are in memory; lists of integers are not
INTEGER_FIELDS = (5, 7, 11)
QUANTIZED = ("I8", "U8", "I32")
PRODUCTS = ("MatMul", "MatMulInteger", "Gemm")
PASSED = ("Cast", "Mul", "QuantizeLinear", "DequantizeLinear")  # between a product and its bias in a quantised graph
MOVES = ("Gather", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast")  # leave the numbers of a picked row alone

Load = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class _Node:
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, int]  # integer attributes
    value: _Value | None = None  # of a node "Constant"


@dataclass(frozen=True)
class _Value:
    """A stored tensor, or one computed from stored ones: ``name`` is the stored one's."""

    name: str
    info: TensorInfo
    load: Load
    dequantized: bool = False


@dataclass
class _Graph:
    nodes: list[_Node] = field(default_factory=list)
    values: dict[str, _Value] = field(default_factory=dict)

    def constants(self) -> dict[str, _Value]:
        """The values that stand in nodes and not among the initialisers."""
        return {node.outputs[0]: node.value for node in self.nodes if node.value is not None and node.outputs}


def is_onnx(data: memoryview) -> bool:
    """A message whose first field is a small version number and which holds a graph."""
    if len(data) < 16 or data[0] != 0x08 or not 1 <= data[1] <= 64:
        return False
    try:
        for count, (tag, value) in enumerate(fields(data)):
            if tag == 7:
                return not isinstance(value, int)
            if count > 32 or tag > 30:
                return False
    except CheckpointError:
        return False
    return False


def read(path: Path, data: memoryview, beside: Callable[[str], memoryview | None]) -> Archive:
    graph = _Graph()
    refused: list[str] = []
    external: dict[str, memoryview] = {}
    for tag, value in fields(data):
        if tag == 7:
            _read_graph(path, message(value), graph, refused, beside, external)
    stored = dict(graph.values)
    helpers = _derive(graph)
    users: dict[str, list[_Node]] = defaultdict(list)
    for node in graph.nodes:
        for name in node.inputs:
            users[name].append(node)
    entries: dict[str, Entry] = {}
    constants: list[str] = []
    recovered: dict[str, str] = {}
    dequantized: list[str] = []
    made: dict[str, tuple[str, bool]] = {}
    sources = {
        derived.name for name, derived in graph.values.items() if name not in stored or derived is not stored[name]
    }
    root = _root(graph)
    for name, found in graph.values.items():
        if name in helpers or (found.name in sources and not found.dequantized):
            continue  # a scale or zero point, or integers that a derived value shows
        final, turned = _named(name, found, users, graph, root)
        if final is not None and found.info.dtype in ("I8", "U8") and len(found.info.shape) > 1 and users[name]:
            raise CheckpointError(
                f"{path}: the quantised weights {printable(found.name)!r} go into {printable(users[name][0].op)!r}, "
                "and no scale was found that makes them floats again; export the model in float"
            )
        if final is None:
            constants.append(printable(name))
            continue
        if final in entries and made[final] == (found.name, turned):
            continue  # one table that two nodes make floats of
        if final in entries:
            raise CheckpointError(
                f"{path}: two tensors would be called {final!r}, the second is initialiser {printable(found.name)!r}"
            )
        made[final] = (found.name, turned)
        shape = found.info.shape[::-1] if turned else found.info.shape
        entries[final] = Entry(
            TensorInfo(final, shape, found.info.dtype), _turned(found.load) if turned else found.load
        )
        if final != found.name:
            recovered[final] = printable(found.name)
        if found.dequantized:
            dequantized.append(final)
    metadata: dict[str, Any] = {"onnx": {"renamed": recovered, "dequantized": dequantized, "constants": constants}}
    return Archive(
        path,
        "onnx",
        entries,
        metadata=metadata,
        refused=refused,
        files=(path, *(path.with_name(name) for name in external)),
    )


def _turned(load: Load) -> Load:
    return lambda: load().t().clone(memory_format=torch.contiguous_format)


def _root(graph: _Graph) -> str:
    """What node paths have in front of the kept names: the exporter's wrapper module, or
    nothing.
    """
    for node in graph.nodes:
        for name in node.inputs:
            plain = _plain(name) if name in graph.values else None
            path = ".".join(part for part in node.name.split("/")[:-1] if part)
            if plain is not None and path.endswith(module := plain.rpartition(".")[0]):
                return path.removesuffix(module)
    return ""


def _named(
    name: str, value: _Value, users: dict[str, list[_Node]], graph: _Graph, root: str
) -> tuple[str | None, bool]:
    """The torch name of a value and whether it lies transposed; ``None`` for a constant of the
    graph.
    """
    for node in users[name]:
        if node.op not in PRODUCTS or len(node.inputs) < 2 or node.inputs[1] != name or len(value.info.shape) != 2:
            continue
        if node.op == "Gemm":
            turned = not node.numbers.get("transB")
            final = _plain(value.name) or _bias_name(node, users, graph) or _path_name(node, root)
        else:
            turned, final = True, _bias_name(node, users, graph) or _path_name(node, root)
        if final:
            return final, turned
    plain = _plain(value.name)
    if plain is not None:
        return plain, False
    weight = len(value.info.shape) > 1 and value.info.dtype in ("F32", "F16", "BF16", "F64")
    return (printable(value.name), False) if weight else (None, False)


def _plain(name: str) -> str | None:
    """The name of a parameter that the exporter kept."""
    name = name.removesuffix("_quantized").removesuffix("_q")
    return name if "." in name and "/" not in name and "::" not in name and name.isprintable() else None


def _path_name(node: _Node, root: str) -> str | None:
    path, _, op = node.name.rpartition("/")
    if not path.startswith("/") or not op.startswith(PRODUCTS) or not path.isprintable():
        return None
    return ".".join(part for part in path.split("/") if part).removeprefix(root) + ".weight"


def _bias_name(node: _Node, users: dict[str, list[_Node]], graph: _Graph) -> str | None:
    """From the bias that is added to the product, perhaps after it was scaled; ``Gemm`` adds it
    itself.
    """
    biases = list(node.inputs[2:3]) if node.op == "Gemm" else []
    outputs = list(node.outputs)
    for _ in range(4):
        behind = [user for output in outputs for user in users[output]]
        biases += [name for user in behind if user.op == "Add" for name in user.inputs]
        for name in biases:
            if name in graph.values and (plain := _plain(graph.values[name].name)) and plain.endswith(".bias"):
                return plain.removesuffix("bias") + "weight"
        outputs = [output for user in behind if user.op in PASSED for output in user.outputs][:8]
    return None


def _derive(graph: _Graph) -> set[str]:
    """Add the values that nodes compute from quantised initialisers; returns the names of scales
    and zero points.
    """
    helpers: set[str] = set()
    casts: dict[str, _Value] = {}
    picked: dict[str, str] = {}  # what shows rows of a table of integers -> the table's name
    stored, constants = dict(graph.values), graph.constants()
    for node in graph.nodes:
        known = [stored.get(name) or constants.get(name) or graph.values.get(name) for name in node.inputs]
        first, out = node.inputs[0] if node.inputs else "", node.outputs[0] if node.outputs else ""
        if node.op in MOVES and first in picked:
            picked[out] = picked[first]
        elif node.op == "Gather" and node.numbers.get("axis", 0) == 0 and first in stored and _quantized(stored[first]):
            picked[out] = first
        elif node.op == "Cast" and known and (source := known[0]) is not None and source.info.dtype in QUANTIZED:
            casts[out] = source
        elif node.op == "Mul" and len(known) == 2 and out:
            for scale, named, other in (
                (known[1], node.inputs[1], node.inputs[0]),
                (known[0], node.inputs[0], node.inputs[1]),
            ):
                if scale is not None and other in casts:
                    graph.values[out] = _dequantize(casts[other], scale, None, None)
                    helpers.add(named)
                elif scale is not None and other in picked:
                    graph.values[picked[other]] = _dequantize_rows(stored[picked[other]], scale, None)
                    helpers.add(named)
        elif node.op in ("DequantizeLinear", "QuantizeLinear") and len(known) >= 2:
            helpers.update(name for name in node.inputs[1:3] if name in stored)
            scale, zero = known[1], known[2] if len(known) > 2 else None
            if node.op == "DequantizeLinear" and scale is not None and out:
                if first in picked:
                    graph.values[picked[first]] = _dequantize_rows(stored[picked[first]], scale, zero)
                elif (source := known[0]) is not None:
                    graph.values[out] = _dequantize(source, scale, zero, node.numbers.get("axis", 1))
        elif node.op == "MatMulInteger" and len(known) > 1 and (source := known[1]) is not None:
            base = source.name.removesuffix("_quantized")
            scale, zero = graph.values.get(base + "_scale"), graph.values.get(base + "_zero_point")
            if scale is not None and base != source.name:
                graph.values[node.inputs[1]] = _dequantize(source, scale, zero, 1)
                helpers |= {base + "_scale", base + "_zero_point"}
    return helpers


def _quantized(value: _Value | None) -> bool:
    return value is not None and value.info.dtype in ("I8", "U8") and len(value.info.shape) > 1


def _dequantize_rows(table: _Value, scale: _Value, zero: _Value | None) -> _Value:
    """A table whose rows are scaled behind the node that picks them: several scales belong to its
    width.
    """
    shape, count = table.info.shape, scale.info.numel
    fitting = [axis for axis in range(1, len(shape)) if count in (1, shape[axis])]
    if not fitting or (count != 1 and (len(fitting) > 1 or len(scale.info.shape) != 1)):
        raise CheckpointError(
            f"the scale {printable(scale.name)!r} of shape {scale.info.shape[:8]} does not fit the rows of "
            f"{printable(table.name)!r}, whose shape is {shape[:8]}"
        )
    return _dequantize(table, scale, zero, fitting[0])


def _dequantize(source: _Value, scale: _Value, zero: _Value | None, axis: int | None) -> _Value:
    shape, rank = source.info.shape, len(source.info.shape)
    extra = [value for value in (scale, zero) if value is not None]
    for value in extra:
        sizes = value.info.shape
        if len(sizes) == 1 and axis is not None and rank:
            fits = sizes[0] in (1, shape[axis % rank])
        else:
            fits = len(sizes) <= rank and all(s in (1, full) for s, full in zip(sizes[::-1], shape[::-1], strict=False))
        if not fits:
            raise CheckpointError(
                f"the scale {printable(value.name)!r} of shape {sizes[:8]} does not fit {printable(source.name)!r}"
            )

    def spread(value: _Value) -> torch.Tensor:
        loaded = value.load().to(torch.float32)
        if loaded.dim() == 1 and axis is not None and rank:
            return loaded.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
        return loaded

    def load() -> torch.Tensor:
        integers = source.load().to(torch.float32)
        return ((integers if zero is None else integers - spread(zero)) * spread(scale)).reshape(shape)

    return _Value(source.name, TensorInfo(source.name, shape, "F32"), load, dequantized=True)


# --- the messages


def _read_graph(
    path: Path,
    data: memoryview,
    graph: _Graph,
    refused: list[str],
    beside: Callable[[str], memoryview | None],
    external: dict[str, memoryview],
) -> None:
    inputs = 0
    for tag, value in fields(data):
        if tag == 1:
            node = _read_node(path, message(value))
            inputs += len(node.inputs) + len(node.outputs)
            if len(graph.nodes) >= MAX_NODES or inputs > MAX_INPUTS:
                raise CheckpointError(f"{path} holds a graph of more than {MAX_NODES} nodes or {MAX_INPUTS} edges")
            graph.nodes.append(node)
        elif tag == 5:
            found = _read_tensor(path, message(value), beside, external)
            if isinstance(found, str):
                refused.append(found)
            elif found.name in graph.values or len(graph.values) >= MAX_TENSORS:
                raise CheckpointError(
                    f"{path} holds the initialiser {printable(found.name)!r} twice, or more than {MAX_TENSORS} of them"
                )
            else:
                graph.values[found.name] = found


def _read_node(path: Path, data: memoryview) -> _Node:
    inputs, outputs, name, op, numbers = list[str](), list[str](), "", "", dict[str, int]()
    constant: _Value | None = None
    for tag, value in fields(data):
        if tag == 1:
            inputs.append(text(value))
        elif tag == 2:
            outputs.append(text(value))
        elif tag == 3:
            name = text(value)
        elif tag == 4:
            op = text(value)
        elif tag == 5:
            attribute = dict(fields(message(value)))
            if 1 in attribute and 3 in attribute:
                numbers[text(attribute[1])] = signed(number(attribute[3]))
            if op == "Constant" and 5 in attribute:
                found = _read_tensor(path, message(attribute[5]), lambda file: None, {})
                constant = None if isinstance(found, str) else found
    return _Node(op, name, tuple(inputs), tuple(outputs), numbers, constant)


def _read_tensor(
    path: Path, data: memoryview, beside: Callable[[str], memoryview | None], external: dict[str, memoryview]
) -> _Value | str:
    shape, kind, name = list[int](), 0, ""
    raw: memoryview | None = None
    lists: list[tuple[int, int | memoryview]] = []
    outside, location = False, dict[str, str]()
    for tag, value in fields(data):
        if tag == 1:
            shape += integers(value, MAX_DIMENSIONS)
        elif tag == 2:
            kind = number(value)
        elif tag == 8:
            name = text(value)
        elif tag == 9:
            raw = message(value)
        elif tag in FIXED_FIELDS or tag in INTEGER_FIELDS:
            if len(lists) >= MAX_DIMENSIONS:
                raise CheckpointError(
                    f"{path}: an initialiser stores its numbers one by one, unpacked; export the model again"
                )
            lists.append((tag, value))
        elif tag == 13:
            pair = dict(fields(message(value)))
            location[text(pair.get(1, 0))] = text(pair.get(2, 0))
        elif tag == 14:
            outside = number(value) == 1
    what = f"{path}: initialiser {printable(name)!r}"
    if kind not in DTYPES:
        return f"an initialiser of type {kind} at {printable(name)}"
    if len(shape) > MAX_DIMENSIONS or not all(is_count(size) for size in shape):
        raise CheckpointError(f"{what} has the shape {shape[:8]}")
    info = TensorInfo(name, tuple(shape), DTYPES[kind])
    if outside:
        raw = _outside(path, what, location, beside, external, info)
    if raw is not None:
        if len(raw) != info.nbytes:
            raise CheckpointError(
                f"{what} of {info.dtype} {info.shape} needs {info.nbytes} bytes, the file holds {len(raw)}"
            )
        found = raw
        return _Value(name, info, lambda: tensor_at(found, 0, info.dtype, info.shape))
    stored = sum(1 if isinstance(value, int) else len(value) for _, value in lists)  # at least a byte for each number
    if info.numel > stored:
        raise CheckpointError(f"{what} of shape {info.shape} holds at most {stored} numbers")
    return _Value(name, info, lambda: _from_lists(what, info, lists))


def _outside(
    path: Path,
    what: str,
    location: dict[str, str],
    beside: Callable[[str], memoryview | None],
    external: dict[str, memoryview],
    info: TensorInfo,
) -> memoryview:
    file = plain_name(location.get("location", ""), path)
    if file not in external:
        found = beside(file)
        if found is None:
            raise CheckpointError(f"{what} lies in the file {file!r} beside the model, which is missing")
        external[file] = found
    offset, length = location.get("offset", "0"), location.get("length", str(info.nbytes))
    if not (
        offset.isascii()
        and offset.isdigit()
        and length.isascii()
        and length.isdigit()
        and len(offset) < 20
        and len(length) < 20
    ):
        raise CheckpointError(f"{what} says that it lies at {printable(offset)!r}, {printable(length)!r} bytes")
    if int(offset) + int(length) > len(external[file]):
        raise CheckpointError(f"{what} reaches beyond the end of {file!r}: it is truncated")
    return external[file][int(offset) : int(offset) + int(length)]


def _from_lists(what: str, info: TensorInfo, lists: list[tuple[int, int | memoryview]]) -> torch.Tensor:
    """The numbers of the typed fields: floats as in memory, everything else as variable-length
    integers.
    """
    if all(tag in FIXED_FIELDS for tag, _ in lists):
        raw = bytearray(
            b"".join(
                value.to_bytes(ITEM_SIZES[FIXED_FIELDS[tag]], "little") if isinstance(value, int) else value
                for tag, value in lists
            )
        )
        stored = FIXED_FIELDS[lists[0][0]] if lists else "F32"
        if info.dtype not in (stored, {"F32": "C64", "F64": "C128"}[stored]) or len(raw) != info.nbytes:
            raise CheckpointError(f"{what} of {info.dtype} {info.shape} holds {len(raw)} bytes of {stored}")
        return tensor_at(memoryview(raw), 0, info.dtype, info.shape)
    numbers: list[int] = []
    for tag, value in lists:
        if tag in FIXED_FIELDS:
            raise CheckpointError(f"{what} mixes integers and floats")
        numbers += integers(value, MAX_INTEGERS)
    if len(numbers) != info.numel:
        raise CheckpointError(f"{what} of shape {info.shape} holds {len(numbers)} numbers")
    size = ITEM_SIZES[info.dtype]
    words = np.array([n & ((1 << (8 * size)) - 1) for n in numbers], dtype=f"<u{size}")
    return tensor_at(memoryview(bytearray(words.tobytes())), 0, info.dtype, info.shape)
