"""An interpreter of the pickle opcodes that builds plain data and descriptions of tensors, and
never imports or calls anything.

A pickle is a program for a stack machine. Its opcodes that push numbers, strings and containers are
done as written. Those that would call something are looked up in ``_CALLS``: a few names whose
meaning is known (how torch and numpy describe a tensor, OrderedDict, ...) are done by functions of
this file. Every other object becomes a ``Refused`` node, which records its name, takes what the
pickle then feeds to it (arguments, state, items) as plain data, and does nothing.
"""

from __future__ import annotations

import codecs
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, NoReturn

import numpy as np

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES
from zoo.formats.limits import (
    LONG_VALUE,
    MAX_CONTAINERS,
    MAX_DIMENSIONS,
    MAX_INTEGER_BYTES,
    MAX_MEMO,
    MAX_OPCODES,
    MAX_TEXT,
    printable,
)

# --- nodes: what cannot be a plain Python value


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle mentions; nothing was looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}")


@dataclass(slots=True, eq=False)
class Refused:
    """An object that was not made: its name, how it was asked for, and the plain data that was fed
    to it.
    """

    name: str
    how: str = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    elements: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage: ``count`` elements of ``dtype``, or ``count`` bytes where that is ``None``; a view
    begins at element ``start``.
    """

    key: str
    dtype: str | None
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A tensor inside a storage; offset and strides count elements of ``dtype``."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LongBytes:
    """A byte string left in the file; ``text`` tells that it is stored as UTF-8 of latin-1
    characters.
    """

    data: memoryview
    text: bool = False

    def open(self) -> memoryview:
        return memoryview(bytearray(str(self.data, "utf-8").encode("latin-1"))) if self.text else self.data


@dataclass(slots=True, eq=False)
class NumpyType:
    code: str
    order: str = "="

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(("<" if self.order in "=|<" else ">") + self.code)


@dataclass(slots=True, eq=False)
class ArrayRef:
    """A numpy array: its bytes are ``data``, Fortran order where told so."""

    shape: tuple[int, ...] = (0,)
    dtype: NumpyType | None = None
    fortran: bool = False
    data: bytes | LongBytes = b""


# --- helpers


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _counts(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(is_count(v) for v in value) or len(value) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{what} of a tensor must be a short tuple of non-negative integers, got {printable(repr_short(value))}"
        )
    return tuple(value)


def repr_short(value: object) -> str:
    """A description that never walks into containers."""
    if value is None or isinstance(value, (int, float, str)):
        return repr(value)[:100] if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge integer"
    return (
        f"{type(value).__name__} of length {len(value)}"
        if isinstance(value, (tuple, list, dict, bytes))
        else type(value).__name__
    )


def _plain_key(value: object, depth: int = 0) -> bool:
    """Whether a value may be hashed: flat, not huge (hashing nested tuples recurses, integers can
    be chosen to collide).
    """
    if value is None or type(value) in (str, bytes, bool, float):
        return True
    if type(value) is int:
        return abs(value) < 1 << 60
    return type(value) is tuple and depth < 4 and len(value) <= 64 and all(_plain_key(v, depth + 1) for v in value)


# --- torch

STORAGE_TYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    "QInt8Storage": "I8",
    "QUInt8Storage": "U8",
    "QInt32Storage": "I32",
}
SCALAR_TYPES = {
    "float64": "F64",
    "double": "F64",
    "float32": "F32",
    "float": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "long": "I64",
    "int32": "I32",
    "int": "I32",
    "int16": "I16",
    "short": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "cfloat": "C64",
    "complex128": "C128",
    "cdouble": "C128",
}


def storage_type(kind: object) -> tuple[bool, str | None]:
    """(known, dtype) of the class that a persistent id names; the dtype of an untyped storage is
    ``None``.
    """
    if not isinstance(kind, Global) or kind.module not in ("torch", "torch.cuda", "torch.storage"):
        return False, None
    if kind.name == "UntypedStorage":
        return True, None
    return kind.name in STORAGE_TYPES, STORAGE_TYPES.get(kind.name)


def _view(
    storage: object, offset: object, shape: object, strides: object, dtype: str | None = None, quantization: Any = None
) -> TensorRef:
    if isinstance(storage, Refused):
        raise TypeError  # the tensor is refused with its storage
    if not isinstance(storage, StorageRef):
        raise CheckpointError(f"a tensor was built on {repr_short(storage)} instead of a storage")
    if not is_count(offset):
        raise CheckpointError(
            f"the offset of a tensor must be a non-negative integer, got {printable(repr_short(offset))}"
        )
    sizes, steps = _counts(shape, "the shape"), _counts(strides, "the strides")
    if len(sizes) != len(steps):
        raise CheckpointError(f"a tensor of {len(sizes)} dimensions has {len(steps)} strides")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise CheckpointError("a tensor on an untyped storage does not say its dtype")
    if math.prod(sizes) >= 1 << 62:
        raise CheckpointError(f"a tensor of shape {sizes[:8]} has too many elements")
    start = storage.start * (ITEM_SIZES[storage.dtype] if storage.dtype else 1)
    room = storage.count * (ITEM_SIZES[storage.dtype] if storage.dtype else 1)
    if start % ITEM_SIZES[dtype]:
        raise CheckpointError(f"a view of {dtype} starts at byte {start} of its storage")
    assert isinstance(offset, int)
    if math.prod(sizes):
        last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if (last + 1) * ITEM_SIZES[dtype] > room:
            raise CheckpointError(
                f"a tensor of shape {sizes}, strides {steps}, offset {offset} reaches beyond its storage of {room} "
                "bytes"
            )
    return TensorRef(storage, start // ITEM_SIZES[dtype] + offset, sizes, steps, dtype, quantization)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    return _view(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> TensorRef:
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in SCALAR_TYPES:
        raise CheckpointError(f"a tensor of unknown dtype {printable(repr_short(dtype))}")
    return _view(storage, offset, shape, strides, SCALAR_TYPES[dtype.removeprefix("torch.")])


def _rebuild_quantized(storage: Any, offset: Any, shape: Any, strides: Any, parameters: Any, *_: Any) -> TensorRef:
    """The stored integers; scale and zero point go beside them."""
    details = parameters if isinstance(parameters, tuple) else ()
    names = ("scheme", "scale", "zero_point", "axis")
    return _view(storage, offset, shape, strides, quantization=dict(zip(names, details, strict=False)))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _rebuild_from_numpy(array: Any, *_: Any) -> Any:
    return array


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes of its own, which are not read."""
    call = _CALLS.get((function.module, function.name)) if isinstance(function, Global) else None
    if call is None or call not in _REBUILDERS or not isinstance(arguments, tuple):
        raise TypeError
    return call(*arguments)


