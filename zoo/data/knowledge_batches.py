"""Knowledge in the batch: sentence trees (K-BERT), entities beside tokens (ERNIE), n-grams (ZEN);
spans with candidates (KnowBert) are in `zoo.data.candidates`.

SentenceTreeCollator(graph, tokenizer.backend.token_to_id, ...)    for any (batch, query, key) attention_mask
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from zoo.data.knowledge.ngrams import NGram, NGramLexicon
from zoo.data.masking import IGNORED, python_random
from zoo.errors import ConfigError, InputError

K_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENT]", "[SUB]", "[PRE]", "[OBJ]")
"""What is never cut into pieces."""


class Lookup(Protocol):
    """What a sentence tree asks a graph: `zoo.data.knowledge.graph.KnowledgeGraph` has it."""

    def values(
        self, subject: str, *, predicate: bool = True, limit: int | None = None, joiner: str = ""
    ) -> list[str]: ...


@dataclass(frozen=True)
class SentenceTree:
    """A sentence with its branches laid flat, trunk word, its branches, next trunk word, ...

    ``positions``: the trunk counts past its branches, a branch counts on from the last token of its
    word. ``visible`` (tokens, tokens) bool: row sees column. ``inserted``: True where a token came
    from the graph.
    """

    tokens: list[str]
    positions: np.ndarray[Any, Any]
    visible: np.ndarray[Any, Any]
    inserted: np.ndarray[Any, Any]

    def cut(self, length: int) -> SentenceTree:
        """The first ``length`` tokens; a branch may lose its end."""
        return SentenceTree(
            self.tokens[:length], self.positions[:length], self.visible[:length, :length], self.inserted[:length]
        )


def sentence_tree(
    words: Iterable[str],
    graph: Lookup,
    *,
    pieces: Callable[[str], Sequence[str]] = list,
    max_entities: int = 2,
    predicate: bool = True,
    joiner: str = "",
    special: Collection[str] = K_BERT_SPECIAL,
) -> SentenceTree:
    """Graft up to ``max_entities`` facts behind each word that is a subject of the graph, the first
    ones of its file.

    ``pieces`` cuts words and facts into tokens: single characters for K-BERT's Chinese, a
    tokenizer's pieces for English. ``predicate``: a branch is predicate and object, with ``joiner``
    between them (a space for English), else the object alone. Words of ``special`` stay whole.
    """
    tokens: list[str] = []
    positions: list[int] = []
    word_of: list[int] = []
    branch_of: list[int] = []  # 0 on the trunk, else the number of the branch
    branches, last = 0, -1
    for number, word in enumerate(words):
        cut = [word] if word in special else list(pieces(word))
        tokens += cut
        positions += range(last + 1, last + 1 + len(cut))  # eq: soft-positions
        word_of += [number] * len(cut)
        branch_of += [0] * len(cut)
        last += len(cut)  # eq: soft-positions
        if not cut or not max_entities:
            continue
        for value in graph.values(word, predicate=predicate, limit=max_entities, joiner=joiner):
            grafted = list(pieces(value))
            branches += 1
            tokens += grafted
            positions += range(last + 1, last + 1 + len(grafted))  # eq: soft-positions
            word_of += [number] * len(grafted)
            branch_of += [branches] * len(grafted)
    owner, branch = np.array(word_of, np.int32), np.array(branch_of, np.int32)
    trunk = branch == 0  # eq: visible
    both = trunk[:, None] & trunk  # eq: visible
    same_branch = branch[:, None] == branch  # on the trunk: everyone with everyone  # eq: visible
    of_word = (owner[:, None] == owner) & (trunk[:, None] | trunk)  # eq: visible
    return SentenceTree(tokens, np.array(positions, np.int64), both | same_branch | of_word, ~trunk)  # eq: visible


def longest_subjects(units: Sequence[str], graph: Any, *, joiner: str = " ", max_units: int = 5) -> list[str]:
    """Words of a sentence with the subjects of ``graph`` in one piece, longest first from the left:
    a segmenter for English words (``joiner`` " ") or for single characters (``joiner`` "").
    """
    words: list[str] = []
    at = 0
    while at < len(units):
        for size in range(min(max_units, len(units) - at), 0, -1):
            word = joiner.join(units[at : at + size])
            if size == 1 or word in graph:
                words.append(word)
                at += size
                break
    return words


@dataclass(frozen=True, kw_only=True)
class SentenceTreeCollator:
    """Words of sentences -> a batch whose attention_mask is the visible matrix and whose
    position_ids are the soft positions.

    ``token_id`` gives a token's id, None for an unknown one, which becomes ``unknown_id``.
    ``segments``: the segment of the first sentence, one more behind each [SEP]; K-BERT begins at 1,
    BERT at 0. ``first_position``: the first token's, 0 but for RoBERTa and XLM-R, whose positions
    begin behind the padding's, at pad_token_id + 1. ``max_length``: longer trees are cut;
    ``to_max_length`` pads every batch to it. Padding stands at the last position and sees nothing.
    """

    graph: Lookup
    token_id: Callable[[str], int | None]
    unknown_id: int
    pad_id: int = 0
    pieces: Callable[[str], Sequence[str]] = list
    max_entities: int = 2
    predicate: bool = True
    joiner: str = ""
    special: Collection[str] = K_BERT_SPECIAL
    separator: str = "[SEP]"
    segments: int = 1
    first_position: int = 0
    max_length: int = 128
    to_max_length: bool = False

    def __post_init__(self) -> None:
        if self.max_entities < 0 or self.first_position < 0 or self.max_length < 1:
            given = f"max_entities={self.max_entities} and first_position={self.first_position}"
            raise ConfigError(f"{given} must not be negative, max_length={self.max_length} must be at least 1")

    def tree(self, words: Sequence[str]) -> SentenceTree:
        """The tree of one sentence, cut."""
        if isinstance(words, str):
            raise InputError(
                f"a sentence is a list of words, got the string {words[:40]!r}; segment it first, e.g. with "
                "longest_subjects"
            )
        grown = sentence_tree(
            words,
            self.graph,
            pieces=self.pieces,
            max_entities=self.max_entities,
            predicate=self.predicate,
            joiner=self.joiner,
            special=self.special,
        )
        if not grown.tokens:
            raise InputError("a sentence has no tokens")
        return grown.cut(self.max_length)

    def __call__(self, sentences: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """-> input_ids, token_type_ids, position_ids (batch, length) int64, attention_mask (batch,
        length, length) and inserted (batch, length) bool.
        """
        trees = [self.tree(words) for words in sentences]
        if not trees:
            raise InputError("a batch needs at least one sentence")
        length = self.max_length if self.to_max_length else max(len(tree.tokens) for tree in trees)
        ids = np.full((len(trees), length), self.pad_id, np.int64)
        positions = np.full((len(trees), length), self.first_position + length - 1, np.int64)
        kinds = np.zeros((len(trees), length), np.int64)
        visible = np.zeros((len(trees), length, length), bool)
        inserted = np.zeros((len(trees), length), bool)
        for row, tree in enumerate(trees):
            size = len(tree.tokens)
            found = (self.token_id(token) for token in tree.tokens)
            ids[row, :size] = [self.unknown_id if number is None else number for number in found]
            positions[row, :size] = self.first_position + tree.positions
            visible[row, :size, :size] = tree.visible
            inserted[row, :size] = tree.inserted
            ends = np.cumsum([0, *(token == self.separator for token in tree.tokens[:-1])])
            kinds[row, :size] = self.segments + np.minimum(ends, 1)
        arrays = {
            "input_ids": ids,
            "token_type_ids": kinds,
            "position_ids": positions,
            "attention_mask": visible,
            "inserted": inserted,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True, kw_only=True)
class EntityDenoising:
    """ERNIE's (Tsinghua) batches of entities: of the mentions ``replaced`` get another entity of
    the batch, ``dropped`` lose theirs; to be guessed is the original.

    ``vectors`` (entities, size), without a row for "no entity": its vector is zero.
    """

    vectors: torch.Tensor
    replaced: float = 0.05
    dropped: float = 0.15

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2:
            raise InputError(f"vectors must be (entities, size), got {tuple(self.vectors.shape)}")
        if self.replaced < 0 or self.dropped < 0 or self.replaced + self.dropped > 1:
            raise ConfigError(
                f"replaced={self.replaced} and dropped={self.dropped} must be shares that sum to at most 1"
            )

    def __call__(
        self, entity_ids: torch.Tensor, generator: torch.Generator | None = None, rng: Any = None
    ) -> dict[str, torch.Tensor]:
        """entity_ids (batch, length), -1 = no mention -> entity_embeds, entity_mask (position 0
        always counts), entity_candidates (the batch's entities in order of their ids, behind the
        zero vector), entity_labels (their numbers, -100 = no mention).

        ``rng``: a ``random.Random`` in place of the generator; for each mention it draws random(),
        then randint() where it is replaced.
        """
        self.check(entity_ids)
        rng = python_random(generator) if rng is None else rng
        known = sorted(set(entity_ids.flatten().tolist()) - {-1})
        number = {entity: place for place, entity in enumerate(known, 1)}
        labels = torch.tensor([[number.get(e, IGNORED) for e in row] for row in entity_ids.tolist()])
        seen = torch.tensor([[e if e == -1 else self._fate(e, known, rng) for e in row] for row in entity_ids.tolist()])
        mask = seen != -1
        mask[:, 0] = True
        return {
            "entity_embeds": self.look_up(seen),
            "entity_mask": mask.long(),
            "entity_candidates": self.look_up(torch.tensor([-1, *known])),
            "entity_labels": labels,
        }

    def batch(self, entity_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The inputs alone, nothing corrupted: entity_embeds and entity_mask."""
        self.check(entity_ids)
        mask = entity_ids != -1
        mask[:, 0] = True
        return {"entity_embeds": self.look_up(entity_ids), "entity_mask": mask.long()}

    def look_up(self, entity_ids: torch.Tensor) -> torch.Tensor:
        """The vectors of ids, zeros for -1."""
        found = self.vectors[entity_ids.clamp(min=0)]
        return found.masked_fill((entity_ids == -1).unsqueeze(-1), 0)

    def check(self, entity_ids: torch.Tensor) -> None:
        if entity_ids.dim() != 2 or entity_ids.is_floating_point():
            raise InputError(
                f"entity_ids must be (batch, length) whole numbers, got {tuple(entity_ids.shape)} of {entity_ids.dtype}"
            )
        if entity_ids.numel() and not (int(entity_ids.min()) >= -1 and int(entity_ids.max()) < len(self.vectors)):
            low, high = int(entity_ids.min()), int(entity_ids.max())
            raise InputError(
                f"entity_ids must lie in 0..{len(self.vectors) - 1}, or be -1 for no entity, got {low}..{high}"
            )

    def _fate(self, entity: int, known: Sequence[int], rng: Any) -> int:
        draw = rng.random()
        if draw < self.replaced:
            return known[rng.randint(1, len(known)) - 1]
        return -1 if draw < self.replaced + self.dropped else entity


