"""MASS on real messages: a tiny model is pre-trained on texts in two languages, tuned on translations
and then translates messages that it never saw.

    python examples/mass_translation.py --runs runs
    python examples/mass_translation.py --seeds 0 --steps 300 300    a shorter run

The messages are those of the user interfaces of Django, Wagtail, Oscar and pretix, without
placeholders and markup, lowercase and without accents. Every eighth message of three words or more
of Django and Wagtail is held out; no catalogue's translation of it is learned from. What is written
is scored by chrF, beside

    copy        the source as it stands
    memory      a translation memory: the translation of the training message that is most alike (by chrF)
    pairs       the same model tuned without pre-training, for as many steps of tuning
    mass        pre-trained on both languages first

What each run wrote is kept in --runs, so that a run that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import texts
import torch
from texts import MASK, PAD, SEP

import zoo
from zoo.checkpoints.fetching.fetch import fetch
from zoo.data.masking import python_random
from zoo.data.span_masking import SpanCollator, pair_batch
from zoo.formats.disk import write_atomically
from zoo.tasks.metrics.writing import chrf
from zoo.training.optimizers import BertAdam, clip_gradients, decay_groups
from zoo.training.schedules import scheduler, warmup_times_decay

LANGUAGES = ("en", "de")
MORE = ("package:django-oscar==4.2.1#oscar", "package:pretix==2026.8.0#pretix/locale")  # beside texts.CATALOGUES
VOCABULARY, LENGTH, EVERY, SEEDS = 4000, 48, 8, (0, 1, 2)
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "num_heads": 4,
    "num_layers": 2,
    "decoder_num_layers": 2,
    "max_positions": LENGTH,
    "pad_token_id": PAD,
    "end_token_id": SEP,
    "mask_token_id": MASK,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
STEPS, BATCH, RATE, BEAMS = (2000, 5000), 32, 1e-3, 4


@dataclass(frozen=True)
class Data:
    """Messages in both languages, as text and as ids; ``pieces`` by id. Those of Django and Wagtail, ``near`` in
    number, come first.
    """

    train: list[tuple[str, ...]]
    held_out: list[tuple[str, ...]]
    train_ids: list[tuple[list[int], ...]]
    held_out_ids: list[tuple[list[int], ...]]
    pieces: list[str]
    near: int

    def text(self, ids: Sequence[int]) -> str:
        """Pieces as words."""
        words = " ".join(self.pieces[number] for number in ids if number not in (PAD, SEP))
        return words.replace(" ##", "")


def data() -> Data:
    """All messages; those held out by their English."""
    languages = LANGUAGES[1:]
    cleaned = ({language: bare(text) for language, text in row.items()} for row in texts.translations(languages))
    near = {row["en"].lower(): row for row in cleaned if all(row.values())}
    long = [key for key in near if len(key.split()) >= 3]
    kept = set(long[::EVERY])
    rows = {key: row for key, row in near.items() if key not in kept}
    count = len(rows)
    for source in MORE:
        catalogues = fetch(source).rglob(f"{languages[0]}/LC_MESSAGES/django.po")
        for message, translation in (pair for path in catalogues for pair in texts.messages(path.read_text("utf-8"))):
            row = {"en": bare(message), languages[0]: bare(translation)}
            if all(row.values()) and row["en"].lower() not in kept:
                rows[f"{row['en']} {row[languages[0]]}".lower()] = row
    learner = texts.learn_wordpiece((row[language] for row in rows.values() for language in LANGUAGES), VOCABULARY)

    def ids(row: Mapping[str, str]) -> tuple[list[int], ...]:
        return tuple(
            [SEP, *learner.encode(row[language], add_special_tokens=False).ids[: LENGTH - 2], SEP]
            for language in LANGUAGES
        )

    pieces = texts.pieces_of(learner)
    held = [near[key] for key in long[::EVERY]]
    train_ids, held_ids = [ids(row) for row in rows.values()], [ids(row) for row in held]
    made = Data([], [], train_ids, held_ids, pieces, count)
    train, held_out = ([tuple(map(made.text, row)) for row in found] for found in (train_ids, held_ids))
    return Data(train, held_out, train_ids, held_ids, pieces, count)


def bare(message: str) -> str:
    """A message without placeholders, and without the quotes that stood around them."""
    return " ".join(re.sub(r"(?<!\w)['’-]+|['’-]+(?!\w)", " ", texts.plain(message)).split())


# --- training ---------------------------------------------------------------------------------------------------------


def spans(found: Data, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Endless batches of texts without a span, a language at a time, as the paper has them."""
    collate = SpanCollator(mask_id=MASK, vocab_size=len(found.pieces), pad_id=PAD, first_word=len(texts.SPECIAL_TOKENS))
    rng = python_random(generator)
    while True:
        language = rng.randrange(len(LANGUAGES))
        examples = [{"input_ids": row[language], "language": language} for row in rng.choices(found.train_ids, k=BATCH)]
        yield collate([e for e in examples if len(e["input_ids"]) > 3], generator)


