"""What passes through a model in one call, layer by layer: hidden states, queries, keys and values,
attention scores. For losses between models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import TaskError
from zoo.layers.masks import Mask
from zoo.models.base.outputs import Encoded, Streams

PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Activations:
    """One call. ``output``: what it returned; ``encoded``: the compared stream; ``real`` (batch,
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


def activations_of(
    model: Any,
    batch: Mapping[str, Tensor],
    *,
    stream: str = "text",
    attentions: bool = False,
    projected: bool = False,
    **labels: Tensor,
) -> Activations:
    """Run ``model`` on those tensors of ``batch`` that it reads, and keep what passed. ``labels``
    are for a task model. A model that tells no segments apart, as RoBERTa, reads none.
    """
    bare = getattr(model, "model", model)
    given = {name: value for name, value in batch.items() if name in bare.inputs or name == "lengths"}
    if getattr(bare.config, "num_segments", 2) < 2:
        given.pop("token_type_ids", None)
    layers = attention_layers(bare, stream) if projected else []
    with _recorded(layers) as records:
        output = model(**given, **labels, output_hidden_states=True, output_attentions=attentions)
    encoded = stream_of(output, stream)
    real = _real(encoded, given.get("attention_mask"))
    in_order = sorted(
        (depth, index, call) for index, (_, _, depths) in enumerate(layers) for call, depth in enumerate(depths)
    )
    tensors = {
        name: tuple(records[index][name][call].masked_fill(~real[..., None], 0) for _, index, call in in_order)
        for name in (PROJECTIONS if projected else ())
    }
    return Activations(
        output, encoded, real, tensors, tuple(int(layers[index][1].num_heads) for _, index, _ in in_order)
    )


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


def attention_layers(model: Any, stream: str = "text") -> list[tuple[str, Any, tuple[int, ...]]]:
    """Path, part and depths of each self-attention of a stream; of all where no part is of that
    stream (one joint sequence).
    """
    bare = getattr(model, "model", model)
    sites = [site for site in bare.sites() if site.role == "self-attention"]
    own = [site for site in sites if site.stream == stream] or sites
    return [(site.path, site.module, site.depths) for site in own]


def _real(encoded: Encoded, attention_mask: Tensor | None) -> Tensor:
    states = encoded.last_hidden_state
    if attention_mask is not None and tuple(attention_mask.shape) == tuple(states.shape[:2]):
        return attention_mask.bool()
    return states.detach().ne(0).any(-1)  # padded positions are zeros


@contextmanager
def _recorded(layers: Sequence[tuple[str, Any, tuple[int, ...]]]) -> Iterator[list[dict[str, list[Any]]]]:
    """Keep what each query, key and value projection gives, call by call, packed rows put back in
    their places.
    """
    records: list[dict[str, list[Any]]] = []
    handles = []
    for path, part, _ in layers:
        record: dict[str, list[Any]] = {"rows": [], **{name: [] for name in PROJECTIONS}}

        def before(_: nn.Module, args: Any, named: Any, record: dict[str, list[Any]] = record) -> None:
            mask = next((value for value in (*args, *named.values()) if isinstance(value, Mask)), Mask())
            record["rows"].append(mask.query_rows)

        handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
        for name in PROJECTIONS:
            if not isinstance(getattr(part, name, None), nn.Module):
                raise TaskError(f"{path} is a {type(part).__name__}, which has no {name} to compare")

            def after(
                _: nn.Module, _args: Any, given: Tensor, record: dict[str, list[Any]] = record, name: str = name
            ) -> None:
                rows = record["rows"][-1]
                record[name].append(given if rows is None else rows.unpack(given))

            handles.append(getattr(part, name).register_forward_hook(after))
        records.append(record)
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
