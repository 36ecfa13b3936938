"""Real pictures with real names for the examples: emoji, drawn from a font and named by the Unicode
consortium's words.

    emoji(font_file())      every emoji that the font draws, with its English name and a small RGB picture

The names come out of a Python package that is fetched but not installed. The font, Noto Color
Emoji, is Debian's and is looked for where that package puts it. Nothing of either is copied into
this repository.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.fetching.fetch import fetch
from zoo.errors import InputError, missing_extra

NAMES = "package:emoji==2.16.0#emoji/unicode_codes/emoji.json"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
HOW = (
    "apt-get install fonts-noto-color-emoji\n"
    "or, without installing it,\n"
    "    apt-get download fonts-noto-color-emoji && dpkg-deb -x fonts-noto-color-emoji_*.deb font\n"
    "and then --font font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
)
CELL, BITMAP = (136, 128), 109  # pixels of one picture in the font, and the only size in which it draws
BACKGROUND = (124, 116, 104)  # ImageNet's mean, which features count as zero
QUALIFIED = 2  # the package's word for the spelling of an emoji that is to be shown as a picture


@dataclass(frozen=True)
class Pictures:
    """Emoji as texts, their names, and their pictures (emoji, 3, side, side) uint8."""

    emoji: list[str]
    names: list[str]
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def take(self, which: Sequence[int]) -> Pictures:
        return Pictures([self.emoji[i] for i in which], [self.names[i] for i in which], self.pixels[list(which)])


def font_file(given: Path | None = None) -> Path:
    """The font; an InputError says how to get it."""
    path = FONT if given is None else given
    if not path.is_file():
        raise InputError(
            f"{path} is not there: the pictures are drawn from Debian's font Noto Color Emoji. To get it:\n    {HOW}"
        )
    return path


def emoji(font: Path, side: int = 72, limit: int | None = None) -> Pictures:
    """All emoji of one or no skin tone, in the package's order; one of those that look alike, or
    are called alike.

    ``limit``: only the first so many. Emoji of several code points are drawn by Pillow's Raqm.
    """
    try:
        from PIL import Image, features
    except ImportError:
        raise missing_extra("drawing emoji", "pillow", "examples") from None
    if not features.check("raqm"):
        raise InputError(
            "this Pillow has no Raqm, which joins the code points of an emoji into one picture: apt-get install "
            "libraqm0"
        )
    table: dict[str, dict[str, Any]] = json.loads(fetch(NAMES).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, bytes]] = {}
    drawn: set[bytes] = set()
    for text, about in table.items():
        name = plain(about["en"])
        if about["status"] != QUALIFIED or not name or name in found or name.count("skin tone") > 1:
            continue
        if _face(font).getlength(text) > CELL[0]:
            continue  # the font has no one picture for it
        pixels = draw_emoji(text, font, BACKGROUND).resize((side, side), Image.Resampling.BILINEAR).tobytes()
        if pixels in drawn:
            continue
        drawn.add(pixels)
        found[name] = (text, pixels)
        if len(found) == limit:
            break
    stacked = torch.frombuffer(bytearray(b"".join(pixels for _, pixels in found.values())), dtype=torch.uint8)
    return Pictures(
        [text for text, _ in found.values()],
        list(found),
        stacked.view(-1, side, side, 3).permute(0, 3, 1, 2).contiguous(),
    )


def draw_emoji(text: str, font: Path, background: Any) -> Any:
    """One emoji as the font holds it, `CELL` pixels."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", CELL, background)
    ImageDraw.Draw(picture).text((0, 0), text, font=_face(font), embedded_color=True)
    return picture


@cache
def _face(font: Path) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(font), BITMAP)


def shared_words(pictures: Pictures, least: int = 4) -> Pictures:
    """Those whose every word stands in ``least`` names: what a word looks like can be learned from
    the others.
    """
    counts = Counter(word for name in pictures.names for word in set(name.split()))
    return pictures.take(
        [i for i, name in enumerate(pictures.names) if all(counts[word] >= least for word in name.split())]
    )


def plain(name: str) -> str:
    """ ":woman_firefighter_medium-light_skin_tone:" -> "woman firefighter medium light skin
    tone".
    """
    return " ".join(re.sub(r"[^a-z0-9]+", " ", name.lower().replace("’", "")).split())


def split(pictures: Pictures, held_out: int, generator: torch.Generator, least: int = 3) -> tuple[Pictures, Pictures]:
    """Pictures to train on, and ``held_out`` ones: drawn from those each word of whose names stays
    in ``least`` names to train on.
    """
    left = Counter(word for name in pictures.names for word in set(name.split()))
    kept: list[int] = []
    for number in torch.randperm(len(pictures), generator=generator).tolist():
        words = set(pictures.names[number].split())
        if all(left[word] > least for word in words):
            kept.append(number)
            left.subtract(words)
        if len(kept) == held_out:
            break
    if len(kept) < held_out:
        raise InputError(
            f"only {len(kept)} of {len(pictures)} names can be kept back with each of their words in {least} others, "
            f"not {held_out}"
        )
    out = set(kept)
    return pictures.take([i for i in range(len(pictures)) if i not in out]), pictures.take(sorted(kept))


def alike(names: Sequence[str], count: int = 20) -> Tensor:
    """(names, count): for each name the numbers of those that share most of its words, itself left
    out.
    """
    words = sorted({word for name in names for word in name.split()})
    places = {word: place for place, word in enumerate(words)}
    table = torch.zeros(len(names), len(words))
    for number, name in enumerate(names):
        table[number, [places[word] for word in name.split()]] = 1
    shared = table @ table.T  # (names, names)
    sizes = table.sum(1)
    overlap = shared / (sizes[:, None] + sizes[None] - shared)
    return overlap.fill_diagonal_(-1).topk(min(count, len(names) - 1), dim=1).indices
