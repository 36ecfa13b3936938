"""The operations of the map language: what may happen to tensors between source and target names.

Each takes a list of tensors to a list of tensors, says beforehand what shapes come out, and knows
its inverse. Most return views, so that a writer can stream them in blocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.errors import CheckpointError, ConfigError, MapError, closest
from zoo.formats.archive import TORCH_DTYPES as DTYPES

Shape = tuple[int, ...]
Size = int | str  # a number, or the name of a config field


def size_of(size: Size, config: Mapping[str, object]) -> int:
    """A size as a number: itself, or the value of the config field that it names, of a list its
    length.
    """
    if isinstance(size, int):
        return size
    value = config.get(size)
    if isinstance(value, (list, tuple)):
        return len(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"the map needs config field {size!r} as a whole number, the config has {value!r}")
    return value


@dataclass(frozen=True)
class Op:
    """One operation; ``fan`` says whether it joins several tensors ("in"), makes several ("out") or
    neither ("").
    """

    name: ClassVar[str] = ""
    fan: ClassVar[str] = ""

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        raise NotImplementedError

    def dtype(self, dtype: str) -> str:
        return dtype

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def inverse(self) -> Op:
        raise NotImplementedError

    def bound(self, config: Mapping[str, object]) -> Op:
        """The same operation with sizes that were named by config fields filled in."""
        return self

    def counted(self, count: int) -> Op:
        """The same operation, told how many tensors go in (fan "in") or come out (fan "out")."""
        return self

    @property
    def lost(self) -> str:
        """What the forward direction throws away, in words; empty where it is exact."""
        return ""


def _only(shapes: Sequence[Shape]) -> Shape:
    (shape,) = shapes
    return shape


def _axis(axis: int, shape: Shape, name: str) -> int:
    if not -len(shape) <= axis < len(shape):
        raise CheckpointError(f"{name} along axis {axis} needs a tensor with that axis, got shape {shape}")
    return axis % len(shape)


def _resized(shape: Shape, axis: int, length: int) -> Shape:
    axis %= len(shape)
    return (*shape[:axis], length, *shape[axis + 1 :])


@dataclass(frozen=True)
class Permute(Op):
    """Axes in another order; ``transpose`` is ``axes = [1, 0]``."""

    axes: tuple[int, ...] = (1, 0)
    name: ClassVar[str] = "permute"

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.axes))):
            raise MapError(f"axes={list(self.axes)} must name each of {list(range(len(self.axes)))} once")

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = _only(shapes)
        if len(shape) != len(self.axes):
            raise CheckpointError(
                f"{self.name} by axes {list(self.axes)} needs {len(self.axes)} axes, got shape {shape}"
            )
        return [tuple(shape[axis] for axis in self.axes)]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[0].permute(self.axes)]

    def inverse(self) -> Op:
        return Permute(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True)
class _Numbered(Op):
    """Between one tensor and several. ``parts``: how many, where the rule's names don't say;
    ``flexible``: a file may have another number of them, the way back writes ``parts``.
    """

    parts: Size | None = None
    flexible: bool = False
    count: int = 0

    def bound(self, config: Mapping[str, object]) -> Op:
        return replace(self, parts=None if self.parts is None else size_of(self.parts, config))

    def counted(self, count: int) -> Op:
        if self.fan == "in" and isinstance(self.parts, int) and self.parts != count and not self.flexible:
            raise CheckpointError(f"{self.name} needs {self.parts} tensors, the file has {count}")
        return replace(self, count=count)


@dataclass(frozen=True)
class _Pieces(_Numbered):
    """Along an axis, in equal pieces or in the given ``sizes``. ``groups``: each piece holds so many
    parts one after the other, and the whole holds the first parts of all pieces, then the second ones
    (query, key and value of each rank).
    """

    axis: int = 0
    sizes: tuple[Size, ...] = ()
    groups: int = 1

    def bound(self, config: Mapping[str, object]) -> Op:
        return replace(super().bound(config), sizes=tuple(size_of(size, config) for size in self.sizes))  # type: ignore[call-arg]

    def counted(self, count: int) -> Op:
        if self.fan == "out" and self.sizes and len(self.sizes) != count:
            raise MapError(f"{self.name} has {len(self.sizes)} sizes for {count} tensors")
        return super().counted(count)


@dataclass(frozen=True)
class Split(_Pieces):
    """One tensor into several along an axis, in equal pieces or in the given ``sizes``."""

    name: ClassVar[str] = "split"
    fan: ClassVar[str] = "out"

    def _lengths(self, shape: Shape) -> list[int]:
        length = shape[_axis(self.axis, shape, self.name)]
        if self.sizes:
            lengths = [int(size) for size in self.sizes]
            if sum(lengths) != length:
                raise CheckpointError(
                    f"split into {lengths} needs {sum(lengths)} along axis {self.axis}, got shape {shape}"
                )
            return lengths
        if self.count < 1 or length % (self.count * self.groups):
            grouped = f" of {self.groups} parts each" if self.groups > 1 else ""
            raise CheckpointError(
                f"split into {self.count} equal pieces{grouped} along axis {self.axis} does not fit shape {shape}"
            )
        return [length // self.count] * self.count

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = _only(shapes)
        return [_resized(shape, self.axis, length) for length in self._lengths(shape)]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = tensors
        lengths = self._lengths(tuple(tensor.shape))
        if self.groups == 1:
            return list(tensor.split(lengths, dim=self.axis))
        parts = tensor.split(lengths[0] // self.groups, dim=self.axis)  # the first of all pieces, the second, ...
        return [torch.cat(parts[piece :: self.count], dim=self.axis) for piece in range(self.count)]

    def inverse(self) -> Op:
        return Join(self.parts, self.flexible, self.count, self.axis, self.sizes, self.groups)


@dataclass(frozen=True)
class Join(_Pieces):
    """Several tensors into one along an axis; without ``sizes`` they must be equally long, so that
    the way back is known.
    """

    name: ClassVar[str] = "join"
    fan: ClassVar[str] = "in"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        first = shapes[0]
        axis = _axis(self.axis, first, self.name)
        if len({_resized(s, axis, 0) if len(s) == len(first) else s for s in shapes}) > 1:
            raise CheckpointError(
                f"join along axis {self.axis} needs tensors that agree in the other axes, got shapes {list(shapes)}"
            )
        lengths = [shape[axis] for shape in shapes]
        wanted = [int(size) for size in self.sizes] or [lengths[0]] * len(lengths)
        if lengths != wanted:
            raise CheckpointError(f"join along axis {self.axis} needs lengths {wanted}, got {lengths}")
        if lengths[0] % self.groups:
            raise CheckpointError(f"join needs pieces of {self.groups} parts along axis {self.axis}, got shape {first}")
        return [_resized(first, axis, sum(lengths))]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self.groups == 1:
            return [torch.cat(list(tensors), dim=self.axis)]
        parts = [tensor.chunk(self.groups, dim=self.axis) for tensor in tensors]
        return [torch.cat([piece[group] for group in range(self.groups) for piece in parts], dim=self.axis)]

    def inverse(self) -> Op:
        return Split(self.parts, self.flexible, self.count, self.axis, self.sizes, self.groups)


@dataclass(frozen=True)
class StackTensors(Op):
    """Several tensors of one shape into one with a new axis."""

    axis: int = 0
    name: ClassVar[str] = "stack"
    fan: ClassVar[str] = "in"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        first = shapes[0]
        if any(shape != first for shape in shapes):
            raise CheckpointError(f"stack needs equal shapes, got {list(shapes)}")
        axis = self.axis % (len(first) + 1)
        return [(*first[:axis], len(shapes), *first[axis:])]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack(list(tensors), dim=self.axis)]

    def inverse(self) -> Op:
        return Unstack(self.axis)


@dataclass(frozen=True)
class Unstack(Op):
    """One tensor into its slices along an axis, which goes away."""

    axis: int = 0
    name: ClassVar[str] = "unstack"
    fan: ClassVar[str] = "out"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = _only(shapes)
        axis = _axis(self.axis, shape, self.name)
        return [(*shape[:axis], *shape[axis + 1 :])] * shape[axis]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors[0].unbind(self.axis))

    def inverse(self) -> Op:
        return StackTensors(self.axis)


@dataclass(frozen=True)
class Copies(_Numbered):
    """One tensor under each of several names."""

    name: ClassVar[str] = "copies"
    fan: ClassVar[str] = "out"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [_only(shapes)] * self.count

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[0]] * self.count

    def inverse(self) -> Op:
        return Same(self.parts, self.flexible, self.count)


@dataclass(frozen=True)
class Same(_Numbered):
    """Several tensors that are one and the same into one."""

    name: ClassVar[str] = "same"
    fan: ClassVar[str] = "in"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if any(shape != shapes[0] for shape in shapes):
            raise CheckpointError(f"same needs equal shapes, got {list(shapes)}")
        return [shapes[0]]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
            raise CheckpointError(f"{len(tensors)} tensors that must be copies of one differ")
        return [tensors[0]]

    def inverse(self) -> Op:
        return Copies(self.parts, self.flexible, self.count)


@dataclass(frozen=True)
class _Ends(Op):
    """``before`` and ``after`` count rows at the two ends of an axis."""

    before: int = 0
    after: int = 0
    axis: int = 0
    fill: float = 0.0
    loss: str = ""


@dataclass(frozen=True)
class Pad(_Ends):
    """Rows of ``fill`` put before and after."""

    name: ClassVar[str] = "pad"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = _only(shapes)
        length = shape[_axis(self.axis, shape, self.name)]
        return [_resized(shape, self.axis, self.before + length + self.after)]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = tensors
        before, after = (
            tensor.new_full(_resized(tuple(tensor.shape), self.axis, n), self.fill) for n in (self.before, self.after)
        )
        return [torch.cat([before, tensor, after], dim=self.axis)]

    def inverse(self) -> Op:
        return Rows(self.before, self.after, self.axis, self.fill, self.loss)


@dataclass(frozen=True)
class Rows(_Ends):
    """The rows that remain when some at the start and at the end are left away; the way back fills
    them with ``fill``.
    """

    name: ClassVar[str] = "rows"

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = _only(shapes)
        length = shape[_axis(self.axis, shape, self.name)]
        if self.before + self.after > length:
            raise CheckpointError(
                f"rows leaves {self.before} + {self.after} away along axis {self.axis}, shape {shape} has only {length}"
            )
        return [_resized(shape, self.axis, length - self.before - self.after)]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = tensors
        return [tensor.narrow(self.axis, self.before, tensor.shape[self.axis] - self.before - self.after)]

    def inverse(self) -> Op:
        return Pad(self.before, self.after, self.axis, self.fill, self.loss)

    @property
    def lost(self) -> str:
        return self.loss


_EXACT_CASTS = {("F16", "F32"), ("F16", "F64"), ("BF16", "F32"), ("BF16", "F64"), ("F32", "F64")}
_EXACT_CASTS |= set(itertools.combinations(("I8", "I16", "I32", "I64"), 2))


@dataclass(frozen=True)
class Cast(Op):
    """Another number format; both ends are named, so that the way back is known."""

    to: str = "F32"
    back: str = "F32"
    loss: str = ""
    name: ClassVar[str] = "cast"

    def __post_init__(self) -> None:
        for dtype in (self.to, self.back):
            if dtype not in DTYPES:
                raise MapError(f"cast knows no dtype {dtype!r}; closest: {', '.join(closest(dtype, DTYPES))}")

    @property
    def exact(self) -> bool:
        return self.to == self.back or (self.back, self.to) in _EXACT_CASTS

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes)

    def dtype(self, dtype: str) -> str:
        if dtype != self.back:
            raise CheckpointError(f"cast from {self.back} to {self.to} got a tensor of {dtype}")
        return self.to

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(DTYPES[self.to]) for tensor in tensors]

    def inverse(self) -> Op:
        return Cast(self.back, self.to, self.loss)

    @property
    def lost(self) -> str:
        return "" if self.exact else self.loss


@dataclass(frozen=True)
class Reshape(Op):
    """The same numbers in order under another shape; sizes may name config fields, one may be
    -1.
    """

    to: tuple[Size, ...] = ()
    back: tuple[Size, ...] = ()
    name: ClassVar[str] = "reshape"

    def bound(self, config: Mapping[str, object]) -> Op:
        return Reshape(
            tuple(size_of(size, config) for size in self.to), tuple(size_of(size, config) for size in self.back)
        )

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = _only(shapes)
        known = math.prod(int(size) for size in self.to if size != -1)
        total = math.prod(shape)
        filled = tuple(total // known if size == -1 and known else int(size) for size in self.to)
        if math.prod(filled) != total:
            raise CheckpointError(f"reshape to {list(self.to)} does not fit shape {shape}")
        return [filled]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[0].reshape([int(size) for size in self.to])]

    def inverse(self) -> Op:
        return Reshape(self.back, self.to)


def parse(written: object, where: str) -> tuple[Op, ...]:
    """The chain of operations that a rule states: a word, a table, or a list of both."""
    if written is None:
        return ()
    entries = written if isinstance(written, list) else [written]
    chain = tuple(_parse_one(entry, where) for entry in entries)
    for position, op in enumerate(chain):
        if (op.fan == "in" and position) or (op.fan == "out" and position != len(chain) - 1):
            raise MapError(f"{where}: {op.name} must stand {'first' if op.fan == 'in' else 'last'} in its chain")
    return chain


_WORDS: Mapping[str, tuple[type[Op], str, str]] = {  # word in a map: class, its options, those that must be given
    "transpose": (Permute, "", ""),
    "permute": (Permute, "axes", "axes"),
    "split": (Split, "axis sizes groups parts flexible", ""),
    "join": (Join, "axis sizes groups parts flexible", ""),
    "stack": (StackTensors, "axis", ""),
    "unstack": (Unstack, "axis", ""),
    "copies": (Copies, "parts flexible", ""),
    "same": (Same, "parts flexible", ""),
    "rows": (Rows, "before after axis fill lost", "lost"),
    "pad": (Pad, "before after axis fill", ""),
    "cast": (Cast, "to from lost", "to from"),
    "reshape": (Reshape, "to back", "to back"),
}
_FIELD_OF = {"lost": "loss", "from": "back"}  # where an option's field has another name


def _parse_one(entry: object, where: str) -> Op:
    options: dict[str, object] = (
        {"op": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
    )
    word = options.pop("op", None)
    if not isinstance(word, str):
        raise MapError(f'{where}: an operation is a word or a table with "op", got {entry!r}')
    if word not in _WORDS:
        raise MapError(f"{where}: unknown operation {word!r}; closest: {', '.join(closest(word, _WORDS))}")
    cls, known, needed = _WORDS[word]
    for option in options:
        if option not in known.split():
            has = ", ".join(known.split()) or "none"
            raise MapError(f"{where}: operation {word!r} has no option {option!r}; it has {has}")
    for option in needed.split():
        if options.get(option) in (None, "", []):
            hint = ": say what is thrown away, the way back can't restore it" if option == "lost" else ""
            raise MapError(f"{where}: operation {word!r} needs {option!r}{hint}")
    values: dict[str, Any] = {
        _FIELD_OF.get(option, option): tuple(value) if isinstance(value, list) else value
        for option, value in options.items()
    }
    try:
        op = cls(**values)
    except MapError as error:
        raise MapError(f"{where}: {error}") from None
    if isinstance(op, Cast) and not op.exact and not op.loss:
        raise MapError(f"{where}: a cast from {op.back} to {op.to} rounds; say so in 'lost'")
    return op
