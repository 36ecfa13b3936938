"""What passes through a model in one call, layer by layer: hidden states, queries, keys and values,
scores. For losses between models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import TaskError
from zoo.layers.padding import Padding, packing
from zoo.models.base.outputs import Encoded, Streams

PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Seen:
    """One call. ``output``: what it returned; ``encoded``: the watched stream; ``real`` (batch,
    length) bool.

    ``projected``: by "query", "key", "value" a (batch, length, width) tensor for each layer of
    self-attention, in order, zeros at padding; empty if nobody asked. ``num_heads``: of those
    layers.
    """

    output: Any
    encoded: Encoded
    real: Tensor
    projected: Mapping[str, tuple[Tensor, ...]]
    num_heads: tuple[int, ...]

    @property
    def states(self) -> tuple[Tensor, ...]:
        """What enters the first layer, then what leaves each, (batch, length, hidden)."""
        assert self.encoded.hidden_states is not None
        return self.encoded.hidden_states

    def scores(self, layer: int) -> Tensor:
        """``q kᵀ / sqrt(head size)`` of a layer (0-based), (batch, heads, query, key), -10000 added
        for keys that are padding.
        """
        q, k = (
            self.projected[name][layer].unflatten(2, (self.num_heads[layer], -1)).transpose(1, 2)
            for name in ("query", "key")
        )
        hidden = torch.where(self.real, 0.0, -10000.0).to(q.dtype)
        return q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + hidden[:, None, None, :]


def observe(
    model: Any,
    batch: Mapping[str, Tensor],
    *,
    stream: str = "text",
    attentions: bool = False,
    projected: bool = False,
    **labels: Tensor,
) -> Seen:
    """Run ``model`` on those tensors of ``batch`` that it reads, and keep what passed. ``labels``
    are for a task model.
    """
    bare = getattr(model, "model", model)
    given = {name: value for name, value in batch.items() if name in bare.inputs or name == "lengths"}
    whole = projected and not _plain(bare, given)
    with packing(False) if whole else nullcontext(), _watched(bare, stream, projected) as kept:
        output = model(**given, **labels, output_hidden_states=True, output_attentions=attentions)
    encoded = stream_of(output, stream)
    real = _real(encoded, given.get("attention_mask"))
    parts, heads = _in_order(kept, encoded, given, attentions or whole) if projected else ({}, ())
    return Seen(output, encoded, real, parts, heads)


def stream_of(output: Any, stream: str) -> Encoded:
    """The `Encoded` of a stream in whatever a model or task model returned; a model of one stream
    has only that.
    """
    encoded = output if isinstance(output, Encoded | Streams) else getattr(output, "encoded", None)
    if isinstance(encoded, Streams):
        encoded = getattr(encoded, stream, None)
    if not isinstance(encoded, Encoded):
        raise TaskError(f"{type(output).__name__} shows no states of a stream {stream!r}")
    return encoded


def attention_layers(model: Any, stream: str = "text") -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Path, part and depths of each self-attention of a stream; of all where no part is of that
    stream (one joint sequence).
    """
    bare = getattr(model, "model", model)
    sites = [site for site in bare.sites() if site.role == "self-attention"]
    own = [site for site in sites if site.stream == stream] or sites
    return [(site.path, site.module, site.depths) for site in own]


def num_layers(model: Any, stream: str = "text") -> int:
    """How many layers of self-attention a stream passes."""
    return sum(len(depths) for _, _, depths in attention_layers(model, stream))


def _plain(bare: Any, given: Mapping[str, Any]) -> bool:
    """Whether the model reads one text and nothing else, so that its rows are packed as the mask
    says.
    """
    mask = given.get("attention_mask")
    return not any(name.startswith("visual") for name in given) and (mask is None or mask.dim() == 2)


def _real(encoded: Encoded, attention_mask: Tensor | None) -> Tensor:
    states = encoded.last_hidden_state
    if (
        attention_mask is not None
        and attention_mask.dim() == 2
        and tuple(attention_mask.shape) == tuple(states.shape[:2])
    ):
        return attention_mask.bool()
    return states.detach().ne(0).any(-1)  # padded positions are zeros


@contextmanager
def _watched(bare: Any, stream: str, wanted: bool) -> Iterator[dict[tuple[int, str], list[Tensor]]]:
    """Keep what each query, key and value projection gives, by (number of the part, name), call by
    call.
    """
    kept: dict[tuple[int, str], list[Tensor]] = {}
    hooks = []
    for number, (path, part, depths) in enumerate(attention_layers(bare, stream) if wanted else ()):
        for name in PARTS:
            if not isinstance(getattr(part, name, None), nn.Module):
                raise TaskError(f"{path} is a {type(part).__name__}, which has no {name} to compare")
            calls = kept[number, name] = []
            kept.setdefault((number, "depths"), list(depths))  # type: ignore[arg-type]
            kept.setdefault((number, "heads"), [part.num_heads])  # type: ignore[list-item]
            hooks.append(
                getattr(part, name).register_forward_hook(lambda _m, _i, given, calls=calls: calls.append(given))
            )
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _in_order(
    kept: Mapping[tuple[int, str], list[Any]], encoded: Encoded, given: Mapping[str, Any], unpacked: bool
) -> tuple[dict[str, tuple[Tensor, ...]], tuple[int, ...]]:
    states = encoded.last_hidden_state
    grid = (states.shape[0], states.shape[1])
    fits = given.get("attention_mask") is not None and given["attention_mask"].shape[1] == grid[1]
    mask = given.get("attention_mask") if fits else None
    padding = Padding.of(
        mask, grid, lengths=given.get("lengths") if mask is None else None, pack=not unpacked, device=states.device
    )
    layers = []
    for number in sorted({number for number, _ in kept}):
        for call, depth in enumerate(kept[number, "depths"]):
            layers.append((depth, number, call))
    layers.sort()
    parts = {
        name: tuple(padding.unpack(_grid(kept[number, name][call], grid, padding)) for _, number, call in layers)
        for name in PARTS
    }
    return parts, tuple(kept[number, "heads"][0] for _, number, _ in layers)


def _grid(x: Tensor, grid: tuple[int, int], padding: Padding) -> Tensor:
    if x.dim() == 3 or padding.packed is not None:
        return x
    raise TaskError(
        f"the states of {tuple(x.shape)} are packed in a way that {grid} does not tell; run under zoo.packing(False)"
    )