def _restore_type_tag(value: Any, _type: Any) -> Any:
    return value


def _device(*arguments: Any) -> str:
    return ":".join(str(a) for a in arguments if isinstance(a, (str, int)))[:100]


def _as_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError
    return value


# --- Python and numpy


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {key: value for key, value in pairs if _plain_key(key)}


def _default_dict(_factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    return _ordered_dict(pairs)


def _sequence(values: Any = ()) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise TypeError
    return list(values)


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(values))


def _set(values: Any = ()) -> set[Any]:
    if not isinstance(values, (list, tuple)):
        raise TypeError
    return {value for value in values if _plain_key(value)}


def _encode(text: Any, encoding: Any = "utf-8", *_: Any) -> bytes | LongBytes:
    if isinstance(text, LongBytes) and text.text and encoding in ("latin1", "latin-1"):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError
    return text.encode(encoding)


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes | LongBytes:
    return text if isinstance(text, bytes) else _encode(text, encoding)


_NUMPY_CODES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))


def _numpy_dtype(code: Any, *_: Any) -> NumpyType | Refused:
    if isinstance(code, Global):
        code = _NUMPY_SCALARS.get(code.name, "")
    if isinstance(code, str) and code[:1] in "<>|=" and code[1:] in _NUMPY_CODES:
        return NumpyType(code[1:], code[0])
    return NumpyType(code) if isinstance(code, str) and code in _NUMPY_CODES else Refused("numpy.dtype", "REDUCE")


