"""Image-text retrieval on Tux Paint's stamps: tiny models of several families learn from the same pictures, captions
and steps, and search pictures that they never saw.

    python examples/stamps_retrieval.py --stamps stamps/usr/share/tuxpaint/stamps --runs runs --images docs/images

Without the stamps this says how to get them. A region is a cell of a grid over the picture, 16 x 16 pixels, no
detector's. 190 pictures are held out before any caption is looked at, the same for every model and seed; pictures
that look alike are one picture, and of equal captions each counts as right. Every model is trained on image-text
matching and masked words, as in emoji_retrieval.py. Ranks of each run are kept in --runs, so that a run that is there
is not made again. Printed are recall@1, 5 and 10 both ways, with 95 % intervals bootstrapped over pictures and seeds,
and the differences between models on the same pictures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import emoji_retrieval
import texts
import torch
from emoji_pictures import Pictures, alike, plain
from emoji_retrieval import TINY, TINY_STREAM, Data, Family, Learn, aloud, captions, middle, one_pass, regions
from stamps import Stamps, split, stamps, stamps_folder
from torch import Tensor

import zoo
from zoo.formats.disk import write_atomically
from zoo.tasks.metrics.vision import retrieval_ranks
from zoo.training.adversarial import Adversarial, attacks

HELD_OUT, VOCABULARY, STEPS, SEEDS = 190, 800, 2000, (0, 1, 2)
AT = (1, 5, 10)
LONG = {"max_positions": 128}  # some captions are sentences
WIDE = TINY | LONG | {"hidden_size": 200, "num_heads": 4, "intermediate_size": 800}
LXMERT = (
    TINY
    | LONG
    | {"image_num_layers": 1, "cross_num_layers": 1, "num_layers": 1, "hidden_size": 160, "intermediate_size": 640}
    | {"predict_regions": False, "predict_answers": False}
)
FAMILIES = {
    "VisualBERT": Family("visualbert-base", WIDE, 1, False, STEPS, 1e-3),
    "UNITER": Family("uniter-base", WIDE | {"region_target_size": 1, "alignment_weight": 0.0}, 1, False, STEPS, 1e-3),
    "LXMERT": Family("lxmert-base", LXMERT, 1, False, STEPS, 1e-3),
    "ViLBERT": Family("vilbert-base", TINY | TINY_STREAM | LONG, 0, True, STEPS, 1e-3),
    "ERNIE-ViL": Family("ernie-vil-base", TINY | TINY_STREAM | LONG, 1, True, STEPS, 1e-3),
}
"""Sizes of like numbers of parameters, within a fifth of each other."""
ADVERSARIAL = Adversarial(steps=3, text_lr=0.1, image_lr=1.0)
"""VILLA's three steps and divergence; before training, each moves a caption's embeddings by about 2 % of their length
and a picture's pixels by 1.3 %. Chosen beforehand, not tuned.
"""
ON = ", adversarial"  # behind the name of a model that is trained so


def data(given: Stamps, held_out: int = HELD_OUT) -> Data:
    """English captions as words without case and punctuation; the word pieces are those of the training captions."""

    def named(some: Stamps) -> Pictures:
        return Pictures(some.paths, [plain(text) for text in some.texts()], some.pixels)

    train, rest = (named(part) for part in split(given, held_out, torch.Generator().manual_seed(0)))
    return Data(train, rest, texts.learn_wordpiece(train.names, VOCABULARY))


def belongs(names: Sequence[str]) -> Tensor:
    """(names, pictures) bool: whether a picture's own name is this one."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    ids = torch.tensor([numbers[name] for name in names])
    return ids[:, None] == ids


def ranks_of(family: Family, given: Data, seed: int, learn: Learn = one_pass, **size: Any) -> dict[str, Any]:
    """One run: how many stand before the first right one, for each held-out name and picture; and each tenth of the
    training, what it lost on pairs that it was trained on and on held-out pairs.
    """
    begin, pairs, curve = time.perf_counter(), held_out_pairs(given), []

    def watch(step: int, model: Any, losses: Mapping[str, float]) -> None:
        aloud(step, model, losses)
        held_out, accuracy = matching(family, model, given, *pairs)
        curve.append([step, losses["image_text_matching"], held_out, accuracy])

    generator = torch.Generator().manual_seed(seed)
    model = emoji_retrieval.train(family, given, family.steps, generator, watch=watch, learn=learn, **size)
    found = retrieval_ranks(emoji_retrieval.scores(family, model, given, given.held_out), belongs(given.held_out.names))
    seconds = round(time.perf_counter() - begin)
    return {**found, "parameters": model.num_parameters(), "seconds": seconds, "curve": curve}


