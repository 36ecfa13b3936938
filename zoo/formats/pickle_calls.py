"""The calls in a pickle whose meaning is known: how torch, numpy and Paddle describe a tensor, and
Python's containers.

Each function here stands in for one that the pickle names; nothing of that name is looked up.
A function that is not asked as it should be raises TypeError or ValueError, and the call is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES
from zoo.formats.limits import MAX_DIMENSIONS, is_count, printable, repr_short
from zoo.formats.nodes import ArrayRef, Global, LongBytes, NumpyType, Refused, StorageRef, TensorRef

Call = Callable[..., Any]
CALLS: dict[tuple[str, str], Call] = {}


def _known(*names: str) -> Callable[[Call], Call]:
    """Enter a function under the names it stands in for."""

    def enter(function: Call) -> Call:
        for name in names:
            module, _, last = name.rpartition(".")
            CALLS[module, last] = function
        return function

    return enter


def hashable(value: object) -> bool:
    """Whether a value may be a key: plain and not huge, or a short flat tuple of such (hashing nested
    tuples recurses, integers can be chosen to collide).
    """
    if value is None or type(value) in (str, bytes, bool, float):
        return True
    if type(value) is int:
        return abs(value) < 1 << 60
    return type(value) is tuple and len(value) <= 64 and all(type(v) is not tuple and hashable(v) for v in value)


def _counts(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(is_count(v) for v in value) or len(value) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{what} of a tensor must be a short tuple of non-negative integers, got {printable(repr_short(value))}"
        )
    return tuple(value)


# --- torch

STORAGE_TYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
    "QInt8Storage": "I8", "QUInt8Storage": "U8", "QInt32Storage": "I32",
}  # fmt: skip
SCALAR_TYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16",
    "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "cfloat": "C64", "complex128": "C128", "cdouble": "C128",
}  # fmt: skip


def storage_type(kind: object) -> tuple[bool, str | None]:
    """(known, dtype) of the class that a persistent id names; the dtype of an untyped storage is
    ``None``.
    """
    if not isinstance(kind, Global) or kind.module not in ("torch", "torch.cuda", "torch.storage"):
        return False, None
    return kind.name == "UntypedStorage" or kind.name in STORAGE_TYPES, STORAGE_TYPES.get(kind.name)


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
    unit = ITEM_SIZES[storage.dtype] if storage.dtype else 1
    start, room = storage.start * unit, storage.count * unit
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


@_known("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    return _view(storage, offset, shape, strides)


@_known("torch._utils._rebuild_tensor_v3")
def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> TensorRef:
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in SCALAR_TYPES:
        raise CheckpointError(f"a tensor of unknown dtype {printable(repr_short(dtype))}")
    return _view(storage, offset, shape, strides, SCALAR_TYPES[dtype.removeprefix("torch.")])


@_known("torch._utils._rebuild_qtensor")
def _rebuild_quantized(storage: Any, offset: Any, shape: Any, strides: Any, parameters: Any, *_: Any) -> TensorRef:
    """The stored integers; scale and zero point go beside them."""
    details = parameters if isinstance(parameters, tuple) else ()
    names = ("scheme", "scale", "zero_point", "axis")
    return _view(storage, offset, shape, strides, quantization=dict(zip(names, details, strict=False)))


@_known("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
@_known("torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_xla_tensor")
def _rebuild_as_it_is(tensor: Any, *_: Any) -> Any:
    return tensor


_REBUILDERS = (_rebuild_tensor, _rebuild_tensor_v3, _rebuild_quantized, _rebuild_as_it_is)


@_known("torch._tensor._rebuild_from_type_v2")
def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes of its own, which are not read."""
    call = CALLS.get((function.module, function.name)) if isinstance(function, Global) else None
    if call is None or call not in _REBUILDERS or not isinstance(arguments, tuple):
        raise TypeError
    return call(*arguments)


@_known("torch.jit._pickle.restore_type_tag")
def _restore_type_tag(value: Any, _type: Any) -> Any:
    return value


@_known("torch.device")
def _device(*arguments: Any) -> str:
    return ":".join(str(a) for a in arguments if isinstance(a, (str, int)))[:100]


@_known("torch.serialization._get_layout")
def _as_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError
    return value


# --- Python and numpy


@_known("collections.OrderedDict", "collections.Counter", "builtins.dict")
def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {key: value for key, value in pairs if hashable(key) and type(key) is not tuple}


@_known("collections.defaultdict")
def _default_dict(_factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    return _ordered_dict(pairs)


@_known("builtins.list", "collections.deque")
@_known(*(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")))
def _sequence(values: Any = ()) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise TypeError
    return list(values)


@_known("builtins.tuple", "torch.Size")
def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(values))


@_known("builtins.set", "builtins.frozenset")
def _set(values: Any = ()) -> set[Any]:
    return {value for value in _sequence(values) if hashable(value) and type(value) is not tuple}


@_known("_codecs.encode")
def _encode(text: Any, encoding: Any = "utf-8", *_: Any) -> bytes | LongBytes:
    if isinstance(text, LongBytes) and text.text and encoding in ("latin1", "latin-1"):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise TypeError
    return text.encode(encoding)


@_known("builtins.bytes")
def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes | LongBytes:
    return text if isinstance(text, bytes) else _encode(text, encoding)


_NUMPY_CODES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_NUMPY_SCALARS = {
    "bool_": "b1", "bool": "b1", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "uint8": "u1",
    "uint16": "u2", "uint32": "u4", "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8",
    "complex64": "c8", "complex128": "c16",
}  # fmt: skip


@_known("numpy.dtype")
def _numpy_dtype(code: Any, *_: Any) -> NumpyType | Refused:
    if isinstance(code, Global):
        code = _NUMPY_SCALARS.get(code.name, "")
    if isinstance(code, str) and code[:1] in "<>|=" and code[1:] in _NUMPY_CODES:
        return NumpyType(code[1:], code[0])
    return NumpyType(code) if isinstance(code, str) and code in _NUMPY_CODES else Refused("numpy.dtype", "REDUCE")


@_known("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    if isinstance(data, str):
        data = data.encode("utf-8")
    if not isinstance(dtype, NumpyType) or not isinstance(data, bytes):
        raise TypeError
    return np.frombuffer(data, dtype.resolve(), count=1)[0].item()


@_known("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
def _numpy_empty(*_: Any) -> ArrayRef:
    return ArrayRef()


@_known("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> ArrayRef:
    array = ArrayRef()
    set_array(array, (1, shape, dtype, order == "F", data))
    return array


def set_array(array: ArrayRef, state: Any) -> None:
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


@_known("builtins.eval")
def _eval(source: Any, names: Any = None, *_: Any) -> Any:
    """Paddle pickles a tensor as ``eval("data", {"data": array})``; this very call is read as the
    array, any other is refused.
    """
    found = names.get("data") if isinstance(names, dict) and len(names) == 1 else None
    if source == "data" and isinstance(found, (ArrayRef, tuple)):
        return found
    raise TypeError
