"""A tiny VisualBERT and a tiny ViLBERT learn on real pictures which words belong to them, then find
pictures that they never saw.

    python examples/emoji_retrieval.py --images docs/images
    python examples/emoji_retrieval.py --font font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

The pictures are emoji, drawn from Debian's Noto Color Emoji (without the font this says how to get
it); their English names are the captions. A region is a cell of a grid over the picture, no
detector's: 16 x 16 pixels. Both models are trained on image-text matching and masked words, half of
the wrong captions being ones that share words with the right one. Then each held-out name is scored
with each held-out picture: recall@1, 5 and 10 in both directions beside chance, and a drawing of
what was found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import texts
import torch
from emoji_pictures import Pictures, alike, draw_emoji, emoji, font_file, shared_words, split
from texts import CLS, MASK, PAD, SEP, SPECIAL_IDS
from tokenizers import Tokenizer
from torch import Tensor

import zoo
from zoo.data.collate import MaskedLMCollator
from zoo.data.regions.grid import grid_regions, patches
from zoo.tasks.metrics.vision import recall, retrieval_ranks
from zoo.training.optimizers import BertAdam, clip_gradients, decay_groups
from zoo.training.schedules import scheduler, warmup_times_decay

CROP, PATCH = 64, 16  # pixels of the part of a picture that is read, and of a region's side
VOCABULARY, HELD_OUT = 800, 200
TINY: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 128,
    "num_heads": 4,
    "intermediate_size": 512,
    "max_positions": 32,
    "visual_size": 3 * PATCH**2,
    "initializer_range": 0.09,  # 128^-0.5
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
TINY_STREAM: dict[str, Any] = {
    "image_hidden_size": 128,
    "image_num_layers": 2,
    "image_num_heads": 4,
    "image_intermediate_size": 512,
    "co_hidden_size": 128,
    "co_num_heads": 4,
    "text_connections": (1,),
    "image_connections": (1,),
    "image_dropout": 0.0,
    "image_attention_dropout": 0.0,
    "region_target_size": 1,  # no region is masked here
}


@dataclass(frozen=True)
class Family:
    """A variant and its tiny size; which label says "the words belong to the picture"; whether one
    text may meet many pictures.
    """

    variant: str
    size: dict[str, Any]
    match: int
    broadcasts: bool
    steps: int
    rate: float


FAMILIES = {
    "VisualBERT": Family("visualbert-base", TINY, 1, False, 2500, 1e-3),
    "ViLBERT": Family("vilbert-base", TINY | TINY_STREAM, 0, True, 2500, 1e-3),
}

Watch = Callable[[int, Any, Mapping[str, float]], None]
"""What is told of each tenth of a training: its last step, the model, and the mean of each loss."""
Learn = Callable[[Any, Mapping[str, Any]], Mapping[str, Tensor]]
"""What gives the parameters their gradients for a batch, and the losses by their names."""


def quiet(step: int, model: Any, losses: Mapping[str, float]) -> None:
    """Say nothing."""


def aloud(step: int, model: Any, losses: Mapping[str, float]) -> None:
    told = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    print(f"  step {step}: {told}", file=sys.stderr, flush=True)


def one_pass(model: Any, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
    output = model(**batch)
    output.loss.backward()
    return output.losses


# --- words and regions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Pictures to train on and held-out ones, with their names as token ids."""

    train: Pictures
    held_out: Pictures
    tokenizer: Tokenizer

    @classmethod
    def of(cls, pictures: Pictures, held_out: int, generator: torch.Generator, vocab_size: int = VOCABULARY) -> Data:
        train, rest = split(pictures, held_out, generator)
        return cls(train, rest, texts.learn_wordpiece(train.names, vocab_size))

    def ids(self, names: Sequence[str]) -> list[list[int]]:
        return [
            [CLS, *encoded.ids, SEP] for encoded in self.tokenizer.encode_batch(list(names), add_special_tokens=False)
        ]


def regions(pixels: Tensor, model: Any) -> dict[str, Tensor]:
    """(batch, 3, side, side) uint8 -> what the model reads: each patch of the picture as a
    region.
    """
    return grid_regions(pixels.float() / 255, patches(PATCH), size=None).for_model(model.config)