def held_out_pairs(given: Data, times: int = 4) -> tuple[Tensor, Tensor]:
    """Names for each held-out picture ``times`` over, half of them another's, drawn as in training -> their numbers,
    and which are right.
    """
    names = given.held_out.names
    picture = torch.arange(len(names)).repeat(times)
    name, right = captions(picture, alike(names), torch.Generator().manual_seed(0))
    return name, right | belongs(names)[name, picture]


@torch.inference_mode()
def matching(family: Family, model: Any, given: Data, name: Tensor, right: Tensor) -> tuple[float, float]:
    """The loss of image-text matching on held-out pairs, and the share that is judged rightly."""
    pictures = given.held_out
    ids = [torch.tensor(row) for row in given.ids(pictures.names)]
    words = torch.nn.utils.rnn.pad_sequence([ids[number] for number in name.tolist()], batch_first=True)
    times = len(name) // len(pictures)
    seen = {key: torch.cat([value] * times) for key, value in regions(middle(pictures.pixels), model).items()}
    encoded = model.eval().model(words, attention_mask=words.ne(texts.PAD).long(), **seen)
    model.train()
    logits = model.heads["image_text_matching"](encoded.pooler_output)
    labels = torch.where(right, family.match, 1 - family.match)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def against(chosen: Adversarial, first: int) -> Learn:
    """``first`` plain steps, then adversarial ones. The losses told of these are of their first pass, where nothing is
    perturbed yet.
    """
    steps = itertools.count()

    def learn(model: Any, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        if next(steps) < first:
            return one_pass(model, batch)
        losses: Mapping[str, Tensor] = {}
        for attack in attacks(loss_and_output, model, batch, chosen):
            attack.loss.backward(retain_graph=not attack.last)
            losses = losses or attack.outputs[0].losses
        return losses

    return learn


def loss_and_output(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Any]:
    output = model(**batch)
    return output.loss, output


# --- what the runs say ------------------------------------------------------------------------------------------------


def hits(runs: Sequence[dict[str, Any]], direction: str, at: int) -> Tensor:
    """(seeds, pictures): 1 where a right one is among the first ``at``."""
    return (torch.tensor([run[direction] for run in runs]) < at).double()


def interval(values: Tensor, generator: torch.Generator, draws: int = 4000) -> tuple[float, float, float]:
    """The mean of (seeds, pictures), and its 95 % interval when pictures and seeds are drawn anew."""
    seeds = torch.randint(len(values), (draws, len(values)), generator=generator)
    pictures = torch.randint(values.shape[1], (draws, values.shape[1]), generator=generator)
    weights = torch.zeros(draws, values.shape[1], dtype=values.dtype)
    weights.scatter_add_(1, pictures, torch.ones_like(pictures, dtype=values.dtype))
    counts = torch.zeros(draws, len(values), dtype=values.dtype)
    counts.scatter_add_(1, seeds, torch.ones_like(seeds, dtype=values.dtype))
    means = ((counts @ values) * weights).sum(1) / values.numel()
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return float(values.mean()), low, high


def chance(right: Tensor, at: int, dim: int) -> float:
    """How often a right one is among the first ``at`` of a random order."""
    count, each = right.shape[dim], right.sum(dim)
    miss = torch.ones(len(each), dtype=torch.double)
    for place in range(at):
        miss *= (count - each - place).clamp(min=0) / (count - place)
    return float(1 - miss.mean())


def report(runs: dict[str, list[dict[str, Any]]], right: Tensor) -> str:
    """Tables as Markdown: recall with intervals, and paired differences of recall@5."""
    generator = torch.Generator().manual_seed(0)
    directions, lines = {"t2i": "caption → picture", "i2t": "picture → caption"}, []
    for (direction, arrow), dim in zip(directions.items(), (1, 0), strict=True):
        lines += [f"| {arrow} | parameters | seeds | @1 | @5 | @10 |", "| --- " * (3 + len(AT)) + "|"]
        lines.append(f"| chance | | | {' | '.join(f'{chance(right, at, dim):.1%}' for at in AT)} |")
        for name, some in runs.items():
            cells = ["{:.1%} ({:.1%} to {:.1%})".format(*interval(hits(some, direction, at), generator)) for at in AT]
            lines.append(f"| {name} | {some[0]['parameters']:,} | {len(some)} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| recall@5 | " + " | ".join(directions.values()) + " |", "| --- | --- | --- |"]
    for first, second in itertools.combinations(runs, 2):
        count = min(len(runs[first]), len(runs[second]))
        cells = []
        for direction in directions:
            apart = hits(runs[first][:count], direction, 5) - hits(runs[second][:count], direction, 5)
            mean, low, high = interval(apart, generator)
            cells.append(f"{mean:+.1%} ({low:+.1%} to {high:+.1%})" + ("" if low <= 0 <= high else " *"))
        lines.append(f"| {first} less {second} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: dict[str, list[dict[str, Any]]], right: Tensor, path: Path) -> None:
    """Recall of each model with its interval, chance as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    generator = torch.Generator().manual_seed(0)
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), dpi=100, sharey=True)
    shown = zip(panels, (("t2i", "caption → picture", 1), ("i2t", "picture → caption", 0)), strict=True)
    for axes, (direction, title, dim) in shown:
        for number, (name, some) in enumerate(runs.items()):
            rows = [interval(hits(some, direction, at), generator) for at in AT]
            places = [place + (number - (len(runs) - 1) / 2) * 0.15 for place in range(len(AT))]
            means = [mean for mean, _, _ in rows]
            arms = [[mean - low for mean, low, _ in rows], [high - mean for mean, _, high in rows]]
            axes.errorbar(places, means, arms, fmt="o", capsize=3, label=name)
        for place, at in enumerate(AT):
            axes.hlines(chance(right, at, dim), place - 0.4, place + 0.4, color="gray", linestyle="--")
        axes.set_xticks(range(len(AT)), [f"recall@{at}" for at in AT])
        axes.set_title(title)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The loss of image-text matching in training and on held-out pairs, the mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), dpi=100)
    for number, (name, some) in enumerate(runs.items()):
        steps, trained, held_out, _ = (
            torch.tensor([run["curve"] for run in some], dtype=torch.double).mean(0).T.tolist()
        )
        axes.plot(steps, trained, f"C{number}--", label=f"{name}: training")
        axes.plot(steps, held_out, f"C{number}-", label=f"{name}: held out")
    axes.axhline(math.log(2), color="gray", linewidth=0.8)  # what a coin loses
    axes.set_xlabel("step")
    axes.set_ylabel("loss of image-text matching")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, help="the folder of the stamps, where it isn't where Debian puts it")
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--adversarial",
        action="store_true",
        help="compare UNITER with and without adversarial training in the last fifth of its steps, not --models",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that keeps the ranks of each run")
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the drawing")
    options = parser.parse_args(arguments)
    try:
        given = data(stamps(stamps_folder(options.stamps)))
    except zoo.ZooError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(given.train)} pictures to train on, {len(given.held_out)} held out")
    names = ["UNITER" + ON, "UNITER"] if options.adversarial else options.models
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed, name in itertools.product(options.seeds, names):
        kept = options.runs / f"{name.replace(', ', '-')}-{options.steps}-{seed}.json"
        if not kept.is_file():
            print(f"{name}, seed {seed}", file=sys.stderr)
            family = replace(FAMILIES[name.removesuffix(ON)], steps=options.steps)
            learn = against(ADVERSARIAL, options.steps * 4 // 5) if name.endswith(ON) else one_pass
            run = ranks_of(family, given, seed, learn)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(run))
        found[name].append(json.loads(kept.read_text(encoding="utf-8")))
    right = belongs(given.held_out.names)
    print(report(found, right))
    drawn = options.images / ("stamps-adversarial.png" if options.adversarial else "stamps-retrieval.png")
    draw(found, right, drawn)
    if told := {name: some for name, some in found.items() if all("curve" in run for run in some)}:
        draw_curves(told, drawn.with_stem(f"{drawn.stem}-curves"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
