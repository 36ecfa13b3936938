"""Writers in the stream that holds what is read: words, the regions of a picture, or both (`JointEncoder`).

What is read has rank 0 and attends to itself alone; written words have the ranks 1, 2, ... A family says where its
written words stand (`written_inputs`), where those that are read do (`read_inputs`), and with what a text begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.inference.search.writers import check_source, per_row, remembers, rows_of
from zoo.layers.cache import KeyValueCache
from zoo.layers.padding import as_bool


class JointWriter:
    """Scores of the next word at the last one that was written: a text begins with the config's start token."""

    def __init__(
        self,
        task: Any,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        start_ids: Tensor | None,
        named: Mapping[str, Any],
        *,
        use_cache: bool = True,
    ) -> None:
        self.task, self.body = task, task.model
        self.pictures = {name: value for name, value in named.items() if name.startswith("visual_")}
        self.words = {name: value for name, value in named.items() if name not in self.pictures}
        if input_ids is not None:
            check_source(input_ids, attention_mask)
            self.words = {"input_ids": input_ids, **self.body.read_inputs(input_ids), **self.words}
        elif "visual_features" not in self.pictures:
            raise InputError("there is nothing to read: give input_ids, visual_features or both")
        read = self.pictures["visual_features"] if input_ids is None else input_ids
        sources, length = len(read), 0 if input_ids is None else input_ids.shape[1]
        self.mask = None if attention_mask is None else as_bool(attention_mask)
        counted = torch.full((sources,), length, device=read.device) if self.mask is None else self.mask.sum(1)
        self.read_words = counted  # real words that are read, of each source
        self.beginning = self.first_words(start_ids, sources, read.device)
        self.source_ids, self.longest = input_ids, self.body.written_room(length)
        self.cache = KeyValueCache() if use_cache and remembers(self.body) else None
        self.ids = self.beginning
        self.rows = torch.arange(sources, device=read.device)
        self.passed = 0  # written words that the cache knows

    def first_words(self, start_ids: Tensor | None, sources: int, device: torch.device) -> Tensor:
        """What each text begins with."""
        if start_ids is None:
            return torch.full((sources, 1), self.task.config.start_token_id, device=device)
        return start_ids.expand(sources, -1)

    def behind(self, ids: Tensor) -> Tensor:
        """Written words as the model reads them, to score the next one."""
        return ids

    def start(self) -> Tensor:
        self.remember()
        return self.read(self.ids)

    def remember(self) -> None:
        """Keep keys and values of what is read, where a cache holds them."""
        if self.cache is not None:
            self.body(attention_mask=self.mask, **self.words, **self.pictures, cache=self.cache)

    def step(self, tokens: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        return self.read(self.ids if self.cache is None else tokens[:, None])

    def read(self, ids: Tensor) -> Tensor:
        """The scores behind the last of ``ids``."""
        return self.task.predict(self.state(ids))[:, 0]  # type: ignore[no-any-return]

    def state(self, ids: Tensor) -> Tensor:
        """What the next word is predicted from, (rows, 1, hidden)."""
        shown = self.behind(ids)
        places = torch.arange(self.passed, self.passed + shown.shape[1], device=ids.device)
        written = self.body.written_inputs(self.read_words[self.rows], places)
        ranks = (places + 1).expand(len(shown), -1)
        if self.cache is not None:
            states = self.body(input_ids=shown, ranks=ranks, **written, cache=self.cache).text.last_hidden_state
            self.passed += ids.shape[1]
            self.cache.cut(self.cache.length - (shown.shape[1] - ids.shape[1]))
            return states[:, -1:]  # type: ignore[no-any-return]
        return self.whole(shown, ranks, written)[:, -1:]

    def whole(self, shown: Tensor, ranks: Tensor, written: Mapping[str, Tensor], real: Tensor | None = None) -> Tensor:
        """The states of written words by one pass over all that is read and written; ``real``: of the written."""
        words = {name: per_row(value, self.rows) for name, value in self.words.items()}
        pictures = {name: per_row(value, self.rows) for name, value in self.pictures.items()}
        mask = real
        if (read := words.get("input_ids")) is not None:
            if self.mask is not None or real is not None:
                before = torch.ones_like(read, dtype=torch.bool) if self.mask is None else self.mask[self.rows]
                mask = torch.cat([before, torch.ones_like(shown, dtype=torch.bool) if real is None else real], 1)
            ranks = nn.functional.pad(ranks, (read.shape[1], 0))
            words |= {
                name: torch.cat([words[name].expand(len(shown), -1), value], 1)
                for name, value in {"input_ids": shown, **written}.items()
            }
        else:
            words |= {"input_ids": shown, **written}
        result = self.body(**words, attention_mask=mask, ranks=ranks, **pictures)
        return result.text.last_hidden_state[:, -shown.shape[1] :]  # type: ignore[no-any-return]

    @classmethod
    def states(
        cls,
        task: Any,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        target_ids: Tensor,
        real: Tensor,
        named: Mapping[str, Any],
    ) -> Tensor:
        """The states behind each token of given targets."""
        writer = cls(task, input_ids, attention_mask, target_ids, named, use_cache=False)
        places = torch.arange(target_ids.shape[1], device=target_ids.device)
        written = task.model.written_inputs(writer.read_words, places)
        return writer.whole(target_ids, (places + 1).expand(len(target_ids), -1), written, real)

    def repeat(self, times: int) -> None:
        self.rows = self.rows.repeat_interleave(times)
        self.ids = self.ids.repeat_interleave(times, 0)
        if self.cache is not None:
            self.cache.repeat(times)

    def follow(self, parents: Tensor, since: int) -> None:
        self.ids = self.ids[parents]
        if self.cache is not None:
            self.cache.follow(parents, self.cache.length - self.passed + since)

    def keep(self, sources: Tensor, each: int) -> None:
        places = rows_of(sources, each)
        self.rows, self.ids = self.rows[places], self.ids[places]
        if self.cache is not None:
            self.cache.keep(sources, each)


class MaskWriter(JointWriter):
    """A word is predicted at a mask that stands behind those before it, and then takes the mask's place."""

    def first_words(self, start_ids: Tensor | None, sources: int, device: torch.device) -> Tensor:
        """The config's start token, or nothing where it has none: then what is read ends with it."""
        if start_ids is None and getattr(self.task.config, "start_token_id", None) is None:
            return torch.empty(sources, 0, dtype=torch.int64, device=device)
        return super().first_words(start_ids, sources, device)

    def behind(self, ids: Tensor) -> Tensor:
        return nn.functional.pad(ids, (0, 1), value=self.task.config.mask_token_id)

    @classmethod
    def states(
        cls,
        task: Any,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        target_ids: Tensor,
        real: Tensor,
        named: Mapping[str, Any],
    ) -> Tensor:
        """Those of the masks behind each token of given targets, one after the other. Where texts begin with
        nothing, the first token of a target is what is read last, and stands there already.
        """
        learns = torch.is_grad_enabled()  # what a cache holds carries no gradient
        writer = cls(task, input_ids, attention_mask, None, named, use_cache=not learns)
        writer.remember()
        found, first = [], 0 if writer.beginning.shape[1] else 1
        for place in range(target_ids.shape[1]):
            words = target_ids[:, first : place + 1]
            found.append(writer.state(words if writer.cache is None else words[:, -1:]))
        return torch.cat(found, 1)