def pairs(found: Data, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Endless batches of translations, both ways in one batch, half of them of Django and Wagtail."""
    rng = python_random(generator)
    while True:
        examples = []
        near = rng.choices(found.train_ids[: found.near], k=BATCH // 2)
        for row in near + rng.choices(found.train_ids[found.near :], k=BATCH // 2):
            first = rng.randrange(2)
            ids = {"first": row[first], "second": row[1 - first]}
            examples.append({**ids, "first_language": first, "second_language": 1 - first})
        yield pair_batch(examples, PAD)


def train(model: Any, batches: Iterator[dict[str, Any]], steps: int, name: str) -> None:
    """So many steps, with a rate that rises and falls."""
    optimizer = BertAdam(decay_groups(model.named_parameters()), lr=RATE, betas=(0.9, 0.98))
    schedule = scheduler(optimizer, warmup_times_decay(RATE, max(1, steps), max(1, steps // 10)), RATE)
    model.train()
    started, losses = time.perf_counter(), []
    for step in range(1, steps + 1):
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model.parameters())
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % max(1, steps // 10) == 0:
            recent = losses[-max(1, steps // 10) :]
            mean, spent = sum(recent) / len(recent), time.perf_counter() - started
            print(f"  {name} {step}: loss {mean:.3f}, {spent:.0f} s", file=sys.stderr, flush=True)


def run(found: Data, seed: int, steps: Sequence[int]) -> dict[str, list[str]]:
    """What a model wrote for the held-out messages, by direction."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    sizes = {"vocab_size": len(found.pieces), "languages": LANGUAGES, **TINY}
    model = zoo.create("mass-ende-1024", task="conditional-generation", generator=generator, **sizes)
    if steps[0]:
        train(model, spans(found, generator), steps[0], "spans")
    train(model, pairs(found, generator), steps[1], "pairs")
    model.eval()
    return {direction: translated(model, found, *sides) for direction, sides in DIRECTIONS.items()}


DIRECTIONS = {"en-de": (0, 1), "de-en": (1, 0)}


def translated(model: Any, found: Data, source: int, target: int) -> list[str]:
    """The held-out messages in the other language."""
    written = []
    for start in range(0, len(found.held_out_ids), 32):
        batch = pair_batch(
            [{"first": row[source], "second": [SEP, SEP]} for row in found.held_out_ids[start:][:32]], PAD
        )
        sequences = zoo.generate(
            model,
            batch["input_ids"],
            batch["attention_mask"],
            language_ids=LANGUAGES[source],
            decoder_language_ids=LANGUAGES[target],
            num_beams=BEAMS,
            max_length=LENGTH,
        ).sequences
        written += [found.text(row) for row in sequences.tolist()]
    return written


# --- what it is compared with -----------------------------------------------------------------------------------------


def memory(found: Data, source: int, target: int) -> list[str]:
    """The translation of the training message that is most alike by chrF, of the 50 that share most groups of
    three letters.
    """
    table = [grams(row[source]) for row in found.train]
    written = []
    for row in found.held_out:
        wanted = grams(row[source])
        alike = [2 * len(wanted & each) / (len(wanted) + len(each) + 1) for each in table]
        best = sorted(range(len(table)), key=alike.__getitem__, reverse=True)[:50]
        nearest = max(best, key=lambda n: chrf(found.train[n][source], [row[source]]))
        written.append(found.train[nearest][target])
    return written


def grams(text: str) -> frozenset[str]:
    return frozenset(text[n : n + 3] for n in range(len(text) - 2))


def score(written: Sequence[str], found: Data, target: int) -> float:
    """The mean chrF of the messages, 0 to 100."""
    scores = [chrf(text, [row[target]]) if text else 0.0 for text, row in zip(written, found.held_out, strict=True)]
    return 100 * sum(scores) / len(scores)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of what was written")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, nargs=2, default=STEPS, help="of pre-training and of tuning")
    parser.add_argument("--shown", type=int, default=12, help="messages that are shown at the end")
    options = parser.parse_args(arguments)
    found = data()
    print(f"{len(found.train)} messages to learn from, {len(found.held_out)} held out, {len(found.pieces)} pieces")
    written: dict[str, dict[str, list[list[str]]]] = {
        "copy": {name: [[row[s] for row in found.held_out]] for name, (s, _) in DIRECTIONS.items()},
        "memory": {name: [memory(found, *sides)] for name, sides in DIRECTIONS.items()},
    }
    for kind, first in (("pairs", 0), ("mass", options.steps[0])):
        written[kind] = {name: [] for name in DIRECTIONS}
        for seed in options.seeds:
            path = options.runs / f"mass-{kind}-{first}-{options.steps[1]}-{seed}.json"
            if not path.is_file():
                started = time.perf_counter()
                made: dict[str, Any] = {**run(found, seed, (first, options.steps[1]))}
                made["seconds"] = time.perf_counter() - started
                write_atomically(path, json.dumps(made, ensure_ascii=False))
            kept = json.loads(path.read_text(encoding="utf-8"))
            print(f"{kind}, seed {seed}: {kept['seconds']:.0f} s")
            for name in DIRECTIONS:
                written[kind][name].append(kept[name])
    for kind, of in written.items():
        scores = {name: [score(each, found, DIRECTIONS[name][1]) for each in of[name]] for name in DIRECTIONS}
        print(f"{kind:7s}" + "".join(f"  {n} {' '.join(f'{s:.1f}' for s in many)}" for n, many in scores.items()))
    for number in random.Random(0).sample(range(len(found.held_out)), min(options.shown, len(found.held_out))):
        source, right = found.held_out[number]
        print(f"\n{source}\n  right   {right}")
        for kind in ("memory", "pairs", "mass"):
            print(f"  {kind:7s} {written[kind]['en-de'][0][number]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
