"""Training examples out of documents: sentence pairs for NSP and SOP, translation pairs for TLM,
blocks of running text.

A *document* is a list of sentences, a sentence a list of tokens (strings or ids). The draws come
from a ``random.Random`` (``zoo.data.masking.python_random`` makes one from a ``torch.Generator``)
in the order of the reference code, so a seed gives its pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from zoo.errors import InputError, unknown

Token = TypeVar("Token")
Document = Sequence[Sequence[Token]]
SPECIAL_TOKENS = 3
"""[CLS] first [SEP] second [SEP]"""


@dataclass(frozen=True)
class SentencePair(Generic[Token]):
    """Two segments and their ``label``: 0 = the second follows the first, 1 = it is random (NSP) or
    the two are swapped (SOP).
    """

    first: list[Token]
    second: list[Token]
    label: int


@dataclass(frozen=True)
class PackedPair(Generic[Token]):
    """``[CLS] first [SEP] second [SEP]`` and the segment of each token: 0 up to the first [SEP],
    then 1.
    """

    tokens: list[Token]
    token_type_ids: list[int]


def pack_pair(pair: SentencePair[Token], cls: Token, sep: Token) -> PackedPair[Token]:
    tokens = [cls, *pair.first, sep, *pair.second, sep]
    return PackedPair(tokens, [0] * (len(pair.first) + 2) + [1] * (len(pair.second) + 1))


def sentence_pairs(
    documents: Sequence[Document[Token]],
    index: int,
    max_length: int,
    rng: random.Random,
    objective: Literal["next-sentence", "sentence-order"],
    short_probability: float = 0.1,
) -> Iterator[SentencePair[Token]]:
    """Cut document ``index`` into chunks of sentences and each chunk into two segments.

    Both fit into ``max_length`` together with the three special tokens. ``next-sentence`` (BERT):
    in half of the pairs the second segment is a stretch of another document, and the sentences not
    used go back. ``sentence-order`` (ALBERT): in half of the pairs the two segments are swapped. A
    chunk of one sentence always gets a random second segment, label 1, under both. With
    ``short_probability`` the whole document is cut to a shorter target, drawn from 2 to the full
    length. Pairs come lazily: what the caller draws between two of them lies between their draws,
    as in the reference, which masks each pair when it is made.
    """
    if objective not in ("next-sentence", "sentence-order"):
        raise unknown("objective", objective, ("next-sentence", "sentence-order"))
    room = max_length - SPECIAL_TOKENS
    if room < 2:
        raise InputError(
            f"max_length={max_length} must be at least {SPECIAL_TOKENS + 2}: three special tokens and one token a "
            "segment"
        )
    document = documents[index]
    if not document or not all(document):
        raise InputError(f"document {index} or one of its sentences is empty: drop empty documents and sentences first")
    target = rng.randint(2, room) if rng.random() < short_probability else room
    chunk: list[Sequence[Token]] = []
    position = 0
    while position < len(document):
        chunk.append(document[position])
        position += 1
        if position < len(document) and sum(map(len, chunk)) < target:
            continue
        cut = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
        first = _join(chunk[:cut])
        second = _join(chunk[cut:])
        label = 0
        if len(chunk) == 1 or (objective == "next-sentence" and rng.random() < 0.5):
            label = 1
            second = _stretch(documents[_other_document(len(documents), index, rng)], target - len(first), rng)
            position -= len(chunk) - cut
        elif objective == "sentence-order" and rng.random() < 0.5:
            label = 1
            first, second = second, first
        truncate_pair(first, second, room, rng)
        yield SentencePair(first, second, label)
        chunk = []


def next_sentence_pairs(
    documents: Sequence[Document[Token]],
    index: int,
    max_length: int,
    rng: random.Random,
    short_probability: float = 0.1,
) -> Iterator[SentencePair[Token]]:
    """BERT's pairs: label 0 = true next, 1 = random. See ``sentence_pairs``."""
    return sentence_pairs(documents, index, max_length, rng, "next-sentence", short_probability)


def sentence_order_pairs(
    documents: Sequence[Document[Token]],
    index: int,
    max_length: int,
    rng: random.Random,
    short_probability: float = 0.1,
) -> Iterator[SentencePair[Token]]:
    """ALBERT's pairs: label 0 = order kept, 1 = swapped. See ``sentence_pairs``."""
    return sentence_pairs(documents, index, max_length, rng, "sentence-order", short_probability)


