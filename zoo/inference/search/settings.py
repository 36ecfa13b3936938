"""How a text is searched for: the settings of `zoo.generate`, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import CheckpointError, ConfigError, unknown, warn
from zoo.formats.plain_json import parse_json
from zoo.inference.search.penalties import PENALTIES, Penalty

FILE = "generation_config.json"
OWN = "zoo"  # the key in it for what transformers has no name for

Processor = Callable[[Tensor, Tensor], Tensor]  # ids (rows, length) and scores (rows, vocabulary) -> new scores
Allowed = Callable[[int, Tensor], Sequence[int]]  # number of the source and its ids -> ids that may follow


@dataclass(frozen=True, kw_only=True)
class Search:
    """The settings of a search. Lengths count tokens of what is written.

    A processor takes ids so far (rows, length) and scores (rows, vocabulary), and gives scores; beams
    hand it log-probabilities, everything else logits, as in transformers.
    """

    max_length: int | None = None  # longest text, its beginning included; None: as many as the model has positions
    max_new_tokens: int | None = None  # the same without the beginning; give one of the two
    min_length: int = 0  # no end before the text has so many tokens, its beginning included
    min_new_tokens: int = 0  # the same without the beginning
    num_beams: int = 1  # hypotheses that are kept for each source; 1: greedy, or drawn with do_sample
    num_return_sequences: int = 1  # texts for each source, the best first
    do_sample: bool = False  # draw each token instead of taking the likeliest
    temperature: float = 1.0  # scores are divided by it before a token is drawn
    top_k: int | None = None  # draw among so many of the likeliest
    top_p: float | None = None  # draw among the likeliest that together reach this probability
    length_penalty: float = 1.0  # exponent or weight of `penalty`; above 0 favors long texts
    penalty: str | Penalty = "average"  # how a beam's sum of log-probabilities and its length become its score
    early_stopping: bool | Literal["never"] = False  # True: a source is done with num_beams ended texts; False:
    # when no open beam scores better at its length; "never": when none can score better at any length
    late_endings: bool = False  # a text may end though num_beams candidates rank above it (XLM, Oscar)
    end_at_limit: bool = False  # the longest text's last token gives way to the end (XLM, Oscar)
    repetition_penalty: float = 1.0  # above 1 makes tokens that were written less likely
    no_repeat_ngram_size: int = 0  # no n-gram of this size is written twice
    encoder_no_repeat_ngram_size: int = 0  # nor one of the source's
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # sequences that are not written
    suppress_tokens: tuple[int, ...] = ()  # ids that are not written
    begin_suppress_tokens: tuple[int, ...] = ()  # nor as the first
    vocabulary: tuple[int, ...] | None = None  # the only ids that are written
    forced_bos_token_id: int | None = None  # the token behind a beginning of one token
    forced_eos_token_id: int | None = None  # the last token of the longest text
    end_token_id: int | tuple[int, ...] | None = None  # what ends a text; None: what the model's config says
    prefix_allowed_tokens: Allowed | None = None  # which ids may follow
    processors: tuple[Processor, ...] = ()  # behind all others
    stop: tuple[str, ...] = ()  # strings that end a text
    use_cache: bool = True  # remember keys and values; it changes speed alone

    def __post_init__(self) -> None:
        for name in _TUPLES:
            value = getattr(self, name)
            if value is not None and not isinstance(value, tuple):
                object.__setattr__(self, name, _tupled(name, value))
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in ("max_length", "max_new_tokens", "top_k"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{name} must be a finite number above 0, got {value!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is a probability, above 0 and at most 1, got {self.top_p!r}")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty must be a finite number, got {self.length_penalty!r}")
        if isinstance(self.penalty, str) and self.penalty not in PENALTIES:
            raise unknown("length penalty", self.penalty, sorted(PENALTIES))
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(f'early_stopping must be True, False or "never", got {self.early_stopping!r}')
        if not isinstance(self.use_cache, bool):
            raise ConfigError(f"use_cache must be True or False, got {self.use_cache!r}")
        if any(not isinstance(string, str) or not string for string in self.stop):
            raise ConfigError(f"stop must hold strings that are not empty, got {self.stop!r}")
        for function in (*self.processors, self.prefix_allowed_tokens):
            if function is not None and not callable(function):
                raise ConfigError(f"processors and prefix_allowed_tokens are functions, got {function!r}")
        if any(not words for words in self.bad_words_ids):
            raise ConfigError("bad_words_ids holds an empty sequence; give at least one id in each")
        if self.vocabulary is not None and not self.vocabulary:
            raise ConfigError("vocabulary holds no id, so nothing could be written")

    def _check_together(self) -> None:
        """Refuse settings of which one has no effect, or contradicts another."""
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ConfigError(
                f"max_length={self.max_length} and max_new_tokens={self.max_new_tokens} both say how long a text may "
                "be; give one"
            )
        for name in _OF_DRAWING:
            if not self.do_sample and getattr(self, name) != _default(name):
                raise ConfigError(f"{name}={getattr(self, name)} has no effect unless tokens are drawn; add do_sample")
        for name in _OF_BEAMS:
            if self.num_beams == 1 and getattr(self, name) != _default(name):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has no effect without beams; raise num_beams above 1"
                )
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            raise ConfigError(
                f"num_return_sequences={self.num_return_sequences} is more than num_beams={self.num_beams} finds; "
                "raise num_beams, or draw with do_sample"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences={self.num_return_sequences} is more than num_beams={self.num_beams} finds"
            )
        longest = self.max_length
        if longest is not None and self.min_length > longest:
            raise ConfigError(f"min_length={self.min_length} is more than max_length={longest}")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}")

    def replace(self, **changes: Any) -> Search:
        """The same with other values; names are checked."""
        for name in changes:
            if name not in FIELDS:
                raise unknown("setting of a search", name, FIELDS)
        if "max_length" in changes and "max_new_tokens" not in changes:
            changes["max_new_tokens"] = None
        if "max_new_tokens" in changes and "max_length" not in changes:
            changes["max_length"] = None
        if changes.get("num_beams") == 1:  # settings of beams end with them
            changes = {**{name: _default(name) for name in _OF_BEAMS}, **changes}
            if not changes.get("do_sample", self.do_sample):
                changes.setdefault("num_return_sequences", 1)
        if changes.get("do_sample") is False:
            changes = {**{name: _default(name) for name in _OF_DRAWING}, **changes}
        return dataclasses.replace(self, **changes)

    @classmethod
    def read(cls, folder: str | Path) -> Search:
        """The settings that lie with a checkpoint of the Hugging Face library: generation_config.json, or
        in older folders config.json. What this search has no name for is left out.
        """
        place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        for name in (FILE, "config.json"):
            path = place / name
            if path.is_file():
                found = parse_json(path.read_text(encoding="utf-8"), str(path))
                if not isinstance(found, dict):
                    raise CheckpointError(f"{path} must hold a JSON object, got {type(found).__name__}")
                return cls.of(found)
        return cls()

    def write(self, folder: str | Path, ids: Mapping[str, int] = MappingProxyType({})) -> None:
        """Write generation_config.json, which `read` and transformers read. ``ids``: what transformers wants to know
        there of the vocabulary. Functions can't be written; a ZooWarning names those that are left out.
        """
        changed = {name: value for name in FIELDS if (value := getattr(self, name)) != _default(name)}
        said = {_FOREIGN.get(name, name): value for name, value in changed.items() if name not in _OWN}
        own = {name: value for name, value in changed.items() if name in _OWN}
        if lost := [name for name, value in own.items() if name in _FUNCTIONS or callable(value)]:
            warn(f"{', '.join(lost)} of the search can't be written into {FILE}; pass it again when you generate")
            own = {name: value for name, value in own.items() if name not in lost}
        if self.do_sample and self.top_k is None:
            said["top_k"] = 0  # without it transformers draws among 50
        text = json.dumps({**ids, **said, **({OWN: own} if own else {})}, indent=2) + "\n"
        (Path(folder) / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Search:
        """From a mapping under transformers' names, as released folders store it."""
        found = {name: stored[name] for name in _STORED if stored.get(name) is not None}
        for name, value in (stored.get(OWN) or {}).items():
            if name not in _OWN or name in _FUNCTIONS:
                raise unknown(f"setting under {OWN!r} in {FILE}", name, [n for n in _OWN if n not in _FUNCTIONS])
            found[name] = value
        if found.get("max_new_tokens") is not None:  # as in transformers, where both are stored
            found.pop("max_length", None)
        if stored.get("eos_token_id") is not None:
            end = stored["eos_token_id"]
            found["end_token_id"] = tuple(end) if isinstance(end, list) else end
        if not found.get("do_sample"):
            found = {name: value for name, value in found.items() if name not in _OF_DRAWING}
        if found.get("num_beams", 1) == 1:
            found = {name: value for name, value in found.items() if name not in _OF_BEAMS}
        if found.get("top_k") == 0:
            del found["top_k"]
        return cls(**found)

    def ends(self, config: Any) -> tuple[int, ...]:
        """What ends a text, by these settings or the model's config."""
        value = getattr(config, "end_token_id", None) if self.end_token_id is None else self.end_token_id
        return () if value is None else (value,) if isinstance(value, int) else tuple(value)


