"""What writes: a model step by step, with what it remembers.

A writer says what each text begins with and gives the scores of the next token, (rows, vocabulary).
After `start` there is one row for each source; `repeat` makes several of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.layers.attention import Attention, DenseAttention
from zoo.layers.cache import KeyValueCache
from zoo.layers.padding import as_bool
from zoo.models.base.model import Model


class Writer(Protocol):
    """A model that writes. ``beginning`` (sources, n): what each text begins with; ``source_ids`` (sources,
    length): what n-grams of the source are taken from; ``longest``: tokens that a text can have.

    start, step: the scores of the next token, (rows, vocabulary), at first and behind one more token for each
    row. repeat: each row becomes several. follow: rows go on from their parents, which have the same ids
    before column ``since``. keep: only these of the sources stay, each with ``each`` rows.
    """

    beginning: Tensor
    source_ids: Tensor | None
    longest: int

    def start(self) -> Tensor: ...

    def step(self, tokens: Tensor) -> Tensor: ...

    def repeat(self, times: int) -> None: ...

    def follow(self, parents: Tensor, since: int) -> None: ...

    def keep(self, sources: Tensor, each: int) -> None: ...


def remembers(model: Model, under: str = "") -> bool:
    """Whether all attentions below ``under`` can read keys and values from a cache; a convolution, say,
    can't.
    """
    places = [
        site.module
        for site in model.sites()
        if site.path.startswith(under) and site.role in ("self-attention", "cross-attention")
    ]
    return all(isinstance(each, Attention) and isinstance(each.core, DenseAttention) for each in places)


class EncoderDecoderWriter:
    """Reads the source once; the decoder reads what is new. ``named``: more inputs, those of the decoder
    begin with ``decoder_``.
    """

    def __init__(
        self,
        task: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        start_ids: Tensor | None,
        named: Mapping[str, Any],
        *,
        use_cache: bool = True,
    ) -> None:
        self.task, self.body = task, task.model
        config: Any = task.config
        check_source(input_ids, attention_mask)
        sources = len(input_ids)
        self.of_decoder = {name: value for name, value in named.items() if name.startswith("decoder_")}
        of_encoder = {name: value for name, value in named.items() if name not in self.of_decoder}
        self.mask, self.lengths = self.body.seen_of_source(input_ids, attention_mask, of_encoder.get("lengths"))
        self.start_mask = self.of_decoder.pop("decoder_attention_mask", None)
        start_ids = self.of_decoder.pop("decoder_input_ids", start_ids)
        self.beginning = beginning(start_ids, sources, config, input_ids.device)
        self.source_ids, self.longest = input_ids, config.max_positions
        self.memory: Tensor | None = self.body.encode(input_ids, attention_mask, **of_encoder).last_hidden_state
        self.cache = KeyValueCache() if use_cache and remembers(self.body, "decoder") else None
        self.ids = self.beginning  # of each row, where nothing is remembered
        self.rows = torch.arange(sources, device=input_ids.device)  # the source of each row

    def start(self) -> Tensor:
        return self.read(self.beginning)

    def step(self, tokens: Tensor) -> Tensor:
        if self.cache is not None:
            return self.read(tokens[:, None])
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        return self.read(self.ids)

    def read(self, ids: Tensor) -> Tensor:
        """The scores behind the last of ``ids``."""
        named = {name: per_row(value, self.rows) for name, value in self.of_decoder.items()}
        mask = None
        if self.start_mask is not None and (self.cache is None or self.cache.length == 0):
            mask = self.start_mask if self.start_mask.dtype == torch.bool else self.start_mask != 0
            mask = mask[self.rows] if len(mask) > 1 else mask.expand(len(ids), -1)
            mask = nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=True)
        if self.cache is not None:
            memory, source_mask, lengths = self.memory, self.mask, self.lengths
            self.memory = None  # from here on the cache knows it
        else:
            assert self.memory is not None
            memory, lengths = self.memory[self.rows], None
            source_mask = None if self.mask is None else self.mask[self.rows]
            if self.lengths is not None:
                lengths = [self.lengths[row] for row in self.rows.tolist()]
        states = self.body.decode(
            ids,
            memory,
            source_mask,
            decoder_attention_mask=mask,
            lengths=lengths if memory is not None else None,
            cache=self.cache,
            **named,
        ).last_hidden_state
        return self.task.predict(states[:, -1:])[:, 0]

    @staticmethod
    def states(
        task: Any,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        target_ids: Tensor,
        real: Tensor,
        named: Mapping[str, Any],
    ) -> Tensor:
        """The states behind each token of given targets."""
        if input_ids is None:
            raise InputError("input_ids are missing: the sources of the targets, (batch, length)")
        made = {"decoder_input_ids": target_ids, "decoder_attention_mask": real, **named}
        found: Tensor = task.model(input_ids=input_ids, attention_mask=attention_mask, **made).last_hidden_state
        return found

    def repeat(self, times: int) -> None:
        self.rows = self.rows.repeat_interleave(times)
        self.ids = self.ids.repeat_interleave(times, 0)
        if self.cache is not None:
            self.cache.repeat(times)

    def follow(self, parents: Tensor, since: int) -> None:
        self.ids = self.ids[parents]
        if self.cache is not None:
            self.cache.follow(parents, since)

    def keep(self, sources: Tensor, each: int) -> None:
        places = rows_of(sources, each)
        self.rows, self.ids = self.rows[places], self.ids[places]
        if self.cache is not None:
            self.cache.keep(sources, each)


class CausalWriter:
    """Goes on from a text: what was given is read once, then what is new."""

    def __init__(
        self,
        task: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        start_ids: Tensor | None,
        named: Mapping[str, Any],
        *,
        use_cache: bool = True,
    ) -> None:
        if start_ids is not None:
            raise InputError("a causal model goes on from input_ids; start_ids are an encoder-decoder's")
        self.task, self.body, self.named = task, task.model, dict(named)
        check_source(input_ids, attention_mask)
        self.mask: Tensor | None = None if attention_mask is None else as_bool(attention_mask)
        self.beginning, self.source_ids = input_ids, None
        self.longest = task.config.max_positions
        self.cache = KeyValueCache() if use_cache and remembers(self.body) else None
        self.ids = input_ids
        self.rows = torch.arange(len(input_ids), device=input_ids.device)

    def start(self) -> Tensor:
        return self.read(self.ids)

    def step(self, tokens: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, 1), value=True)
        return self.read(self.ids if self.cache is None else self.ids[:, -1:])

    def read(self, ids: Tensor) -> Tensor:
        """The scores behind the last real token of ``ids``."""
        new, mask, positions = ids.shape[1], self.mask, None
        if mask is not None:  # positions count tokens, wherever padding stands
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
            mask = mask[:, -new:]
        elif self.cache is not None and self.cache.length:
            positions = torch.arange(self.cache.length, self.cache.length + new, device=ids.device)[None]
        named = {name: per_row(value, self.rows) for name, value in self.named.items()}
        remembered = {} if self.cache is None else {"cache": self.cache}
        states = self.body(
            input_ids=ids, attention_mask=mask, position_ids=positions, **named, **remembered
        ).last_hidden_state
        last = states[:, -1:]
        if mask is not None and new > 1:  # padding may stand on the right of what was given
            where = (torch.arange(new, device=ids.device) * mask).argmax(1)
            last = states.gather(1, where[:, None, None].expand(-1, 1, states.shape[2]))
        return self.task.predict(last)[:, 0]

    @staticmethod
    def states(
        task: Any,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        target_ids: Tensor,
        real: Tensor,
        named: Mapping[str, Any],
    ) -> Tensor:
        """The states behind each token of given texts."""
        if input_ids is not None or attention_mask is not None:
            raise InputError("a causal model reads no source: hand whole texts as target_ids, None as input_ids")
        positions = (real.cumsum(1) - 1).clamp(min=0)
        found: Tensor = task.model(
            input_ids=target_ids, attention_mask=real, position_ids=positions, **named
        ).last_hidden_state
        return found

    def repeat(self, times: int) -> None:
        self.rows = self.rows.repeat_interleave(times)
        self.ids = self.ids.repeat_interleave(times, 0)
        self.mask = None if self.mask is None else self.mask.repeat_interleave(times, 0)
        if self.cache is not None:
            self.cache.repeat(times)

    def follow(self, parents: Tensor, since: int) -> None:
        self.ids = self.ids[parents]
        if self.cache is not None:
            self.cache.follow(parents, since)

    def keep(self, sources: Tensor, each: int) -> None:
        places = rows_of(sources, each)
        self.rows, self.ids = self.rows[places], self.ids[places]
        self.mask = None if self.mask is None else self.mask[places]
        if self.cache is not None:
            self.cache.keep(sources, each)


def rows_of(sources: Tensor, each: int) -> Tensor:
    """The rows of some sources, each of which has ``each``."""
    return (sources[:, None] * each + torch.arange(each, device=sources.device)).flatten()


def per_row(value: Any, rows: Tensor) -> Any:
    """An input of each row: a tensor's or a list's by its source, anything else for all."""
    if isinstance(value, Tensor) and value.dim():
        return value[rows] if len(value) > 1 else value
    if isinstance(value, list | tuple) and len(value) > 1:
        return [value[row] for row in rows.tolist()]
    return value


def beginning(start_ids: Tensor | None, sources: int, config: Any, device: torch.device) -> Tensor:
    """What each text begins with, (sources, n): as given, or the config's start token."""
    if start_ids is None:
        if config.start_token_id is None:
            raise InputError(
                "this model begins a text with its language's token: pass start_ids (batch, 1), or say "
                "config.start_token_id"
            )
        return torch.full((sources, 1), config.start_token_id, device=device)
    if start_ids.dim() == 1:
        start_ids = start_ids[:, None]
    if len(start_ids) not in (1, sources) or start_ids.dim() != 2 or not start_ids.shape[1]:
        raise InputError(f"start_ids must be ({sources}, n), got {tuple(start_ids.shape)}")
    return start_ids.expand(sources, -1)


def check_source(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Refuse a source without a token."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
        shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise InputError(f"input_ids must be (batch, length), got {shape}")
    if not len(input_ids):
        raise InputError(f"input_ids must hold one source at least, got {tuple(input_ids.shape)}")
    if not input_ids.shape[1]:
        raise InputError("the sources have no token; give at least one to each")
    if attention_mask is not None and attention_mask.dim() == 2 and len(attention_mask):
        empty = (~as_bool(attention_mask).any(1)).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"source {empty[0]} has no token: its attention_mask is 0 everywhere")