def pair_examples(
    documents: Sequence[Document[int]],
    cls_id: int,
    sep_id: int,
    max_length: int,
    objective: Literal["next-sentence", "sentence-order"],
    rng: random.Random,
    short_probability: float = 0.1,
) -> Iterator[dict[str, Any]]:
    """The pairs of every document in turn as examples for a collator: ``input_ids``,
    ``token_type_ids`` and the objective's label.
    """
    for index in range(len(documents)):
        for pair in sentence_pairs(documents, index, max_length, rng, objective, short_probability):
            packed = pack_pair(pair, cls_id, sep_id)
            yield {
                "input_ids": packed.tokens,
                "token_type_ids": packed.token_type_ids,
                f"{objective.replace('-', '_')}_label": pair.label,
            }


def truncate_pair(first: list[Token], second: list[Token], room: int, rng: random.Random) -> None:
    """Shorten both *in place* until they fit: one token at a time from the longer, at its front or
    its end by the toss of a coin.
    """
    while len(first) + len(second) > room:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)


def _join(sentences: Iterable[Sequence[Token]]) -> list[Token]:
    return [token for sentence in sentences for token in sentence]


def _other_document(count: int, index: int, rng: random.Random) -> int:
    """Any document but ``index``; after ten tries that one too (a corpus may hold no other)."""
    for _ in range(10):
        other = rng.randint(0, count - 1)
        if other != index:
            break
    return other


def _stretch(document: Document[Token], length: int, rng: random.Random) -> list[Token]:
    """Whole sentences from a random one on, until ``length`` tokens are there or the document
    ends.
    """
    tokens: list[Token] = []
    for sentence in document[rng.randint(0, len(document) - 1) :]:
        tokens.extend(sentence)
        if len(tokens) >= length:
            break
    return tokens


# --- translations
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Translation:
    """Joined sentences, all int64: ``input_ids``, ``position_ids`` and ``language_ids`` (batch,
    length), ``lengths`` (batch,).
    """

    input_ids: Tensor
    lengths: Tensor
    position_ids: Tensor
    language_ids: Tensor


def join_translations(
    first: Tensor,
    first_lengths: Tensor,
    first_language: int | Tensor,
    second: Tensor,
    second_lengths: Tensor,
    second_language: int | Tensor,
    pad_id: int,
    reset_positions: bool = True,
) -> Translation:
    """XLM's input for translation language modelling: each row of ``first`` (batch, length) is
    followed by its translation in ``second``.

    A sentence is ``</s> words </s>``; its length counts both ends. Languages are ids, one for all
    rows or (batch,). Positions start again at 0 in the second sentence; without ``reset_positions``
    they run on, and the two sentences share the ``</s>`` between them. Behind the end, padding goes
    on with the positions and the language of the second sentence, as in the reference.
    """
    overlap = 0 if reset_positions else 1
    total = first_lengths + second_lengths - overlap  # (batch,)
    place = torch.arange(int(total.max()), device=first.device).expand(len(first), -1)  # (batch, length)
    border = (first_lengths - overlap)[:, None]
    in_first = place < border  # eq: translation
    from_first = first.gather(1, place.clamp(max=first.shape[1] - 1))
    from_second = second.gather(1, (place - border).clamp(0, second.shape[1] - 1))
    input_ids = torch.where(in_first, from_first, torch.where(place < total[:, None], from_second, pad_id))
    position_ids = torch.where(in_first, place, place - border) if reset_positions else place.clone()  # eq: translation
    first_ids, second_ids = (
        torch.as_tensor(side, device=first.device).reshape(-1, 1) for side in (first_language, second_language)
    )
    language_ids = torch.where(in_first, first_ids, second_ids)  # eq: translation
    return Translation(input_ids, total, position_ids, language_ids)


# --- running text
# --------------------------------------------------------------------------------------------------------------------


def text_blocks(sentences: Iterable[Sequence[Token]], length: int, end: Token | None = None) -> Iterator[list[Token]]:
    """Blocks of ``length`` tokens of running text, ``end`` behind each sentence; a rest that fills
    no block is left out.
    """
    if length < 1:
        raise InputError(f"length={length} must be at least 1")
    block: list[Token] = []
    for sentence in sentences:
        for token in [*sentence, *([] if end is None else [end])]:
            block.append(token)
            if len(block) == length:
                yield block
                block = []
