"""Search for pictures in six languages: an image tower and a text tower that were trained apart, joined on Tux Paint's
stamps and their captions.

    python examples/stamps_towers.py --stamps stamps/usr/share/tuxpaint/stamps --runs runs --images docs/images

Without the stamps this says how to get them; the towers' weights are fetched. EfficientNet-lite0 (trained on ImageNet)
reads the pictures and stays as it is, so that it runs once for each picture; MiniLM-L6 (a sentence encoder for English)
reads the captions. Both end in a linear map into one space, learned with CLIP's loss on captions in all six languages.
Four ways are compared on held-out pictures:

    untrained   both towers as they are, random maps: chance
    n-grams     a caption's characters, 1 to 4 in a row, in place of the text tower
    frozen      MiniLM as it is, only the maps are trained
    tuned       MiniLM is trained too

190 pictures are held out before any caption is looked at, the same as in stamps_retrieval.py, with all their
translations; pictures that look alike are one picture, and of equal captions each counts as right. With --save, the
tuned model is saved: `zoo search PICTURES "a purple hat" --model FOLDER`. Ranks of each run are kept in --runs, so
that a run that is there is not made again. A sheet with the pictures that were found is drawn there too: the stamps
are under GPL-2, so it is not meant for publishing under other terms.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from emoji_retrieval import aloud
from safetensors.torch import load_file, save_file
from stamps import Stamps, split, stamps, stamps_folder
from stamps_retrieval import AT, HELD_OUT, SEEDS, chance, hits, interval
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo.formats.disk import write_atomically
from zoo.models.dual_encoder import DualEncoder
from zoo.tasks.contrast import clip_loss
from zoo.tasks.metrics.vision import retrieval_ranks
from zoo.training.optimizers import decay_groups
from zoo.training.schedules import scheduler, warmup_times_decay

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ru": "Russian", "ja": "Japanese", "zh_CN": "Chinese"}
IMAGE, TEXT = "efficientnet-lite0", "minilm-l6-h384.all-minilm-l6-v2"
SIDE, SHIFT = 224, 16  # pixels of what the image tower reads, and by which its views are shifted
SIZE, BATCH, DROPOUT = 256, 64, 0.3
STEPS = {"untrained": 0, "n-grams": 300, "frozen": 300, "tuned": 150}
RATE, TOWER_RATE = 1e-3, 1e-4  # of the maps, and of the text tower
BUCKETS, LONGEST = 4096, 4  # n-grams are told apart by so many buckets, and are as long as this
BEST = 5  # pictures that are drawn for a caption
DIRECTIONS = {"t2i": "caption → picture", "i2t": "picture → caption"}


@dataclass(frozen=True)
class Data:
    """Captions by language and picture, "" where there is none, which of the pictures are held out, and what the
    image tower says of each ``view`` of each picture: (views, pictures, width).
    """

    captions: dict[str, list[str]]
    views: Tensor
    train: list[int]
    held_out: list[int]

    @property
    def told(self) -> Tensor:
        """(languages, pictures) bool: who has a caption."""
        return torch.tensor([[bool(text) for text in texts] for texts in self.captions.values()])


# --- the image tower --------------------------------------------------------------------------------------------------


def views(pixels: Tensor) -> list[Tensor]:
    """The middle of pictures (pictures, 3, side, side), and a part a little above, in a mirror."""
    start = SHIFT // 2
    middle = pixels[:, :, start : start + SIDE, start : start + SIDE]
    return [middle, pixels[:, :, :SIDE, start : start + SIDE].flip(-1)]


@torch.inference_mode()
def seen(pixels: Tensor, tower: Any, images: Any, batch: int = 25) -> Tensor:
    """What the tower says of each view: (views, pictures, width)."""
    tower.eval()
    plain = images.replace(resize="none", crop=None)  # the pictures have their size
    return torch.stack(
        [torch.cat([tower(plain(list(part))).pooler_output for part in view.split(batch)]) for view in views(pixels)]
    )


def features(given: Stamps, kept: Path) -> Tensor:
    """`seen` by EfficientNet-lite0, from the file where it is there for these pictures."""
    key = f"{zlib.crc32(' '.join(given.paths).encode()):08x}"
    if kept.is_file() and key in (found := load_file(kept)):
        return found[key]
    print("running the image tower", file=sys.stderr, flush=True)
    found = {key: seen(given.pixels, *image_tower())}
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, kept)
    return found[key]


def image_tower() -> tuple[Any, Any]:
    """EfficientNet-lite0 with its weights, and how it wants its pictures."""
    return zoo.create(IMAGE, pretrained=True), zoo.images(IMAGE)


def text_tower() -> tuple[Any, Any]:
    """MiniLM with its weights, and its tokenizer."""
    return zoo.create(TEXT, pretrained=True), zoo.tokenizer(TEXT)


# --- what captions are ------------------------------------------------------------------------------------------------


def n_grams(texts: Sequence[str]) -> Tensor:
    """(texts, buckets): how often each run of 1 to 4 characters occurs."""
    counts = torch.zeros(len(texts), BUCKETS)
    for row, text in zip(counts, texts, strict=True):
        padded = f" {text.casefold()} "
        for length in range(1, LONGEST + 1):
            for start in range(len(padded) - length + 1):
                row[zlib.crc32(padded[start : start + length].encode()) % BUCKETS] += 1
    return counts


def weighted(counts: Tensor, train: Sequence[int]) -> Tensor:
    """(languages, pictures, buckets) counts -> ``log(1 + count) · log(captions / those that have it)`` at length one;
    the second factor is that of captions to train on.
    """
    known = counts[:, list(train)].flatten(0, 1)
    rare = ((1 + len(known)) / (1 + (known > 0).sum(0))).log()
    return F.normalize(counts.log1p() * rare, dim=-1)


class Table(nn.Module):
    """Vectors of captions that are not trained: (languages, pictures, width)."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.width = vectors.shape[-1]

    def forward(self, language: Tensor, picture: Tensor) -> Tensor:
        return self.vectors[language, picture]