def middle(pixels: Tensor) -> Tensor:
    """The middle of each picture, as the held-out ones are read."""
    start = (pixels.shape[-1] - CROP) // 2
    return pixels[:, :, start : start + CROP, start : start + CROP]


def shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each picture, so that no model learns pixels by heart."""
    places = torch.randint(pixels.shape[-1] - CROP + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([picture[:, y : y + CROP, x : x + CROP] for picture, (y, x) in zip(pixels, places, strict=True)])


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    family: Family,
    data: Data,
    steps: int,
    generator: torch.Generator,
    *,
    batch: int = 64,
    watch: Watch = quiet,
    learn: Learn = one_pass,
    **size: Any,
) -> Any:
    """A trained model. Whatever is random comes from ``generator``; ``size`` overrides the
    family's.
    """
    vocab_size = data.tokenizer.get_vocab_size()
    model = zoo.create(
        family.variant, task="pretraining", generator=generator, vocab_size=vocab_size, **(family.size | size)
    )
    optimizer = BertAdam(decay_groups(model.named_parameters()), lr=family.rate, betas=(0.9, 0.98))
    schedule = scheduler(optimizer, warmup_times_decay(family.rate, steps, max(1, steps // 20)), family.rate)
    collate = MaskedLMCollator(
        mask_id=MASK, vocab_size=vocab_size, special_ids=SPECIAL_IDS, pad_id=PAD, probability=0.3
    )
    ids, near = data.ids(data.train.names), alike(data.train.names)
    sums: dict[str, float] = {}
    tenth = max(1, steps // 10)
    for step in range(1, steps + 1):
        picture = torch.randint(len(ids), (batch,), generator=generator)
        caption, belongs = captions(picture, near, generator)
        words = collate([{"input_ids": ids[i]} for i in caption.tolist()], generator)
        labels = words["labels"].masked_fill(~belongs[:, None], -100)  # of a wrong caption the picture says nothing
        given = {
            "input_ids": words["input_ids"],
            "attention_mask": words["attention_mask"],
            **regions(shifted(data.train.pixels[picture], generator), model),
            "labels": labels,
            "match_labels": torch.where(belongs, family.match, 1 - family.match),
        }
        optimizer.zero_grad()
        losses = learn(model, given)
        clip_gradients(model.parameters())
        optimizer.step()
        schedule.step()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss.detach())
        if step % tenth == 0:
            watch(step, model, {name: total / tenth for name, total in sums.items()})
            sums.clear()
    return model.eval()


def captions(picture: Tensor, near: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A caption for each picture, half of them another's: any other's, or one of the ``near`` ->
    their numbers, and who belongs.
    """
    count, share = len(picture), lambda: torch.rand(len(picture), generator=generator) < 0.5
    close = near[picture, torch.randint(near.shape[1], (count,), generator=generator)]
    any_other = (picture + torch.randint(1, len(near), (count,), generator=generator)) % len(near)
    belongs = share()
    return torch.where(belongs, picture, torch.where(share(), close, any_other)), belongs


# --- what was learned -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def scores(family: Family, model: Any, data: Data, pictures: Pictures) -> Tensor:
    """(names, pictures): how much each name belongs to each picture."""
    seen = regions(middle(pictures.pixels), model)
    found = []
    for row in data.ids(pictures.names):
        words = torch.tensor([row])
        encoded = model.model(words if family.broadcasts else words.expand(len(pictures), -1), **seen)
        matching = model.heads["image_text_matching"](encoded.pooler_output)
        found.append(matching[:, family.match] - matching[:, 1 - family.match])
    return torch.stack(found)


@torch.inference_mode()
def word_loss(model: Any, data: Data, generator: torch.Generator) -> tuple[float, float]:
    """The loss of masked words in held-out names beside their own pictures, and beside others'."""
    collate = MaskedLMCollator(
        mask_id=MASK, vocab_size=data.tokenizer.get_vocab_size(), special_ids=SPECIAL_IDS, pad_id=PAD, probability=0.3
    )
    words = collate([{"input_ids": row} for row in data.ids(data.held_out.names)], generator)
    given = {name: words[name] for name in ("input_ids", "attention_mask", "labels")}
    own = middle(data.held_out.pixels)
    others = own[torch.randperm(len(own), generator=generator)]
    return float(model(**given, **regions(own, model)).loss), float(model(**given, **regions(others, model)).loss)


