"""The wrapper every family shares: text -> pre-step -> ``tokenizers.Tokenizer`` -> a batch for
``model(**batch)``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tokenizers

from zoo.errors import CheckpointError, InputError
from zoo.formats.disk import write_atomically, writing
from zoo.tokenization.files import guarded
from zoo.tokenization.language_frames import LanguageFrames

if TYPE_CHECKING:
    from torch import Tensor

SAVED_BACKEND = "tokenizer.json"
SAVED_EXTRAS = "zoo_tokenizer.json"
KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class PreStep(Protocol):
    """What a family does to raw text before its ``tokenizers.Tokenizer`` sees it: a function from
    text to text, declared by name.
    """

    name: str
    takes_language: bool

    def __call__(self, text: str, language: str | None = None) -> str: ...

    def options(self) -> dict[str, object]:
        """Plain values from which the step can be built again."""
        ...


class NoPreStep:
    """The text as it is."""

    name = "none"
    takes_language = False

    def __call__(self, text: str, language: str | None = None) -> str:
        return text

    def options(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The tokens that play a role; ``None`` where the family has none. ``pad_id`` only where
    padding is an id and no token (CLIP: 0).
    """

    pad: str | None = None
    cls: str | None = None
    sep: str | None = None
    mask: str | None = None
    unk: str | None = None
    pad_id: int | None = None


