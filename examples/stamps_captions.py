"""Captions for Tux Paint's stamps: a tiny UNIMO learns to write them from pictures and captions alone, and writes them
for pictures that it never saw.

    python examples/stamps_captions.py --stamps stamps/usr/share/tuxpaint/stamps --runs runs --images docs/images

Without the stamps this says how to get them; the image tower's weights are fetched. A region is a cell of
EfficientNet-lite0's last grid (7 x 7 cells of 32 pixels; the tower was trained on ImageNet and stays as it is). The
words start from nothing: the model sees 560 captions. 190 pictures are held out before any caption is looked at, the
same as in stamps_retrieval.py. What is written is scored by chrF and by whether it has the right head noun ("a slice
of pizza": slice), beside

    chance      the caption of a training picture drawn at random
    constant    the one training caption that is best for the other training pictures, for all pictures
    nearest     the caption of the training picture that the image tower finds most alike
    blind       what the model writes for another held-out picture

Captions of each run are kept in --runs, so that a run that is there is not made again, and its model in a folder there
for `zoo caption`. A sheet with pictures and their captions is drawn there too: the stamps are under GPL-2, so it is not
meant for publishing under other terms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import texts
import torch
from emoji_pictures import plain
from safetensors.torch import load_file, save_file
from stamps import Stamps, split, stamps, stamps_folder
from stamps_retrieval import HELD_OUT, SEEDS, interval
from stamps_towers import SHIFT, SIDE, image_tower, plotter, save, short, views
from torch import Tensor
from torch.nn import functional as F

import zoo
from zoo.data.regions.grid import cells_of
from zoo.data.regions.regions import Regions, stack
from zoo.formats.disk import write_atomically
from zoo.tasks.metrics.writing import chrf
from zoo.tokenization.wordpiece import wordpiece
from zoo.training import fit

TINY = {"num_layers": 2, "hidden_size": 128, "num_heads": 4, "intermediate_size": 512, "max_positions": 40}
VOCABULARY, STEPS, BATCH, RATE, DROPOUT, BEAMS = 3000, 1200, 64, 1e-3, 0.4, 3
CELLS, DRAWS = 12, 4  # of the 49 cells of a picture that training shows at once, and how often they are drawn
TUNED_ON = 100  # of the training pictures, on which the settings above were chosen (--tune)
IN_FRONT_OF = {"of", "in", "on", "with", "at", "for", "from", "and", "to", "by", "under", "over", "that", "is", "are"}


@dataclass(frozen=True)
class Data:
    """Captions by picture, the image tower's grids of each view of each picture (views, pictures, channels, rows,
    columns), and which pictures are held out.
    """

    captions: list[str]
    grids: Tensor
    train: list[int]
    held_out: list[int]

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of each channel over the cells of the training pictures."""
        known = self.grids[0, self.train].float()
        return known.mean((0, 2, 3)), known.std((0, 2, 3)) + 1e-3

    def regions(self, picture: int, view: int = 0, cells: Tensor | None = None) -> Regions:
        """The cells of a picture, all of them unless said."""
        found = cells_of(self.grids[view, picture][None].float(), (SIDE, SIDE))
        features, boxes = found.features[0], found.boxes[0]
        if cells is not None:
            features, boxes = features[cells], boxes[cells]
        return Regions(features, boxes, (SIDE, SIDE), format="normalised", detector="grid")


@torch.inference_mode()
def grids_of(given: Stamps, kept: Path, batch: int = 25) -> Tensor:
    """The tower's last grid of each view of each picture in half precision, from the file where it is there."""
    key = f"{zlib.crc32(' '.join(given.paths).encode()):08x}"
    if kept.is_file() and key in (found := load_file(kept)):
        return found[key]
    print("running the image tower", file=sys.stderr, flush=True)
    tower, images = image_tower()
    ready = images.replace(resize="none", crop=None)  # the pictures have their size
    found = torch.stack(
        [
            torch.cat([tower.grid(ready(list(part))).half() for part in view.split(batch)])
            for view in views(given.pixels)
        ]
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: found}, kept)
    return found


def data_of(given: Stamps, grids: Tensor, tune: bool = False) -> Data:
    """Captions without case and punctuation, split as in stamps_retrieval.py; ``tune``: held out are some of the
    training pictures, and the others are left out.
    """
    places = {path: number for number, path in enumerate(given.paths)}
    parts = split(given, HELD_OUT, torch.Generator().manual_seed(0))
    train, rest = ([places[path] for path in part.paths] for part in parts)
    if tune:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1)).tolist()
        rest, train = ([train[i] for i in sorted(some)] for some in (order[:TUNED_ON], order[TUNED_ON:]))
    return Data([plain(text) for text in given.texts()], grids, train, rest)


def tokenizer_of(data: Data) -> Any:
    """Word pieces of the training captions, ``[CLS] words [SEP]``."""
    backend = texts.learn_wordpiece([data.captions[number] for number in data.train], VOCABULARY)
    return wordpiece(backend.get_vocab(), max_length=TINY["max_positions"] - 1)