def thinned(entity_ids: Sequence[int]) -> list[int]:
    """ERNIE's pre-training data: of a run of pieces with one entity every second keeps it, the
    first, the third, ... (-1 = none).
    """
    kept: list[int] = []
    for entity in entity_ids:
        kept.append(-1 if kept and kept[-1] == entity else entity)
    return kept


@dataclass(frozen=True, kw_only=True)
class NGramCollator:
    """ZEN's n-grams of a batch of token lists: matched, shuffled, and cut to a share of
    ``max_ngrams`` that grows with the text.

    ``max_length``: the length at which a text may have ``max_ngrams``; the matrix is as long as the
    longest text, or so long with ``to_max_length``.
    """

    lexicon: NGramLexicon
    max_length: int = 128
    max_ngrams: int = 128
    to_max_length: bool = False

    def choose(self, tokens: Sequence[str], rng: Any = None) -> list[NGram]:
        """The n-grams of one text in the order in which they are handed over. ``rng``: a
        ``random.Random``; None: not shuffled.
        """
        found = self.lexicon.matches(tokens)
        if rng is not None:
            rng.shuffle(found)
        return found[: math.ceil(len(tokens) / self.max_length * self.max_ngrams)]

    def __call__(
        self,
        texts: Sequence[Sequence[str]],
        first_lengths: Sequence[int],
        generator: torch.Generator | None = None,
        rng: Any = None,
    ) -> dict[str, torch.Tensor]:
        """texts: tokens with [CLS] and [SEP]; first_lengths: how many of them belong to the first
        sentence, both specials counted
        -> ngram_ids, ngram_mask, ngram_token_type_ids (batch, n-grams), ngram_positions (batch, length, n-grams).
        """
        rng = python_random(generator) if rng is None else rng
        chosen = [self.choose(tokens, rng) for tokens in texts]
        length = self.max_length if self.to_max_length else max(map(len, texts))
        most = self.max_ngrams if self.to_max_length else max(1, *map(len, chosen))
        if any(len(tokens) > length for tokens in texts):
            raise InputError(f"a text has {max(map(len, texts))} tokens, max_length={length}; cut it first")
        shape = (len(texts), most)
        ids, mask, kinds = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
        positions = torch.zeros(len(texts), length, most, dtype=torch.int64)
        for row, (ngrams, first) in enumerate(zip(chosen, first_lengths, strict=True)):
            for place, ngram in enumerate(ngrams):
                ids[row, place], mask[row, place], kinds[row, place] = ngram.number, 1, int(ngram.start >= first)
                positions[row, ngram.start : ngram.start + ngram.length, place] = 1
        return {"ngram_ids": ids, "ngram_mask": mask, "ngram_token_type_ids": kinds, "ngram_positions": positions}