_NUMPY_SCALARS = {
    "bool_": "b1", "bool": "b1", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "uint8": "u1", "uint16": "u2", "uint32": "u4",
    "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8", "complex64": "c8", "complex128": "c16",
}  # fmt: skip


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    if isinstance(data, str):
        data = data.encode("utf-8")
    if not isinstance(dtype, NumpyType) or not isinstance(data, bytes):
        raise TypeError
    return np.frombuffer(data, dtype.resolve(), count=1)[0].item()


def _numpy_empty(*_: Any) -> ArrayRef:
    return ArrayRef()


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> ArrayRef:
    array = ArrayRef()
    _set_array(array, (1, shape, dtype, order == "F", data))
    return array


def _set_array(array: ArrayRef, state: Any) -> None:
    """Give an array what numpy pickles: (version, shape, dtype, Fortran order, bytes)."""
    *_, shape, dtype, fortran, data = state if isinstance(state, tuple) and len(state) in (4, 5) else (None,) * 4
    if not isinstance(dtype, NumpyType):
        array.dtype, array.shape = None, (0,)  # an array of objects, strings or records: no tensor
        return
    sizes = _counts(shape, "the shape")
    if isinstance(data, str):
        data = data.encode("utf-8")  # a Python 2 byte string that happened to be valid UTF-8
    if not isinstance(data, (bytes, LongBytes)):
        raise CheckpointError(f"a numpy array holds {repr_short(data)} instead of bytes")
    expected = math.prod(sizes) * dtype.resolve().itemsize
    stored = len(data) if isinstance(data, bytes) else len(data.data)
    exact = isinstance(data, bytes) or not data.text
    if stored != expected if exact else not expected <= stored <= 2 * expected:
        raise CheckpointError(f"a numpy array of shape {sizes} needs {expected} bytes, the file holds {stored}")
    array.shape, array.dtype, array.fortran, array.data = sizes, dtype, bool(fortran), data


def _eval(source: Any, names: Any = None, *_: Any) -> Any:
    """Paddle pickles a tensor as ``eval("data", {"data": array})``; this very call is read as the
    array, any other is refused.
    """
    if (
        source == "data"
        and isinstance(names, dict)
        and set(names) == {"data"}
        and isinstance(names["data"], (ArrayRef, tuple))
    ):
        return names["data"]
    raise TypeError


Call = Callable[..., Any]
_REBUILDERS: frozenset[Call] = frozenset(
    (_rebuild_tensor, _rebuild_tensor_v3, _rebuild_quantized, _rebuild_parameter, _rebuild_from_numpy)
)
_CALLS: dict[tuple[str, str], Call] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._utils", "_rebuild_qtensor"): _rebuild_quantized,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_from_numpy,
    ("torch._utils", "_rebuild_xla_tensor"): _rebuild_from_numpy,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch.serialization", "_get_layout"): _as_text,
    ("torch", "Size"): _tuple,
    ("torch", "device"): _device,
    ("torch.jit._pickle", "restore_type_tag"): _restore_type_tag,
    ("torch.jit._pickle", "build_intlist"): _sequence,
    ("torch.jit._pickle", "build_doublelist"): _sequence,
    ("torch.jit._pickle", "build_boollist"): _sequence,
    ("torch.jit._pickle", "build_tensorlist"): _sequence,
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("collections", "Counter"): _ordered_dict,
    ("collections", "deque"): _sequence,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _numpy_dtype,
}
_PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}
_CALLS |= {
    ("builtins", "list"): _sequence,
    ("builtins", "tuple"): _tuple,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _set,
}
_CALLS |= {("builtins", "dict"): _ordered_dict, ("builtins", "bytes"): _bytes, ("builtins", "eval"): _eval}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _CALLS |= {(_module, "_reconstruct"): _numpy_empty, (_module, "scalar"): _numpy_scalar}
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _CALLS |= {(_module, "_frombuffer"): _numpy_from_buffer}


# --- the machine