class TextTower(nn.Module):
    """A text model that reads captions; a caption's vector is the mean over its tokens."""

    def __init__(self, tower: Any, tokenizer: Any, captions: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.tower, self.width, self.unknown = tower, tower.config.hidden_size, tokenizer.encode("[UNK]").ids[1]
        self.ids = {name: [tokenizer.encode(text).ids for text in texts] for name, texts in captions.items()}
        self.rows = list(self.ids.values())

    def forward(self, language: Tensor, picture: Tensor) -> Tensor:
        rows = [torch.tensor(self.rows[i][j]) for i, j in zip(language.tolist(), picture.tolist(), strict=True)]
        lengths = torch.tensor([len(row) for row in rows])
        words = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (batch, length)
        real = torch.arange(words.shape[1]) < lengths[:, None]
        states = self.tower(words, attention_mask=real.long()).last_hidden_state  # zeros at padding
        return states.sum(1) / lengths[:, None]


@torch.inference_mode()
def table_of(text: TextTower, batch: int = 50) -> Table:
    """The vectors of a tower as it is."""
    text.eval()
    pictures = torch.arange(len(text.rows[0])).split(batch)
    rows = [torch.cat([text(torch.full_like(part, i), part) for part in pictures]) for i in range(len(text.rows))]
    return Table(torch.stack(rows))


# --- joined -----------------------------------------------------------------------------------------------------------


class Joined(nn.Module):
    """Captions and pictures in one space: ``unit(W_t text)`` and ``unit(W_v (picture - mean) / deviation)``."""

    def __init__(self, text: Any, pictures: Tensor, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.text = text
        self.text_projection = nn.Linear(text.width, size, bias=False)
        self.image_projection = nn.Linear(pictures.shape[-1], size, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("mean", pictures.mean(0))
        self.register_buffer("deviation", pictures.std(0) + 1e-3)
        with torch.no_grad():
            for layer in (self.text_projection, self.image_projection):
                layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)

    def texts(self, language: Tensor, picture: Tensor) -> Tensor:
        return F.normalize(self.text_projection(self.dropout(self.text(language, picture))), dim=1)

    def pictures(self, features: Tensor) -> Tensor:
        return F.normalize(self.image_projection(self.dropout((features - self.mean) / self.deviation)), dim=1)


def train(model: Joined, data: Data, steps: int, generator: torch.Generator, batch: int = BATCH) -> list[list[float]]:
    """Train in place -> for each tenth [step, the mean loss, the loss of held-out pictures in English]. Each picture of
    a batch comes with a caption in any language that has one.
    """
    maps = [p for name, p in model.named_parameters() if not name.startswith("text.")]
    groups = [{"params": maps, "lr": RATE, "weight_decay": 0.1}]
    groups += [{**group, "lr": TOWER_RATE} for group in decay_groups(model.text.named_parameters()) if group["params"]]
    optimizer = torch.optim.AdamW(groups)
    schedule = scheduler(optimizer, warmup_times_decay(1.0, steps, max(1, steps // 10)), 1.0)
    pictures, told, losses, curve = torch.tensor(data.train), data.told.float(), [], []
    model.train()
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # of dropout
    for step in range(1, steps + 1):
        picture = pictures[torch.randperm(len(pictures), generator=generator)[:batch]]
        language = torch.multinomial(told[:, picture].T, 1, generator=generator).squeeze(1)
        view = torch.randint(len(data.views), picture.shape, generator=generator)
        loss = clip_loss(
            model.pictures(data.views[view, picture]), model.texts(language, picture), model.logit_scale.exp()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % max(1, steps // 10) == 0:
            curve.append([step, sum(losses) / len(losses), held_out_loss(model, data)])
            losses.clear()
            aloud(step, model, {"loss": curve[-1][1], "held_out": curve[-1][2]})
    return curve


@torch.inference_mode()
def held_out_loss(model: Joined, data: Data) -> float:
    """The loss over all held-out pictures and their English captions."""
    model.eval()
    picture = torch.tensor(data.held_out)
    loss = clip_loss(
        model.pictures(data.views[0, picture]), model.texts(torch.zeros_like(picture), picture), model.logit_scale.exp()
    )
    model.train()
    return float(loss)


def as_dual_encoder(model: Joined, text: Any, image: Any) -> Any:
    """What was learned as one model of the zoo, from the towers that it was learned with. How features are centered and
    scaled goes into the image's projection: ``W (x - mean) / deviation = (W / deviation) x - (W / deviation) mean``.
    """
    size = model.text_projection.out_features
    made = DualEncoder.of(text, image, text_pooling="mean", projection_size=size, projection_bias=True)
    with torch.no_grad():
        weight = model.image_projection.weight / model.deviation
        made.image_projection.weight.copy_(weight)
        made.image_projection.bias.copy_(-(weight @ model.mean))
        made.text_projection.weight.copy_(model.text_projection.weight)
        made.logit_scale.copy_(model.logit_scale)
    return made.eval()


def save_towers(model: Joined, folder: Path) -> None:
    """The model with MiniLM's tokenizer and how EfficientNet wants its pictures: a folder for ``zoo search``."""
    (image, images), tokenizer = image_tower(), text_tower()[1]
    made = as_dual_encoder(model, model.text.tower, image)
    made.images = images
    zoo.save(made, folder, tokenizer=tokenizer)


# --- what was learned -------------------------------------------------------------------------------------------------


def right(data: Data, language: str) -> Tensor:
    """(captions, pictures) bool over the held-out pictures that have a caption in the language: the caption is this
    picture's own, or the same as its own, there or in English.
    """
    own = [plain(data.captions[language][number]) for number in told_in(data, language)]
    english = [plain(data.captions["en"][number]) for number in told_in(data, language)]
    both = list(zip(own, english, strict=True))
    return torch.tensor([[a == c or b == d for c, d in both] for a, b in both])


def told_in(data: Data, language: str) -> list[int]:
    """The held-out pictures that have a caption in the language."""
    return [number for number in data.held_out if data.captions[language][number]]


def plain(text: str) -> str:
    """A caption without case and what stands at its end."""
    return text.casefold().strip(" .。!")


@torch.inference_mode()
def scores(model: Joined, data: Data, language: str) -> Tensor:
    """(captions, pictures), held-out ones."""
    model.eval()
    picture = torch.tensor(told_in(data, language))
    place = torch.full_like(picture, list(data.captions).index(language))
    return model.texts(place, picture) @ model.pictures(data.views[0, picture]).T


def run(
    way: str,
    data: Data,
    make: Callable[[], TextTower],
    seed: int,
    steps: int,
    keep: Callable[[Joined], None] | None = None,
) -> dict[str, Any]:
    """One way with one seed: by language, how many stand before the first right one for each caption and picture; and
    how training went. ``keep`` gets the model.
    """
    begin, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    if way == "n-grams":
        text: Any = Table(weighted(torch.stack([n_grams(texts) for texts in data.captions.values()]), data.train))
    else:
        text = make() if way == "tuned" else table_of(make())
    model = Joined(text, data.views[0, data.train], SIZE, generator)
    curve = train(model, data, steps, generator) if steps else []
    ranks, first = {}, {}
    for name in data.captions:
        found = scores(model, data, name)
        ranks[name], first[name] = retrieval_ranks(found, right(data, name)), found.topk(BEST).indices.tolist()
    if keep is not None:
        keep(model)
    return {"ranks": ranks, "first": first, "curve": curve, "seconds": round(time.perf_counter() - begin)}


def unknown_share(text: TextTower, unknown: int) -> dict[str, float]:
    """For each language the share of word pieces that are [UNK]."""
    pieces = {name: [piece for row in rows for piece in row[1:-1]] for name, rows in text.ids.items()}
    return {name: some.count(unknown) / max(1, len(some)) for name, some in pieces.items()}


# --- what the runs say ------------------------------------------------------------------------------------------------


Runs = dict[str, list[dict[str, Any]]]  # of each way


def recalled(runs: Runs, way: str, language: str, direction: str, at: int) -> Tensor:
    """(seeds, captions or pictures): 1 where a right one is among the first ``at``."""
    return hits([run["ranks"][language] for run in runs[way]], direction, at)


def report(runs: Runs, data: Data, unknown: Mapping[str, float]) -> str:
    """Tables as Markdown: recall with intervals in each language, and paired differences of recall@5."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for (direction, arrow), dim in zip(DIRECTIONS.items(), (1, 0), strict=True):
        lines += [f"| {arrow} | | chance | {' | '.join(runs)} |", "| --- " * (3 + len(runs)) + "|"]
        for language, at in itertools.product(data.captions, AT):
            cells = [
                "{:.1%} ({:.1%} to {:.1%})".format(*interval(recalled(runs, way, language, direction, at), generator))
                for way in runs
            ]
            told = LANGUAGES[language] if at == AT[0] else ""
            by_chance = chance(right(data, language), at, dim)
            lines.append(f"| {told} | @{at} | {by_chance:.1%} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| language | held out | word pieces that are [UNK] |", "| --- | --- | --- |"]
    lines += [f"| {LANGUAGES[name]} | {len(told_in(data, name))} | {unknown[name]:.1%} |" for name in data.captions]
    pairs = [pair for pair in itertools.combinations(reversed(list(runs)), 2) if "untrained" not in pair]
    heads = [f"{one} less {other}, {arrow}" for one, other in pairs for arrow in DIRECTIONS.values()]
    lines += ["", f"| recall@5 | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for language in data.captions:
        cells = []
        for one, other in pairs:
            for direction in DIRECTIONS:
                apart = recalled(runs, one, language, direction, 5) - recalled(runs, other, language, direction, 5)
                mean, low, high = interval(apart, generator)
                cells.append(f"{mean:+.1%} ({low:+.1%} to {high:+.1%})" + ("" if low <= 0 <= high else " *"))
        lines.append(f"| {LANGUAGES[language]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_recall(runs: Runs, data: Data, path: Path) -> None:
    """Recall@5 of each way in each language with its interval, chance as a line."""
    pyplot = plotter()
    generator = torch.Generator().manual_seed(0)
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6), dpi=100, sharey=True)
    for axes, (direction, title), dim in zip(panels, DIRECTIONS.items(), (1, 0), strict=True):
        for number, way in enumerate(runs):
            rows = [interval(recalled(runs, way, name, direction, 5), generator) for name in data.captions]
            places = [place + (number - (len(runs) - 1) / 2) * 0.17 for place in range(len(rows))]
            arms = [[mean - low for mean, low, _ in rows], [high - mean for mean, _, high in rows]]
            axes.errorbar(places, [mean for mean, _, _ in rows], arms, fmt="o", markersize=4, capsize=2, label=way)
        for place, name in enumerate(data.captions):
            axes.hlines(chance(right(data, name), 5, dim), place - 0.4, place + 0.4, color="gray", linestyle="--")
        axes.set_xticks(range(len(data.captions)), [LANGUAGES[name] for name in data.captions], fontsize=8)
        axes.set_title(f"{title}, recall@5")
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=len(runs), frameon=False)
    figure.subplots_adjust(bottom=0.2, wspace=0.08)
    save(figure, path)


def examples(data: Data, count: int) -> list[int]:
    """Of the held-out pictures that have captions in all languages, those at even distances in the list."""
    full = [number for number in data.held_out if all(texts[number] for texts in data.captions.values())]
    return [full[place * len(full) // count] for place in range(count)]


def draw_ranks(run: Mapping[str, Any], data: Data, path: Path, count: int = 16) -> None:
    """For captions at even distances in the held-out list the place of the right picture in each language, and the
    caption of the picture that is first for the English one.
    """
    pyplot = plotter()
    chosen = examples(data, count)
    places = [
        [run["ranks"][name]["t2i"][told_in(data, name).index(number)] + 1 for name in data.captions]
        for number in chosen
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * count + 0.7), dpi=100)
    shades = [[math.log(place) for place in row] for row in places]
    axes.imshow(shades, cmap="RdYlGn_r", aspect="auto", vmin=0, vmax=math.log(len(data.held_out)), alpha=0.6)
    for row, (number, some) in enumerate(zip(chosen, places, strict=True)):
        for column, place in enumerate(some):
            axes.text(column, row, str(place), ha="center", va="center", fontsize=9)
        first = run["first"]["en"][told_in(data, "en").index(number)][0]
        found = data.captions["en"][told_in(data, "en")[first]]
        axes.text(len(some) - 0.4, row, "" if some[0] == 1 else f"first: {short(found)}", va="center", fontsize=8)
    axes.set_yticks(range(count), [short(data.captions["en"][number]) for number in chosen], fontsize=8)
    axes.set_xticks(range(len(data.captions)), [LANGUAGES[name] for name in data.captions], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)


def short(text: str, width: int = 36) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def plotter() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    plotter().close(figure)


def draw_sheet(run: Mapping[str, Any], data: Data, pixels: Tensor, path: Path, count: int = 16) -> None:
    """For the same captions in English the pictures ranked first; the right one is framed."""
    from PIL import Image, ImageDraw, ImageFont

    cell, words = 96, 260
    chosen, truth, all_told = examples(data, count), right(data, "en"), told_in(data, "en")
    sheet = Image.new("RGB", (words + BEST * (cell + 8), count * (cell + 8)), "white")
    pen, letters = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, number in enumerate(chosen):
        top = row * (cell + 8) + 4
        pen.text((8, top + cell // 2 - 8), short(data.captions["en"][number]), "black", letters)
        for place, found in enumerate(run["first"]["en"][all_told.index(number)]):
            picture = pixels[all_told[found]].permute(1, 2, 0).numpy()
            corner = (words + place * (cell + 8), top)
            sheet.paste(Image.fromarray(picture).resize((cell, cell)), corner)
            if truth[all_told.index(number), found]:
                frame = (corner[0] - 3, corner[1] - 3, corner[0] + cell + 2, corner[1] + cell + 2)
                pen.rectangle(frame, outline=(0, 150, 60), width=3)
    sheet.save(path)


def data_of(given: Stamps, seen: Callable[[Stamps], Tensor]) -> Data:
    """The pictures as the image tower sees them, with their captions, split as in stamps_retrieval.py."""
    places = {path: number for number, path in enumerate(given.paths)}
    train, rest = ([places[p] for p in part.paths] for part in split(given, HELD_OUT, torch.Generator().manual_seed(0)))
    return Data({name: given.texts(name) for name in LANGUAGES}, seen(given), train, rest)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, help="the folder of the stamps, where it isn't where Debian puts it")
    parser.add_argument("--ways", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="in place of the number of each way that is trained")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that keeps the ranks of each run")
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the drawings")
    parser.add_argument("--save", type=Path, help="a folder for the tuned model of the first seed, for zoo search")
    options = parser.parse_args(arguments)
    try:
        given = stamps(stamps_folder(options.stamps), SIDE + SHIFT)
        data = data_of(given, lambda some: features(some, options.runs / "towers-features.safetensors"))
        read = TextTower(*text_tower(), data.captions)
    except zoo.ZooError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(data.train)} pictures to train on, {len(data.held_out)} held out")
    found: Runs = {way: [] for way in options.ways}
    for seed, way in itertools.product(options.seeds, options.ways):
        steps = STEPS[way] and (options.steps or STEPS[way])
        kept = options.runs / f"towers-{way}-{steps}-{seed}.json"
        wanted = options.save is not None and way == "tuned" and seed == options.seeds[0]
        if wanted or not kept.is_file():
            print(f"{way}, seed {seed}", file=sys.stderr)
            keep = (lambda model: save_towers(model, options.save)) if wanted else None
            made = run(way, data, lambda: copy.deepcopy(read), seed, steps, keep)
            write_atomically(kept, json.dumps(made))
        found[way].append(json.loads(kept.read_text(encoding="utf-8")))
    print(report(found, data, unknown_share(read, read.unknown)))
    draw_recall(found, data, options.images / "stamps-search.png")
    best = found[options.ways[-1]][0]
    draw_ranks(best, data, options.images / "stamps-search-ranks.png")
    draw_sheet(best, data, given.pixels, options.runs / "towers-pictures.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