def report(found: dict[str, Tensor]) -> str:
    """A table: recall in both directions for each model, and chance."""
    count = len(next(iter(found.values())))
    lines = [
        "                          name -> picture       picture -> name",
        "                        @1     @5    @10      @1     @5    @10",
    ]
    rows = {"chance": [k / count for k in (1, 5, 10)] * 2}
    for name, table in found.items():
        ranks = retrieval_ranks(table, range(count))
        rows[name] = [share for direction in ("t2i", "i2t") for share in recall(ranks[direction]).values()]
    return "\n".join(
        [
            *lines,
            *(
                f"{name:20s}" + "".join(f"{f'{v:.1%}':>{9 if i == 3 else 7}}" for i, v in enumerate(r))
                for name, r in rows.items()
            ),
        ]
    )


def draw(found: dict[str, Tensor], pictures: Pictures, font: Path, path: Path, queries: int = 8, best: int = 5) -> None:
    """For names at even distances in the held-out list, the pictures that each model ranks first;
    the right one is framed.
    """
    from PIL import Image, ImageDraw, ImageFont

    cell, words, gap, line = 68, 270, 24, 80
    width = words + len(found) * (best * (cell + 6) + gap)
    sheet = Image.new("RGB", (width, 34 + queries * line), "white")
    pen, letters = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    rows = [number * len(pictures) // queries for number in range(queries)]
    for column, (name, table) in enumerate(found.items()):
        left = words + column * (best * (cell + 6) + gap)
        pen.text((left, 8), f"{name}: the first {best} of {len(pictures)}", "black", letters)
        for row, query in enumerate(rows):
            top = 34 + row * line
            for place, number in enumerate(table[query].argsort(descending=True, stable=True)[:best].tolist()):
                corner = (left + place * (cell + 6), top + 4)
                sheet.paste(
                    draw_emoji(pictures.emoji[number], font, "white").resize((cell, 64), Image.Resampling.LANCZOS),
                    corner,
                )
                if number == query:
                    pen.rectangle(
                        (corner[0] - 2, corner[1] - 3, corner[0] + cell + 1, corner[1] + 66),
                        outline=(0, 150, 60),
                        width=3,
                    )
    for row, query in enumerate(rows):
        first, second = halves(pictures.names[query])
        pen.text((10, 34 + row * line + 20), f"{first}\n{second}", "black", letters)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(path, optimize=True)


def halves(name: str, width: int = 34) -> tuple[str, str]:
    """A name on two lines."""
    cut = len(name) if len(name) <= width else name.rfind(" ", 0, width)
    return name[:cut], name[cut:].strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf, where it lies elsewhere than Debian puts it")
    parser.add_argument("--steps", type=int, help="in place of each model's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the drawing")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    try:
        font = font_file(options.font)
        pictures = shared_words(emoji(font))
    except zoo.ZooError as error:
        print(error, file=sys.stderr)
        return 1
    data = Data.of(pictures, HELD_OUT, torch.Generator().manual_seed(options.seed))
    print(f"{len(data.train)} pictures to train on, {len(data.held_out)} held out; {time.perf_counter() - begin:.0f} s")
    found = {}
    for name, family in FAMILIES.items():
        start = time.perf_counter()
        model = train(
            family, data, options.steps or family.steps, torch.Generator().manual_seed(options.seed), watch=aloud
        )
        trained = time.perf_counter()
        found[name] = scores(family, model, data, data.held_out)
        own, others = word_loss(model, data, torch.Generator().manual_seed(options.seed))
        print(
            f"{name}: {model.num_parameters():,} parameters, trained in {trained - start:.0f} s, "
            f"{found[name].numel():,} pairs scored in "
            f"{time.perf_counter() - trained:.0f} s; masked words of held-out names: loss {own:.2f} beside their "
            f"pictures, {others:.2f} "
            "beside others'",
            flush=True,
        )
    print(report(found))
    draw(found, data.held_out, font, options.images / "emoji-retrieval.png")
    print(f"{time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