class Tokenizer:
    """A declared pre-step, then a ``tokenizers.Tokenizer``.

    ``inputs`` names what a batch holds, so that ``model(**tokenizer(texts))`` works: families
    without segments get no token_type_ids. ``max_length`` is how many tokens the model takes (None:
    not known); it is the default of ``max_length`` in a call. ``truncation_side``: which end a text
    that is too long loses, "right" or "left".
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: SpecialTokens,
        pre_step: PreStep | None = None,
        inputs: Sequence[str] = KNOWN_INPUTS,
        max_length: int | None = None,
        truncation_side: str = "right",
    ):
        # a tokenizer.json may carry its trainer's padding and truncation; both are arguments of a call here
        backend.no_padding()
        backend.no_truncation()
        for name in inputs:
            if name not in KNOWN_INPUTS:
                raise CheckpointError(f"a tokenizer makes {', '.join(KNOWN_INPUTS)}, not {name!r}")
        self.backend = backend
        self.special = special
        self.pre_step: PreStep = pre_step or NoPreStep()
        self.inputs = tuple(inputs)
        self.max_length = max_length
        self.truncation_side = truncation_side
        for role in ("pad", "cls", "sep", "mask", "unk"):
            token = getattr(special, role)
            if token is not None and backend.token_to_id(token) is None:
                raise CheckpointError(
                    f"the {role} token {token!r} is not in the vocabulary of {self.vocab_size:,} tokens"
                )

    # --- one text

    def encode(
        self, text: str, pair: str | None = None, *, language: str | None = None, pair_language: str | None = None
    ) -> tokenizers.Encoding:
        """One text, or a pair of texts, with the family's special tokens; offsets refer to the text
        behind the pre-step.

        ``language`` is for families whose pre-step or frame knows languages (XLM, mBART);
        ``pair_language`` defaults to it.
        """
        prepared = self.prepared(text, language)
        prepared_pair = None if pair is None else self.prepared(pair, pair_language or language)
        frame = self._frame_of(language, pair_language)
        if frame is self.backend:
            encode = lambda: self.backend.encode(prepared, prepared_pair)  # noqa: E731
            return guarded("the text cannot be encoded", InputError, encode)
        first = self._encode_parts([text], [language])[0]
        second = None if pair is None else self._encode_parts([pair], [pair_language or language])[0]
        return guarded("the text cannot be encoded", InputError, lambda: frame.post_process(first, second, True))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of one sequence of ids (a list or a 1-dimensional tensor)."""
        numbers = [int(index) for index in ids]
        wrong = next((index for index in numbers if not 0 <= index < 2**32), None)
        if wrong is not None:
            raise InputError(f"the id {wrong} cannot be decoded; ids lie between 0 and {self.vocab_size - 1}")
        return guarded(
            "the ids cannot be decoded", InputError, lambda: self.backend.decode(numbers, skip_special_tokens)
        )

    # --- a batch

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: bool = True,
        padding: bool | str = True,
        return_lengths: bool = False,
        language: str | Sequence[str] | None = None,
        pair_language: str | Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Int64 tensors of (batch, length) for ``model(**batch)``; ``lengths`` of (batch,) besides
        when asked for.

        A text longer than ``max_length`` is cut (a pair: the longer of the two first), or refused
        with ``truncation=False``. ``padding`` is True (to the longest), "max_length" or False (all
        texts must then be equally long). ``language``: of all texts, or of each (XLM, mBART).
        """
        if padding not in (True, False, "longest", "max_length"):
            raise InputError(f"padding={padding!r} is not known; it is True, 'max_length' or False")
        limit = self.max_length if max_length is None else max_length
        if padding == "max_length" and limit is None:
            raise InputError(
                "padding='max_length' needs max_length, which this tokenizer does not know; pass max_length=..."
            )
        encodings = self.encodings(
            texts, pairs, max_length=max_length, truncation=truncation, language=language, pair_language=pair_language
        )
        lengths = [len(encoding.ids) for encoding in encodings]
        if not padding and min(lengths) != max(lengths):
            raise InputError(
                f"the texts have from {min(lengths)} to {max(lengths)} tokens; without padding they must be equally "
                "long"
            )
        batch = self.batch(encodings, limit if padding == "max_length" else None)
        if return_lengths:
            import torch

            batch["lengths"] = torch.tensor(lengths, dtype=torch.int64)
        return batch

    def encodings(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: bool = True,
        language: str | Sequence[str] | None = None,
        pair_language: str | Sequence[str] | None = None,
    ) -> list[tokenizers.Encoding]:
        """Each text, or pair, with its special tokens, cut as in a call: for who wants to see lengths
        or offsets before `batch` makes tensors.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = None if pairs is None else [pairs] if isinstance(pairs, str) else list(pairs)
        if not texts:
            raise InputError("there are no texts; pass a text or a list with at least one")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"there are {len(texts)} texts and {len(pairs)} pairs; give each text its pair")
        limit = self.max_length if max_length is None else max_length
        languages = _one_each(language, len(texts), "language")
        pair_languages = languages if pair_language is None else _one_each(pair_language, len(texts), "pair_language")
        first = self._encode_parts(texts, languages)
        second = None if pairs is None else self._encode_parts(pairs, pair_languages)
        return [
            self._assemble(
                encoding,
                None if second is None else second[row],
                limit,
                truncation,
                row,
                self._frame_of(languages[row], None if second is None else pair_languages[row]),
            )
            for row, encoding in enumerate(first)
        ]

    def windows(
        self, text: str, pair: str | None = None, *, overlap: int = 64, max_length: int | None = None
    ) -> list[tokenizers.Encoding]:
        """A long text in as many encodings as it takes, with its special tokens each; neighbors have
        ``overlap`` tokens in common, or half of what fits. With a pair the first text stands in each,
        cut to half of what fits where it is longer, and the second is spread over the windows.
        """
        limit = self.max_length if max_length is None else max_length
        frame = self._frame_of(None, None)
        first = self._encode_parts([text], [None])[0]
        second = None if pair is None else self._encode_parts([pair], [None])[0]
        if limit is None:
            return [self._assemble(first, second, None, False, 0, frame)]
        special, shortest = self.backend.num_special_tokens_to_add(second is not None), 1 + (second is not None)
        room = limit - special
        if room < shortest:
            raise InputError(
                f"max_length={limit} leaves no room for the text; it must be at least {special + shortest}"
            )
        cut = first if second is None else second
        if second is not None:
            first.truncate(min(len(first.ids), room // 2), direction=self.truncation_side)
            room -= len(first.ids)
        cut.truncate(room, min(overlap, room // 2), self.truncation_side)
        parts = [cut, *cut.overflowing]
        if self.truncation_side == "left":
            parts.reverse()
        pairs: list[tuple[Any, Any]] = [(part, None) if second is None else (first, part) for part in parts]
        return [self._assemble(one, other, None, False, 0, frame) for one, other in pairs]

    def batch(self, encodings: Sequence[tokenizers.Encoding], width: int | None = None) -> dict[str, Tensor]:
        """Tensors of (batch, length) of `encodings`, padded to the longest of them, or to ``width``."""
        import numpy
        import torch

        lengths = [len(encoding.ids) for encoding in encodings]
        width = max(lengths) if width is None else width
        pad = self.pad_token_id
        if pad is None and min(lengths) != width:
            raise InputError("this tokenizer has no padding token; encode one text at a time, or texts of equal length")

        ids = numpy.full((len(encodings), width), pad or 0, dtype=numpy.int64)
        segments = numpy.zeros((len(encodings), width), dtype=numpy.int64)
        for row, (encoding, length) in enumerate(zip(encodings, lengths, strict=True)):
            ids[row, :length] = encoding.ids
            segments[row, :length] = encoding.type_ids
        real = (numpy.arange(width) < numpy.array(lengths)[:, None]).astype(numpy.int64)
        batch = {"input_ids": ids, "attention_mask": real, "token_type_ids": segments}
        return {name: torch.from_numpy(batch[name]) for name in self.inputs}

    def prepared(self, text: str, language: str | None = None) -> str:
        """A text behind the family's own step: what `backend` encodes, and offsets refer to."""
        if not isinstance(text, str):
            raise InputError(f"a text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds half of a surrogate pair at character {error.start}; decode it with errors='replace'"
            ) from error
        if language is not None and not self.pre_step.takes_language and not self.frames.default:
            raise InputError(
                f"language={language!r} was given, but this tokenizer does the same for every language; leave it out"
            )
        return self.pre_step(text, language)

    def _frame_of(self, language: str | None, pair_language: str | None) -> tokenizers.Tokenizer:
        """The backend whose frame goes around a text, or a pair, of a language."""
        if not self.frames.default:
            return self.backend
        if pair_language not in (None, language):
            raise InputError(
                f"a pair has one language in the frame of this tokenizer, got {language!r} and {pair_language!r}"
            )
        return self.frames.of(language)

    def _encode_parts(self, texts: Sequence[str], languages: Sequence[str | None]) -> list[tokenizers.Encoding]:
        prepared = [self.prepared(text, language) for text, language in zip(texts, languages, strict=True)]
        return guarded(
            "the texts cannot be encoded",
            InputError,
            lambda: self.backend.encode_batch(prepared, add_special_tokens=False),
        )

    def _assemble(
        self,
        first: tokenizers.Encoding,
        second: tokenizers.Encoding | None,
        limit: int | None,
        truncation: bool,
        row: int,
        frame: tokenizers.Tokenizer,
    ) -> tokenizers.Encoding:
        """Cut to the limit, then put the special tokens of the frame in."""
        if limit is not None:
            room = limit - self.backend.num_special_tokens_to_add(second is not None)
            if room < 0:
                raise InputError(
                    f"max_length={limit} leaves no room for the special tokens; it must be at least {limit - room}"
                )
            counts = (len(first.ids), 0 if second is None else len(second.ids))
            if sum(counts) > room:
                if not truncation:
                    total = sum(counts) + limit - room
                    raise InputError(
                        f"text {row} has {total} tokens with its special ones, more than max_length={limit}; shorten "
                        "it or cut it"
                    )
                keep_first, keep_second = _longest_first(*counts, room)
                first.truncate(keep_first, direction=self.truncation_side)
                if second is not None:
                    second.truncate(keep_second, direction=self.truncation_side)
        return guarded(
            "the special tokens cannot be added", InputError, lambda: frame.post_process(first, second, True)
        )

    # --- vocabulary

    @cached_property
    def frames(self) -> LanguageFrames:
        """The backend's frame in each of its languages, where it names one."""
        return LanguageFrames(self.backend)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: how many rows an embedding needs at least."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        return self.backend.id_to_token(index) if 0 <= index < 2**32 else None

    def _role(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    @property
    def pad_token_id(self) -> int | None:
        return self.special.pad_id if self.special.pad_id is not None else self._role(self.special.pad)

    @property
    def cls_token_id(self) -> int | None:
        return self._role(self.special.cls)

    @property
    def sep_token_id(self) -> int | None:
        return self._role(self.special.sep)

    @property
    def mask_token_id(self) -> int | None:
        return self._role(self.special.mask)

    @property
    def unk_token_id(self) -> int | None:
        return self._role(self.special.unk)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that no objective should predict or mask: the roles, and whatever else the backend
        calls special.
        """
        roles = {self.pad_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id, self.unk_token_id}
        added = {index for index, token in self.backend.get_added_tokens_decoder().items() if token.special}
        return frozenset(index for index in roles | added if index is not None)

    # --- files

    def save(self, path: Path | str) -> None:
        """Write ``tokenizer.json`` and ``zoo_tokenizer.json`` (the pre-step and the roles) into a
        folder, each whole or not at all.
        """
        folder = Path(path)
        extras = {
            "version": 1,
            "pre_step": {"name": self.pre_step.name, "options": self.pre_step.options()},
            "special": {role: value for role, value in asdict(self.special).items() if value is not None},
            "inputs": list(self.inputs),
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
        }
        about = json.dumps(extras, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / SAVED_BACKEND, self.backend.to_str())
            write_atomically(folder / SAVED_EXTRAS, about)

    def __repr__(self) -> str:
        kind = type(self.backend.model).__name__
        step = "" if self.pre_step.name == "none" else f"{self.pre_step.name}, then "
        return f"Tokenizer({step}{kind} of {self.vocab_size:,} tokens)"


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each part stay when both must fit: the shorter one keeps up to half of the
    room, the longer one takes the rest.

    Where both are too long and the room is odd, the longer (of equals, the second) keeps one more.
    """
    short, long = sorted((first, second))
    keep_short = min(short, room // 2)
    keep_long = min(long, room - keep_short)
    return (keep_short, keep_long) if first <= second else (keep_long, keep_short)


def _one_each(value: str | Sequence[str] | None, count: int, name: str) -> list[str | None]:
    if value is None or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} entries for {count} texts; give one for all, or one each")
    return list(value)


__all__ = ["NoPreStep", "PreStep", "SpecialTokens", "Tokenizer"]
