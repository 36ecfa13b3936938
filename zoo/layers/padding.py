"""How a batch with padding runs on its real tokens only.

`Padding` knows which positions of a (batch, length) grid hold real tokens; it packs them into (tokens, hidden)
rows and puts results back. A model meets it through `zoo.layers.run.Run`.
"""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from types import TracebackType

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.errors import InputError

_PACKING: contextvars.ContextVar[bool] = contextvars.ContextVar("zoo_packing", default=True)


class packing:
    """Turn the packing of padded batches on or off, from here on or for a ``with`` block.

    It changes speed, not results.
    """

    def __init__(self, on: bool) -> None:
        self._token = _PACKING.set(bool(on))

    def __enter__(self) -> packing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _PACKING.reset(self._token)


def packing_enabled() -> bool:
    """Whether a padded batch would be packed here: not when switched off, nor under torch.compile or torch.export."""
    return not torch.compiler.is_compiling() and _PACKING.get()


def at_hand(x: Tensor) -> bool:
    """Whether the values of a tensor may be looked at: on the CPU and not under torch.compile or torch.export, so that
    no accelerator is waited for.
    """
    return x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


@dataclass(frozen=True)
class Packed:
    """Where the real tokens of a (batch, length) grid went: rows in ``order``, each row's tokens in their own order.

    ``index`` into the flattened grid; ``lengths``: real tokens per row, in ``order``; ``positions``: the column each
    token came from, or None where every row's tokens stand at 0..length-1.
    """

    index: Int[Tensor, "tokens"]
    order: tuple[int, ...]
    lengths: tuple[int, ...]
    grid: tuple[int, int]
    positions: Int[Tensor, "tokens"] | None = None

    def pack(self, x: Shaped[Tensor, "batch length *size"]) -> Shaped[Tensor, "tokens *size"]:
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x: Shaped[Tensor, "tokens *size"]) -> Shaped[Tensor, "batch length *size"]:
        """Zeros at padding."""
        batch, length = self.grid
        out = x.new_zeros(batch * length, *x.shape[1:])
        return out.index_copy(0, self.index, x).unflatten(0, (batch, length))

    def to(self, device: torch.device) -> Packed:
        """The same on another device, which is not waited for."""
        if self.index.device == device:
            return self
        positions = None if self.positions is None else self.positions.to(device, non_blocking=True)
        return replace(self, index=self.index.to(device, non_blocking=True), positions=positions)

    def real(self) -> Bool[Tensor, "batch length"]:
        """True where a token came from."""
        return self.unpack(torch.ones(self.index.shape, dtype=torch.bool, device=self.index.device))