FIELDS = tuple(each.name for each in dataclasses.fields(Search))
_OF_BEAMS = ("length_penalty", "penalty", "early_stopping", "late_endings")
_OF_DRAWING = ("temperature", "top_k", "top_p")
_LEAST = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}
_TUPLES = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "vocabulary", "processors", "stop")
_STORED = (
    "max_length",
    "min_length",
    "num_beams",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "max_new_tokens",
    "min_new_tokens",
    "num_return_sequences",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_FOREIGN = {"end_token_id": "eos_token_id"}
_OWN = tuple(name for name in FIELDS if name not in (*_STORED, *_FOREIGN))  # what transformers has no name for
_FUNCTIONS = ("prefix_allowed_tokens", "processors")


def _default(name: str) -> Any:
    return next(each.default for each in dataclasses.fields(Search) if each.name == name)


def _tupled(name: str, value: Any) -> tuple[Any, ...]:
    """A setting as a tuple: of ids from a tensor too, of all that a mask marks."""
    if name == "stop" and isinstance(value, str):
        return (value,)
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            return tuple(value.nonzero().flatten().tolist())
        return tuple(value.tolist())
    if name == "processors" and callable(value):
        return (value,)
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list, got {value!r}")
    if name == "bad_words_ids":
        if any(not isinstance(words, Sequence) or isinstance(words, str) for words in value):
            raise ConfigError(f"bad_words_ids must be a list of lists of ids, one for each sequence, got {value!r}")
        return tuple(tuple(words) for words in value)
    return tuple(value)
