"""Translation language modeling on real translations, and what it is good for: finding a sentence's
translation in another language.

    python examples/translation_retrieval.py --images docs/images

A tiny XLM reads messages of the user interfaces of Django and Wagtail in two languages at a time,
masked on both sides, positions counted from 0 in each half. Messages that it never saw are then
embedded, each language alone, as the mean of their states after the first block, and each English
one is searched for among the others. To compare with: chance, the same model before training, and
the words that both languages share. Draws the curve of the training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pretraining
import torch
from pretraining import LANGUAGES, LENGTH, OBJECTIVES, Corpus
from texts import PAD, SEP, Document
from torch import Tensor
from torch.nn import functional as F

from zoo.data.collate import pad_examples
from zoo.layers.pooler import pool

LAYER = 1  # the last one speaks the language of the words to guess


def embed(model: Any, documents: Sequence[Document], language: int, layer: int = LAYER) -> Tensor:
    """(messages, hidden): the mean state of each message in one language after so many blocks, the
    mean of all taken off, at length one.
    """
    model.eval()
    batch = pad_examples(
        [{"input_ids": [SEP, *document[language][: LENGTH // 2 - 2], SEP]} for document in documents], PAD
    )
    with torch.inference_mode():
        encoded = model.model(**batch, language_ids=language, output_hidden_states=True)
    hidden = encoded.hidden_states[layer]  # (messages, length, hidden)
    vectors = pool(hidden, batch["attention_mask"].bool(), "mean")
    return F.normalize(vectors - vectors.mean(0), dim=1)  # what all messages of a language share says nothing


def overlap(documents: Sequence[Document], language: int, vocab_size: int) -> Tensor:
    """The same from counts of tokens alone: right where both languages use one word."""
    counts = torch.zeros(len(documents), vocab_size)
    for number, document in enumerate(documents):
        for token in document[language]:
            counts[number, token] += 1
    return F.normalize(counts, dim=1)


def accuracy(first: Tensor, second: Tensor) -> float:
    """How often the nearest of ``second`` is the translation, searched both ways. A tie counts as a
    miss unless the first is right.
    """
    scores = first @ second.T  # (messages, messages)
    right = torch.arange(len(first))
    return float(((scores.argmax(1) == right).float().mean() + (scores.argmax(0) == right).float().mean()) / 2)


def retrieval(corpus: Corpus, fresh: Any, trained: Any) -> dict[str, list[float]]:
    """Accuracy for each language beside English: of shared words, before training and after."""
    found: dict[str, list[float]] = {"shared words": [], "before training": [], "after training": []}
    size = len(corpus.pieces)
    for language in range(1, 1 + len(LANGUAGES)):
        found["shared words"].append(
            accuracy(overlap(corpus.held_out, 0, size), overlap(corpus.held_out, language, size))
        )
        for name, model in (("before training", fresh), ("after training", trained)):
            found[name].append(accuracy(embed(model, corpus.held_out, 0), embed(model, corpus.held_out, language)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=OBJECTIVES["tlm"].steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the curve")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    corpus = pretraining.translated_corpus()
    objective = OBJECTIVES["tlm"]
    fresh, _ = pretraining.train(objective, corpus, 0, torch.Generator().manual_seed(options.seed))
    trained, curve = pretraining.train(
        objective, corpus, options.steps, torch.Generator().manual_seed(options.seed), tell=pretraining.aloud
    )
    pretraining.draw(curve, objective, options.images / "tlm.png")
    found = retrieval(corpus, fresh, trained)
    print(f"held-out loss {curve.held_out[0]:.3f} -> {curve.final:.3f}, unigram {curve.baseline:.3f}")
    count = len(corpus.held_out)
    print(
        f"{count} unseen messages, chance {1 / count:.1%}; {len(corpus.train)} to train on; "
        f"{time.perf_counter() - start:.0f} s"
    )
    for name, values in found.items():
        print(
            f"{name:16s}"
            + "  ".join(f"en-{language} {value:.1%}" for language, value in zip(LANGUAGES, values, strict=True))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
