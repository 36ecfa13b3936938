"""A corpus as token ids on disk, read through memory maps: as long as the disk is large.

    write_corpus(texts, tokenizer, "corpus")         # once
    corpus = Corpus("corpus", length=128)            # blocks of 128 tokens with [CLS] and [SEP]

Documents stand one after another with [SEP] between; a block takes the next tokens wherever a document
ends, as RoBERTa's FULL-SENTENCES crossing documents (Liu et al. 2019, section 4.2). Files hold plain
little-endian integers, 16 bits wide where the vocabulary allows, 32 otherwise; ``index.json`` comes last
and says what there must be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from zoo.data.collate import MaskedLMCollator
from zoo.errors import InputError
from zoo.formats.disk import UNFINISHED, write_atomically

if TYPE_CHECKING:
    from zoo.tokenization import Tokenizer

INDEX = "index.json"
SHARD = 1 << 27  # tokens in a file
BATCH = 1024  # texts that are tokenized together


def write_corpus(
    texts: Iterable[str], tokenizer: Tokenizer, folder: str | os.PathLike[str], *, shard: int = SHARD
) -> dict[str, Any]:
    """Tokenize documents into a folder -> what its index says: ``tokens`` by file, ``documents``.

    Memory holds one batch of texts. A folder with a corpus is refused. Raises InputError for a
    tokenizer without a separator and for no texts.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        raise InputError(f"{folder} holds a corpus already; choose another folder")
    separator, first = tokenizer.sep_token_id, tokenizer.cls_token_id
    if separator is None or first is None:
        raise InputError("this tokenizer has no tokens that begin and end a text, which blocks need")
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"tokens-*{UNFINISHED}"):
        leftover.unlink()
    kind = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    counts: list[int] = []
    documents, source, file = 0, iter(texts), None
    try:
        while chosen := list(islice(source, BATCH)):
            encodings = tokenizer.backend.encode_batch(
                [tokenizer.prepared(text) for text in chosen], add_special_tokens=False
            )
            documents += len(chosen)
            for encoding in encodings:
                if file is None or counts[-1] >= shard:
                    file = _next(folder, len(counts), file)
                    counts.append(0)
                ids = numpy.asarray([*encoding.ids, separator], dtype=f"<{kind[0]}{int(kind[4:]) // 8}")
                file.write(ids.tobytes())
                counts[-1] += len(ids)
    finally:
        if file is not None:
            file.close()
    if not documents:
        raise InputError("there are no texts to make a corpus of")
    for number in range(len(counts)):
        os.replace(folder / (_name(number) + UNFINISHED), folder / _name(number))
    about = {
        "version": 1,
        "dtype": kind,
        "tokens": counts,
        "documents": documents,
        "vocab_size": tokenizer.vocab_size,
        "cls": first,
        "sep": separator,
    }
    write_atomically(folder / INDEX, json.dumps(about, indent=1) + "\n")
    return about


def _name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _next(folder: Path, number: int, before: Any) -> Any:
    if before is not None:
        before.close()
    return (folder / (_name(number) + UNFINISHED)).open("wb")


class Corpus:
    """The blocks of a corpus: ``corpus[i]`` is ``length`` ids, [CLS] and [SEP] among them; the tokens
    behind the last whole block are left out.
    """

    def __init__(self, folder: str | os.PathLike[str], length: int) -> None:
        self.folder, self.length = Path(folder), length
        try:
            about = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            kind, self.cls, self.sep = str(about["dtype"]), int(about["cls"]), int(about["sep"])
            counts, self.vocab_size = [int(count) for count in about["tokens"]], int(about["vocab_size"])
        except FileNotFoundError:
            raise InputError(f"{self.folder} holds no finished corpus: it has no {INDEX}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder / INDEX} can't be read: {error}") from error
        if kind not in ("uint16", "uint32") or not counts or min(counts) < 0:
            raise InputError(f"{self.folder / INDEX} must say uint16 or uint32 and how many tokens, got {about}")
        if length < 3:
            raise InputError(f"length={length} leaves no room for words; it must be at least 3")
        self.files = []
        for number, count in enumerate(counts):
            path, width = self.folder / _name(number), int(kind[4:]) // 8
            size = path.stat().st_size if path.exists() else None
            if size != count * width:
                raise InputError(f"{path} must have {count * width:,} bytes, it has {size}; write the corpus anew")
            self.files.append(numpy.memmap(path, dtype=f"<u{width}", mode="r", shape=(count,)))
        self.starts = numpy.cumsum([0, *counts])
        if not len(self):
            raise InputError(f"{self.folder} holds {self.starts[-1]:,} tokens, too few for a block of {length}")

    def __len__(self) -> int:
        return int(self.starts[-1]) // (self.length - 2)

    def __getitem__(self, number: int) -> list[int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, room = number * (self.length - 2), self.length - 2
        found: list[int] = []
        file = int(numpy.searchsorted(self.starts, start, side="right")) - 1
        while len(found) < room:
            at = start + len(found) - int(self.starts[file])
            found += self.files[file][at : at + room - len(found)].tolist()
            file += 1
        return [self.cls, *found, self.sep]


@dataclass(frozen=True)
class MaskedCorpus:
    """Batches of blocks with words to guess, for `zoo.training.fit`: the order is drawn from ``seed`` and
    the epoch, and any place in it is reached at once.
    """

    corpus: Corpus
    collator: MaskedLMCollator
    batch_size: int = 32
    seed: int = 0

    def __len__(self) -> int:
        return -(-len(self.corpus) // self.batch_size)

    def epoch(self, number: int, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch from batch ``start`` on; of each the part of this process, (its number,
        how many there are).
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.corpus), generator=generator)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            places: Sequence[int] = order[first : first + self.batch_size].tolist()
            chosen = places[share[0] :: share[1]] or places[:1]
            ids = torch.tensor([self.corpus[place] for place in chosen])
            corrupted = self.collator.corrupt(ids, [ids.shape[1]] * len(ids))
            yield {**corrupted, "attention_mask": torch.ones_like(ids)}