@dataclass(frozen=True)
class Padding:
    """Which positions are real. ``real``: True = a real token, or None where all are."""

    real: Bool[Tensor, "batch length"] | None
    grid: tuple[int, int]
    packed: Packed | None = None
    visible: Bool[Tensor, "batch query key"] | None = None  # where the user gave a matrix
    ranks: Int[Tensor, "batch length"] | None = None  # that patterns compare in place of columns

    @classmethod
    def of(
        cls,
        attention_mask: Tensor | None,
        grid: tuple[int, int],
        *,
        lengths: Sequence[int] | None = None,
        pack: bool = True,
        name: str = "attention_mask",
        device: torch.device | None = None,
        ranks: Int[Tensor, "batch length"] | None = None,
    ) -> Padding:
        """Check a user's ``attention_mask`` and plan the packing.

        ``attention_mask``: (batch, length) or (batch, query, key), int or bool, 1/True = real, or may
        look. ``lengths``: real tokens per row where every row is real tokens first, then padding;
        together with a mask on the CPU both must say the same.
        ``pack=False`` keeps the padded form. ``device``: of what is packed, the mask's unless said.
        Planning reads where tokens stand: from the mask on the mask's device, from ``lengths`` on the
        CPU, so that no accelerator is waited for.
        """
        batch, length = grid
        firsts = None if lengths is None else first_columns(lengths, grid)
        if lengths is not None and attention_mask is None and all(n == length for n in lengths):
            return cls(None, grid, ranks=ranks)
        real = firsts if attention_mask is None else as_bool(attention_mask, name)
        if real is None:
            return cls(None, grid, ranks=ranks)
        device = device or real.device
        if real.dim() == 3:
            if tuple(real.shape) != (batch, length, length):
                raise InputError(
                    f"{name} must be (batch, query, key) = {(batch, length, length)}, got {tuple(real.shape)}"
                )
            said = real.any(2) | real.any(1)
            if firsts is not None:
                check_lengths(firsts, said, name)
            return cls(said, grid, visible=real, ranks=ranks)
        if tuple(real.shape) != (batch, length):
            raise InputError(
                f"{name} must be (batch, length) = {(batch, length)} or (batch, query, key), got {tuple(real.shape)}"
            )
        if firsts is not None and attention_mask is not None:
            check_lengths(firsts, real, name)
        here = real if real.device == device else real.to(device, non_blocking=True)
        if not (pack and packing_enabled()) or "meta" in (real.device.type, device.type):
            return cls(here, grid, ranks=ranks)
        where = _rows(real if firsts is None else firsts)
        return cls(None if where is None else here, grid, None if where is None else where.to(device), ranks=ranks)

    def pack(self, x: Shaped[Tensor, "batch length *size"]) -> Shaped[Tensor, "*rows"]:
        """Packed rows where the batch is packed, else ``x`` as it is."""
        return x if self.packed is None else self.packed.pack(x)

    def unpack(self, x: Shaped[Tensor, "*rows"]) -> Shaped[Tensor, "batch length *size"]:
        """Zeros at padding whether packed or not."""
        if self.packed is not None:
            return self.packed.unpack(x)
        return x if self.real is None else x.masked_fill(~self.real.unflatten(1, (-1, *[1] * (x.dim() - 2))), 0)

    def first(self, x: Float[Tensor, "batch length hidden"]) -> Float[Tensor, "batch hidden"]:
        """The first real token of each row."""
        if self.real is None or (self.packed is not None and self.packed.positions is None):
            return x[:, 0]
        where = self.real.int().argmax(1)  # the first True; 0 for a row of padding, which holds zeros
        return x.gather(1, where[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def first_columns(lengths: Sequence[int], grid: tuple[int, int], name: str = "lengths") -> Bool[Tensor, "batch length"]:
    """On the CPU, True for the first ``lengths[i]`` columns of row i."""
    batch, length = grid
    if not isinstance(lengths, Iterable):
        raise InputError(f"{name} must be {batch} numbers from 0 to {length}, got {lengths!r}")
    lengths = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    whole = torch.compiler.is_compiling() or all(isinstance(n, Integral) for n in lengths)
    if not whole or len(lengths) != batch or any(not 0 <= n <= length for n in lengths):
        raise InputError(
            f"{name} must be {batch} {'' if whole else 'whole '}numbers from 0 to {length}, got {list(lengths)}"
        )
    return torch.arange(length, device="cpu") < torch.tensor(list(lengths), device="cpu").unsqueeze(1)


def _rows(real: Bool[Tensor, "batch length"]) -> Packed | None:
    """Order the rows by length and number their real tokens; None where nothing is padding."""
    batch, length = real.shape
    counts = real.sum(1).tolist()
    if all(n == length for n in counts):
        return None
    order = tuple(sorted(range(batch), key=counts.__getitem__))
    ordered = real if order == tuple(range(batch)) else real[torch.tensor(order, device=real.device)]
    row, column = ordered.nonzero(as_tuple=True)
    index = torch.tensor(order, device=real.device)[row] * length + column
    straight = bool((ordered[:, 1:] <= ordered[:, :-1]).all())
    return Packed(index, order, tuple(counts[i] for i in order), (batch, length), None if straight else column)


def check_lengths(firsts: Tensor, real: Tensor, name: str, lengths_name: str = "lengths") -> None:
    """Refuse lengths, as `first_columns` reads them, that contradict the mask; (batch, length) bool
    both. An accelerator's mask is not waited for, and nothing is read under compile.
    """
    if real.shape != firsts.shape:
        raise InputError(f"{name} must be (batch, length) = {tuple(firsts.shape)}, got {tuple(real.shape)}")
    if not at_hand(real) or torch.equal(real, firsts):
        return
    row = int((real != firsts).any(1).int().argmax())
    raise InputError(
        f"{lengths_name} and {name} contradict each other in row {row}: by {lengths_name} the first "
        f"{int(firsts[row].sum())} are real, by {name} {real[row].nonzero().flatten().tolist()}; give one of the two, "
        "or both alike"
    )


def as_bool(mask: Tensor, name: str = "attention_mask") -> Tensor:
    """A user's mask as bool: bool, or whole numbers 0 and 1 with 1 = real. Float and additive masks
    are refused by name; values are looked at on the CPU, not under compile.
    """
    if not isinstance(mask, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(f"{name} is {mask.dtype}, which {_meant(mask, name)}")
    if mask.dim() not in (2, 3):
        raise InputError(f"{name} must be (batch, length) or (batch, query, key), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    ends = _ends(mask)
    if ends is not None and not (ends[0] >= 0 and ends[1] <= 1):
        raise InputError(
            f"{name} holds numbers from {int(ends[0])} to {int(ends[1])}, which {_meant(mask, name)}; only 0 and 1 are "
            "taken"
        )
    return mask != 0


def _ends(mask: Tensor) -> tuple[float, float] | None:
    """The least and the largest value, None where nobody looks at values."""
    if mask.is_complex() or not at_hand(mask):
        return None
    low, high = mask.aminmax() if mask.dtype in _REDUCED else mask.long().aminmax()
    return low.item(), high.item()


_REDUCED = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_REDUCED |= {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def _meant(mask: Tensor, name: str) -> str:
    """Which way round a mask that is refused seems to be, by its values, and what to pass for it."""
    ends = _ends(mask)
    if ends is not None and ends[0] <= 0 and ends[1] == 0:  # nobody masks everything
        return f"looks additive: 0 at real tokens, less at padding; pass 1/True for real tokens, here `{name} == 0`"
    if ends is not None and ends[0] >= 0 and ends[1] == 1 and bool(((mask == 0) | (mask == 1)).all()):
        return f"holds 1 at real tokens, as it should, but as the wrong type; pass `{name}.bool()`"
    return (
        f"may mean either; pass 1/True for real tokens: `{name} == 0` where 0 stands at real tokens and less at "
        f"padding (additive), `{name} != 0` where 0 stands at padding"
    )


def together(*streams: Padding) -> tuple[Padding, ...]:
    """Give several streams one row order, so that each can look at the others packed; unpacked where
    one of them can't be packed.
    """
    if all(s.packed is None and s.real is None for s in streams):
        return streams
    if any(s.packed is None and s.real is not None for s in streams):
        return tuple(replace(s, packed=None) for s in streams)
    counts = []
    for stream in streams:
        batch, length = stream.grid
        by_row = (
            dict(zip(stream.packed.order, stream.packed.lengths, strict=True))
            if stream.packed
            else dict.fromkeys(range(batch), length)
        )
        counts.append([by_row[row] for row in range(batch)])
    order = tuple(sorted(range(len(counts[0])), key=lambda row: tuple(c[row] for c in counts)))
    device = next(s.packed.index.device for s in streams if s.packed is not None)
    return tuple(replace(s, packed=_reorder(s, order, c, device)) for s, c in zip(streams, counts, strict=True))


def _reorder(stream: Padding, order: tuple[int, ...], counts: Sequence[int], device: torch.device) -> Packed:
    """The same tokens, row after row in ``order``; ``counts``: tokens by row of the grid."""
    length, old = stream.grid[1], stream.packed
    lengths = tuple(counts[row] for row in order)
    if old is None:  # all real
        index = (torch.tensor(order, device="cpu")[:, None] * length + torch.arange(length, device="cpu")).flatten()
        return Packed(index, order, lengths, stream.grid).to(device)
    starts = dict(zip(old.order, itertools.accumulate(old.lengths, initial=0), strict=False))
    begin, count = (torch.tensor(numbers, device="cpu") for numbers in ([starts[row] for row in order], lengths))
    shift = (begin - count.cumsum(0) + count).repeat_interleave(count)  # from a token's new place to its old one
    moved = (torch.arange(len(shift), device="cpu") + shift).to(device, non_blocking=True)
    positions = None if old.positions is None else old.positions[moved]
    return Packed(old.index[moved], order, lengths, stream.grid, positions)


def padding_like(
    states: Float[Tensor, "batch length hidden"],
    mask: Tensor | None,
    lengths: Sequence[int] | None = None,
    *,
    pack: bool = True,
    name: str = "attention_mask",
    ranks: Int[Tensor, "batch length"] | None = None,
) -> Padding:
    """The padding of states (batch, length, ...), planned on their device: see `Padding.of`."""
    grid = (states.shape[0], states.shape[1])
    return Padding.of(mask, grid, lengths=lengths, pack=pack, name=name, device=states.device, ranks=ranks)


def carried(
    x: Shaped[Tensor, "*rows size"], source: Padding | None, target: Padding | None
) -> Shaped[Tensor, "*target_rows size"]:
    """The states of one stream at the places of another on the same grid, zeros where the source has none.

    ``x``: rows as ``source`` packs them -> rows as ``target`` does; None stands for the (batch, length, ...) grid
    itself.
    """
    grid = x if source is None else source.unpack(x)
    return grid if target is None else target.pack(grid)


@dataclass(frozen=True)
class Part:
    """One of several streams that are read as one: its grid and what a user says is real of it."""

    grid: tuple[int, int]
    mask: Tensor | None = None
    lengths: Sequence[int] | None = None
    mask_name: str = "attention_mask"
    lengths_name: str = "lengths"

    def given(self) -> Tensor | None:
        """The user's word as a mask, on the CPU where lengths say it."""
        mask = None if self.mask is None else as_bool(self.mask, self.mask_name)
        if self.lengths is None:
            return mask
        firsts = first_columns(self.lengths, self.grid, self.lengths_name)
        if mask is not None:
            check_lengths(firsts, mask, self.mask_name, self.lengths_name)
        return firsts


def joined(*parts: Part) -> Bool[Tensor, "batch total_length"] | None:
    """What is real of streams laid one behind the other; None where all is."""
    given = [part.given() for part in parts]
    said = next((mask for mask in reversed(given) if mask is not None), None)  # says where the joint one lies
    if said is None:
        return None
    real = []
    for part, mask in zip(parts, given, strict=True):
        mask = said.new_ones(part.grid) if mask is None else mask
        checked = Padding.of(mask, part.grid, pack=False, name=part.mask_name, device=said.device).real
        real.append(said.new_ones(part.grid) if checked is None else checked)
    return torch.cat(real, 1)