def train(data: Data, tokenizer: Any, seed: int, steps: int = STEPS, **settings: Any) -> Any:
    """A UNIMO that starts from random weights, trained on the captions of both views of each training picture,
    of which it sees some cells at a time. It learns from channels of mean 0 and deviation 1, which its weights take
    over in the end.
    """
    torch.manual_seed(seed)
    model = zoo.create(
        "unimo-base",
        task="masked-lm",
        generator=torch.Generator().manual_seed(seed),
        **TINY,
        vocab_size=tokenizer.vocab_size,
        visual_size=data.grids.shape[2],
        pad_token_id=texts.PAD,
        start_token_id=texts.CLS,
        end_token_id=texts.SEP,
        dropout=settings.pop("dropout", DROPOUT),
        attention_dropout=0.0,
    )
    mean, deviation = data.scale
    rows, regions = [], {}
    for number, view, draw in itertools.product(data.train, range(len(data.grids)), range(DRAWS)):
        cells = torch.randperm(data.grids.shape[3] * data.grids.shape[4])[:CELLS]
        shown = data.regions(number, view, cells)
        regions[name := f"{number}-{view}-{draw}"] = replace(shown, features=(shown.features - mean) / deviation)
        rows.append({"image": name, "text": data.captions[number]})
    chosen = {"steps": steps, "batch_size": BATCH, "lr": RATE, "seed": seed, "log_every": 100, **settings}
    fit(model, rows, tokenizer=tokenizer, regions=regions, on_event=aloud, **chosen)
    with torch.no_grad():  # from now on it reads cells as they are
        reads = model.model.image_embeddings.features
        reads.bias -= reads.weight @ (mean / deviation)
        reads.weight /= deviation
    return model


def aloud(row: Mapping[str, Any]) -> None:
    print(f"  step {row['step']}: loss {row['loss']:.3f}, {row['seconds']:.0f} s", file=sys.stderr, flush=True)


def written(model: Any, tokenizer: Any, data: Data, numbers: Sequence[int], **settings: Any) -> list[str]:
    """The model's captions for pictures."""
    write = zoo.pipeline(
        "image-captioning",
        model,
        tokenizer=tokenizer,
        regions=lambda paths: stack([data.regions(int(path)) for path in paths]),
        **{"num_beams": BEAMS, **settings},
    )
    return [found["text"] for found in write([str(number) for number in numbers])]


# --- what captions are compared by ------------------------------------------------------------------------------------


def head_noun(caption: str) -> str:
    """``"a slice of pizza"`` -> ``"slice"``, ``"two red apples"`` -> ``"apple"``: the last word before a preposition or
    the like, without a plural's s. A rule of thumb: the captions are short noun phrases, seldom sentences.
    """
    words = caption.split()
    end = next((place for place, word in enumerate(words) if place and word in IN_FRONT_OF), len(words))
    noun = words[end - 1] if words else ""
    return noun[:-1] if re.fullmatch(r"[a-z]{3,}[^su]s", noun) else noun


SCORES = {
    "chrF": lambda text, right: chrf(text, [right]),
    "head noun": lambda text, right: float(head_noun(text) == head_noun(right)),
}


def scored(found: Sequence[str], right: Sequence[str], name: str) -> Tensor:
    """(pictures,)"""
    return torch.tensor([SCORES[name](*pair) for pair in zip(found, right, strict=True)], dtype=torch.double)


def nearest(data: Data) -> list[str]:
    """For each held-out picture the caption of the training picture with the highest cosine of mean cells."""
    vectors = F.normalize(data.grids[0].float().mean((2, 3)), dim=1)
    alike = vectors[data.held_out] @ vectors[data.train].T
    return [data.captions[data.train[place]] for place in alike.argmax(1).tolist()]


def by_chance(data: Data, name: str) -> Tensor:
    """(pictures,): the mean score of all training captions."""
    known = [data.captions[number] for number in data.train]
    return torch.stack([scored(known, [data.captions[n]] * len(known), name).mean() for n in data.held_out])


def constant(data: Data, name: str) -> str:
    """The training caption with the highest mean score for all training pictures."""
    known = [data.captions[number] for number in data.train]
    means = {text: float(scored([text] * len(known), known, name).mean()) for text in dict.fromkeys(known)}
    return max(means, key=lambda text: means[text])