@dataclass(frozen=True)
class Unpickled:
    value: Any
    end: int  # where the next pickle of the stream would start
    refused: tuple[Refused, ...]  # everything refused, reachable from the value or not


def unpickle(
    data: memoryview, start: int = 0, *, persistent: Callable[[Any], Any] | None = None, what: str = "the pickle"
) -> Unpickled:
    """Interpret the pickle at ``start``; ``persistent`` turns a persistent id into a node."""
    return _Machine(data, start, persistent, what).run()


class _Machine:
    def __init__(self, data: memoryview, start: int, persistent: Callable[[Any], Any] | None, what: str):
        self.data, self.position, self.end, self.what = data, start, len(data), what
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.containers = 0
        self.refused: list[Refused] = []

    def run(self) -> Unpickled:
        opcodes = 0
        table = {code: MethodType(method, self) for code, method in _OPCODES.items()}
        data, end = self.data, self.end
        while True:
            position = self.position
            if position >= end:
                self.fail("ends before its STOP: the file is truncated")
            code = data[position]
            self.position = position + 1
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.below:
                    self.fail("stops with an unfinished stack")
                return Unpickled(self.stack[0], self.position, tuple(self.refused))
            operation = table.get(code)
            if operation is None:
                self.fail(f"holds the unknown opcode {code:#04x} at byte {position}")
            opcodes += 1
            if opcodes > MAX_OPCODES:
                self.fail(f"has more than {MAX_OPCODES} operations")
            try:
                operation()
            except IndexError:
                self.fail(f"takes more from its stack than is there, at byte {position}")

    def fail(self, why: str) -> NoReturn:
        raise CheckpointError(f"{self.what} {why}")

    # reading

    def take(self, count: int) -> memoryview:
        if count > self.end - self.position:
            self.fail(
                f"announces {count} bytes where {self.end - self.position} are left: the file is truncated or lies"
            )
        start, self.position = self.position, self.position + count
        return self.data[start : start + count]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        size = 256
        while True:
            chunk = bytes(self.data[self.position : self.position + size])
            found = chunk.find(b"\n")
            if found >= 0:
                self.position += found + 1
                return chunk[:found]
            if size > MAX_TEXT or self.position + size >= self.end:
                self.fail("has a line without an end")
            size *= 4

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def contain(self, value: Any) -> Any:
        """Count a container: each takes a hundred bytes of memory for one byte of file."""
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            self.fail(f"makes more than {MAX_CONTAINERS} lists, dicts and objects")
        return value

    def computed(self, value: Any) -> Any:
        """Count what a call made by its size: the same long list may be copied again and again."""
        if isinstance(value, (list, tuple, dict, set)):
            self.containers += len(value) // 8
        elif isinstance(value, (bytes, str)):
            self.containers += len(value) // 64
        return self.contain(value)

    def refuse(self, name: str, how: str = "", arguments: tuple[Any, ...] = ()) -> Refused:
        refused: Refused = self.contain(Refused(name, how, arguments))
        self.refused.append(refused)
        return refused

    def to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    # plain values

    def op_skip(self) -> None:
        self.take(1)

    def op_frame(self) -> None:
        size = self.number(8)
        if size > self.end - self.position:
            self.fail(
                f"announces a frame of {size} bytes where {self.end - self.position} are left: the file is truncated "
                "or lies"
            )

    def op_none(self) -> None:
        self.push(None)

    def op_true(self) -> None:
        self.push(True)

    def op_false(self) -> None:
        self.push(False)

    def op_int_line(self) -> None:
        line = self.line()
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self.decimal(line))

    def op_long_line(self) -> None:
        self.push(self.decimal(self.line().removesuffix(b"L")))

    def decimal(self, line: bytes) -> int:
        if len(line) > MAX_INTEGER_BYTES:
            self.fail(f"holds an integer of {len(line)} digits")
        try:
            return int(line)
        except ValueError:
            self.fail(f"holds {printable(repr(line[:40]))} where an integer should be")

    def op_int4(self) -> None:
        self.push(int.from_bytes(self.take(4), "little", signed=True))

    def op_int1(self) -> None:
        self.push(self.number(1))

    def op_int2(self) -> None:
        self.push(self.number(2))

    def op_long1(self) -> None:
        self.push(int.from_bytes(self.take(self.number(1)), "little", signed=True))

    def op_long4(self) -> None:
        size = self.number(4)
        if size > MAX_INTEGER_BYTES:
            self.fail(f"holds an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def op_float_line(self) -> None:
        try:
            self.push(float(self.line()[:MAX_INTEGER_BYTES]))
        except ValueError:
            self.fail("holds no number where a float should be")

    def op_float(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    def text(self, size: int) -> None:
        raw = self.take(size)
        self.push(LongBytes(raw, text=True) if size > LONG_VALUE else self.decoded(raw))

    def decoded(self, raw: memoryview) -> str:
        try:
            return str(raw, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self.fail("holds a string that is not UTF-8")

    def op_text1(self) -> None:
        self.text(self.number(1))

    def op_text4(self) -> None:
        self.text(self.number(4))

    def op_text8(self) -> None:
        self.text(self.number(8))

    def op_text_line(self) -> None:
        try:
            self.push(codecs.raw_unicode_escape_decode(self.line())[0])
        except UnicodeDecodeError:
            self.fail("holds a string with a broken escape")

    def bytes_(self, size: int) -> None:
        raw = self.take(size)
        self.push(LongBytes(raw) if size > LONG_VALUE else bytes(raw))

    def op_bytes1(self) -> None:
        self.bytes_(self.number(1))

    def op_bytes4(self) -> None:
        self.bytes_(self.number(4))

    def op_bytes8(self) -> None:
        self.bytes_(self.number(8))

    def old_text(self, raw: memoryview) -> None:
        """A string of Python 2: text where it is valid UTF-8, else bytes."""
        if len(raw) > LONG_VALUE:
            self.push(LongBytes(raw))
            return
        try:
            self.push(str(raw, "utf-8"))
        except UnicodeDecodeError:
            self.push(bytes(raw))

    def op_old_text1(self) -> None:
        self.old_text(self.take(self.number(1)))

    def op_old_text4(self) -> None:
        self.old_text(self.take(self.number(4)))

    def op_old_text_line(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            self.fail("holds a string without quotes")
        try:
            self.old_text(memoryview(codecs.escape_decode(line[1:-1])[0]))  # type: ignore[attr-defined]
        except ValueError:
            self.fail("holds a string with a broken escape")

    # containers

    def op_mark(self) -> None:
        self.below.append(self.contain(self.stack))
        self.stack = []

    def op_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def op_pop_mark(self) -> None:
        self.to_mark()

    def op_dup(self) -> None:
        self.push(self.stack[-1])

    def op_empty_list(self) -> None:
        self.push(self.contain([]))

    def op_empty_dict(self) -> None:
        self.push(self.contain({}))

    def op_empty_set(self) -> None:
        self.push(self.contain(set()))

    def op_empty_tuple(self) -> None:
        self.push(())

    def op_list(self) -> None:
        values = self.contain(self.to_mark())
        self.push(values)

    def op_tuple(self) -> None:
        values = tuple(self.contain(self.to_mark()))
        self.push(values)

    def op_tuple1(self) -> None:
        self.stack[-1:] = [self.contain((self.stack[-1],))]

    def op_tuple2(self) -> None:
        self.stack[-2:] = [self.contain((self.stack[-2], self.stack[-1]))]

    def op_tuple3(self) -> None:
        self.stack[-3:] = [self.contain((self.stack[-3], self.stack[-2], self.stack[-1]))]

    def op_dict(self) -> None:
        values = self.to_mark()
        target = self.contain({})
        self.put_items(target, values)
        self.push(target)

    def op_frozenset(self) -> None:
        self.push(self.contain({value for value in self.to_mark() if self.usable(value)}))

    def op_append(self) -> None:
        value = self.stack.pop()
        self.put_elements(self.stack[-1], [value])

    def op_appends(self) -> None:
        values = self.to_mark()
        self.put_elements(self.stack[-1], values)

    def op_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put_items(self.stack[-1], [key, value])

    def op_setitems(self) -> None:
        values = self.to_mark()
        self.put_items(self.stack[-1], values)

    def op_additems(self) -> None:
        values = self.to_mark()
        self.put_elements(self.stack[-1], values)

    def usable(self, key: Any) -> bool:
        if _plain_key(key):
            return True
        self.refuse(f"a key of type {type(key).__name__}" if not isinstance(key, Refused) else f"{key.name} as a key")
        return False

    def put_elements(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(value for value in values if self.usable(value))
        elif isinstance(target, Refused):
            target.elements = [] if target.elements is None else target.elements
            target.elements.extend(values)
        else:
            self.fail(f"appends to {repr_short(target)}")

    def put_items(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Refused):
            target.items = target = {} if target.items is None else target.items
        if not isinstance(target, dict) or len(values) % 2:
            self.fail(f"sets {len(values)} keys and values in {repr_short(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if self.usable(key):
                target[key] = value

    # memo: a dict, so that a huge index costs nothing

    def memoize(self, index: int) -> None:
        if len(self.memo) >= MAX_MEMO and index not in self.memo:
            self.fail(f"stores more than {MAX_MEMO} entries in its memo")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"recalls entry {index} of its memo, which was never stored")
        self.push(self.memo[index])

    def op_memoize(self) -> None:
        self.memoize(len(self.memo))

    def op_put1(self) -> None:
        self.memoize(self.number(1))

    def op_put4(self) -> None:
        self.memoize(self.number(4))

    def op_put_line(self) -> None:
        self.memoize(self.decimal(self.line()))

    def op_get1(self) -> None:
        self.recall(self.number(1))

    def op_get4(self) -> None:
        self.recall(self.number(4))

    def op_get_line(self) -> None:
        self.recall(self.decimal(self.line()))

    # names and calls

    def op_global(self) -> None:
        module, name = self.line(), self.line()
        self.push(self.contain(self.named(module.decode("utf-8", "replace"), name.decode("utf-8", "replace"))))

    def op_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.fail("names a global by something that is no string")
        self.push(self.contain(self.named(module, name)))

    def named(self, module: str, name: str) -> Any:
        module = _PYTHON2_MODULES.get(module, module)
        if module == "torch" and name in SCALAR_TYPES:
            return f"torch.{name}"
        if module == "torch" and name in ("per_tensor_affine", "per_channel_affine", "strided", "contiguous_format"):
            return f"torch.{name}"
        return Global(module, name)

    def op_extension1(self) -> None:
        self.push(self.refuse(f"copyreg extension {self.number(1)}"))

    def op_extension2(self) -> None:
        self.push(self.refuse(f"copyreg extension {self.number(2)}"))

    def op_extension4(self) -> None:
        self.push(self.refuse(f"copyreg extension {self.number(4)}"))

    def call(self, function: Any, arguments: Any, how: str) -> Any:
        if not isinstance(arguments, tuple):
            arguments = (arguments,)
        if isinstance(function, Refused):
            return self.refuse(function.name, how, arguments)
        if not isinstance(function, Global):
            self.fail(f"calls {repr_short(function)}")
        if (function.module, function.name) == ("copyreg", "_reconstructor") and arguments:
            return self.refuse(str(arguments[0]) if isinstance(arguments[0], Global) else "an object")
        known = _CALLS.get((function.module, function.name))
        if known is not None:
            try:
                result = known(*arguments)
            except CheckpointError:
                raise
            except (TypeError, ValueError):  # not the call that this name is known for
                return self.refuse(str(function), how, arguments)
            if isinstance(result, Refused):
                self.refused.append(result)
            return self.computed(result)
        return self.refuse(str(function), how, arguments)

    def op_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        self.push(self.call(function, arguments, "REDUCE"))

    def op_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self.push(self.instance(kind, arguments))

    def op_newobj_ex(self) -> None:
        named, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        made = self.instance(kind, arguments)
        if isinstance(made, Refused) and isinstance(named, dict):
            made.items = named
        self.push(made)

    def instance(self, kind: Any, arguments: Any) -> Any:
        if isinstance(kind, Global) and (kind.module, kind.name) in _CALLS:
            return self.call(kind, arguments, "NEWOBJ")
        return self.refuse(
            kind.name if isinstance(kind, Refused) else str(kind) if isinstance(kind, Global) else repr_short(kind),
            "",
            arguments if isinstance(arguments, tuple) else (),
        )

    def op_inst(self) -> None:
        module, name = self.line(), self.line()
        arguments = tuple(self.to_mark())
        self.push(
            self.instance(self.named(module.decode("utf-8", "replace"), name.decode("utf-8", "replace")), arguments)
        )

    def op_obj(self) -> None:
        kind, *arguments = self.to_mark()
        self.push(self.instance(kind, tuple(arguments)))

    def op_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Refused):
            target.state = state
        elif isinstance(target, ArrayRef):
            _set_array(target, state)
        elif isinstance(target, NumpyType):
            if (
                isinstance(state, tuple)
                and len(state) > 1
                and isinstance(state[1], str)
                and state[1] in ("<", ">", "=", "|")
            ):
                target.order = state[1]
        elif not isinstance(target, (dict, list, set, TensorRef, StorageRef)):  # their attributes are not data of ours
            self.fail(f"sets the state of {repr_short(target)}")

    def persist(self, identity: Any) -> None:
        if self.persistent is None:
            self.push(self.refuse("a persistent id"))
        else:
            self.push(self.contain(self.persistent(identity)))

    def op_persistent(self) -> None:
        self.persist(self.stack.pop())

    def op_persistent_line(self) -> None:
        self.persist(self.line().decode("utf-8", "replace"))


_OPCODES: dict[int, Callable[[_Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": _Machine.op_skip, "\x95": _Machine.op_frame, "N": _Machine.op_none, "\x88": _Machine.op_true, "\x89": _Machine.op_false,
        "I": _Machine.op_int_line, "L": _Machine.op_long_line, "J": _Machine.op_int4, "K": _Machine.op_int1, "M": _Machine.op_int2,
        "\x8a": _Machine.op_long1, "\x8b": _Machine.op_long4, "F": _Machine.op_float_line, "G": _Machine.op_float,
        "\x8c": _Machine.op_text1, "X": _Machine.op_text4, "\x8d": _Machine.op_text8, "V": _Machine.op_text_line,
        "C": _Machine.op_bytes1, "B": _Machine.op_bytes4, "\x8e": _Machine.op_bytes8, "\x96": _Machine.op_bytes8,
        "U": _Machine.op_old_text1, "T": _Machine.op_old_text4, "S": _Machine.op_old_text_line,
        "(": _Machine.op_mark, "0": _Machine.op_pop, "1": _Machine.op_pop_mark, "2": _Machine.op_dup,
        "]": _Machine.op_empty_list, "}": _Machine.op_empty_dict, ")": _Machine.op_empty_tuple, "\x8f": _Machine.op_empty_set,
        "l": _Machine.op_list, "t": _Machine.op_tuple, "\x85": _Machine.op_tuple1, "\x86": _Machine.op_tuple2, "\x87": _Machine.op_tuple3,
        "d": _Machine.op_dict, "\x91": _Machine.op_frozenset, "a": _Machine.op_append, "e": _Machine.op_appends,
        "s": _Machine.op_setitem, "u": _Machine.op_setitems, "\x90": _Machine.op_additems,
        "\x94": _Machine.op_memoize, "q": _Machine.op_put1, "r": _Machine.op_put4, "p": _Machine.op_put_line,
        "h": _Machine.op_get1, "j": _Machine.op_get4, "g": _Machine.op_get_line,
        "c": _Machine.op_global, "\x93": _Machine.op_stack_global, "R": _Machine.op_reduce, "\x81": _Machine.op_newobj,
        "\x92": _Machine.op_newobj_ex, "i": _Machine.op_inst, "o": _Machine.op_obj, "b": _Machine.op_build,
        "Q": _Machine.op_persistent, "P": _Machine.op_persistent_line,
        "\x82": _Machine.op_extension1, "\x83": _Machine.op_extension2, "\x84": _Machine.op_extension4,
    }.items()
}  # fmt: skip