def table(data: Data, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """By way and score (seeds, pictures)."""
    right = [data.captions[number] for number in data.held_out]
    half = len(right) // 2  # neighbors in the list often stand in one folder, and are alike
    turned = [run["written"][half:] + run["written"][:half] for run in runs]
    found: dict[str, dict[str, Tensor]] = {way: {} for way in ("chance", "constant", "blind", "nearest", "UNIMO")}
    for name in SCORES:
        found["chance"][name] = by_chance(data, name)[None]
        found["constant"][name] = scored([constant(data, name)] * len(right), right, name)[None]
        found["nearest"][name] = scored(nearest(data), right, name)[None]
        found["UNIMO"][name] = torch.stack([scored(run["written"], right, name) for run in runs])
        found["blind"][name] = torch.stack([scored(some, right, name) for some in turned])
    return found


def report(found: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Scores with intervals, and the differences between the model and the others on the same pictures."""
    generator = torch.Generator().manual_seed(0)
    lines = [f"| | {' | '.join(SCORES)} |", "| --- " * (1 + len(SCORES)) + "|"]
    for way, scores in found.items():
        cells = ["{:.1%} ({:.1%} to {:.1%})".format(*interval(scores[name], generator)) for name in SCORES]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"| UNIMO less | {' | '.join(SCORES)} |", "| --- " * (1 + len(SCORES)) + "|"]
    for way, scores in found.items():
        if way == "UNIMO":
            continue
        cells = []
        for name in SCORES:
            mean, low, high = interval(found["UNIMO"][name] - scores[name], generator)
            cells.append(f"{mean:+.1%} ({low:+.1%} to {high:+.1%})" + ("" if low <= 0 <= high else " *"))
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def examples(data: Data, run: Mapping[str, Any], count: int = 16) -> str:
    """Captions at even distances in the held-out list, as Markdown; the best and the worst are not chosen."""
    places = [place * len(data.held_out) // count for place in range(count)]
    near = nearest(data)
    lines = ["| caption | UNIMO | nearest | chrF |", "| --- " * 4 + "|"]
    for place in places:
        right, found = data.captions[data.held_out[place]], run["written"][place]
        lines.append(
            f"| {right} | {found} | {near[place]} | {chrf(found, [right]):.0%}, {chrf(near[place], [right]):.0%} |"
        )
    return "\n".join(lines)


def draw(found: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Each way's scores with their intervals."""
    pyplot = plotter()
    generator = torch.Generator().manual_seed(0)
    figure, panels = pyplot.subplots(1, len(SCORES), figsize=(8, 2.6), dpi=100, sharey=True)
    for axes, name in zip(panels, SCORES, strict=True):
        for row, scores in enumerate(found.values()):
            mean, low, high = interval(scores[name], generator)
            axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=f"C{row}")
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        axes.set_title({"head noun": "right head noun"}.get(name, name))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].invert_yaxis()
    save(figure, path)


def draw_sheet(data: Data, run: Mapping[str, Any], pixels: Tensor, path: Path, count: int = 16) -> None:
    """Pictures with their captions (black) and the model's (blue)."""
    from PIL import Image, ImageDraw, ImageFont

    cell, words = 112, 380
    sheet = Image.new("RGB", (2 * (cell + words), (count + 1) // 2 * (cell + 8)), "white")
    pen, letters = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, place in enumerate(place * len(data.held_out) // count for place in range(count)):
        left, top = row % 2 * (cell + words), row // 2 * (cell + 8) + 4
        number = data.held_out[place]
        sheet.paste(Image.fromarray(pixels[number].permute(1, 2, 0).numpy()).resize((cell, cell)), (left, top))
        pen.text((left + cell + 10, top + 32), short(data.captions[number], 44), "black", letters)
        pen.text((left + cell + 10, top + 58), short(run["written"][place], 44), (20, 70, 170), letters)
    sheet.save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, help="the folder of the stamps, where it isn't where Debian puts it")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tune", action="store_true", help="hold out some of the training pictures and no others")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that keeps what each run wrote")
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the drawing")
    options = parser.parse_args(arguments)
    try:
        given = stamps(stamps_folder(options.stamps), SIDE + SHIFT)
        grids = grids_of(given, options.runs / "captions-grids.safetensors")
        data = data_of(given, grids, tune=options.tune)
    except zoo.ZooError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(data.train)} pictures to train on, {len(data.held_out)} held out")
    tokenizer, runs = tokenizer_of(data), []
    for seed in options.seeds:
        name = f"captions-{'tuned-' if options.tune else ''}{options.steps}-{seed}"
        kept = options.runs / f"{name}.json"
        if not kept.is_file():
            print(f"seed {seed}", file=sys.stderr)
            begin = time.perf_counter()
            model = train(data, tokenizer, seed, options.steps)
            found = written(model, tokenizer, data, data.held_out)
            seconds, parameters = round(time.perf_counter() - begin), model.num_parameters()
            model.search = zoo.Search(num_beams=BEAMS)
            zoo.save(model, options.runs / name, tokenizer)
            write_atomically(kept, json.dumps({"written": found, "seconds": seconds, "parameters": parameters}))
        runs.append(json.loads(kept.read_text(encoding="utf-8")))
    compared = table(data, runs)
    print(report(compared))
    print(examples(data, runs[0]))
    draw(compared, options.images / "stamps-captions.png")
    draw_sheet(data, runs[0], given.pixels, options.runs / "captions-pictures.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
