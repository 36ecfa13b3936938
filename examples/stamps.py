"""Photographs and drawings with captions for the examples: Tux Paint's stamps, captioned by hand in English and
translated into some 77 languages.

    stamps(stamps_folder())      every picture with its captions, one of those that look alike

The stamps are Debian's package tuxpaint-stamps-default (GPL-2) and are looked for where that package puts
them. Nothing of it is copied into this repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from emoji_pictures import BACKGROUND
from torch import Tensor

from zoo.errors import InputError, missing_extra

FOLDER = Path("/usr/share/tuxpaint/stamps")
HOW = (
    "apt-get install tuxpaint-stamps-default\n"
    "    or, without installing it,\n"
    "    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps\n"
    "    and then --stamps stamps/usr/share/tuxpaint/stamps"
)
SIDE = 72  # pixels of a picture by which those that look alike are found
ALIKE = 5  # bits of 64 in which the fingerprints of two pictures that look alike may differ
TRANSLATION = re.compile(r"([A-Za-z_@]+)\.utf8=(.*)")


@dataclass(frozen=True)
class Stamps:
    """Pictures by their ``paths`` in the folder, their ``captions`` by language ("en" first), and their ``pixels``
    (stamps, 3, side, side) uint8.
    """

    paths: list[str]
    captions: list[Mapping[str, str]]
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, which: Sequence[int]) -> Stamps:
        return Stamps([self.paths[i] for i in which], [self.captions[i] for i in which], self.pixels[list(which)])

    def texts(self, language: str = "en") -> list[str]:
        """The captions in one language, "" where there is none."""
        return [captions.get(language, "") for captions in self.captions]


def stamps_folder(given: Path | None = None) -> Path:
    """The folder of the stamps; an InputError says how to get it."""
    path = FOLDER if given is None else given
    if not path.is_dir() or not any(path.rglob("*.png")):
        raise InputError(f"{path} holds no stamps: they are Debian's Tux Paint stamps. To get them:\n    {HOW}")
    return path


def stamps(folder: Path, side: int = SIDE) -> Stamps:
    """All PNG pictures that have an English caption, in the order of their paths, on gray, fitted into a square; of
    those that look alike the first. (Drawings that exist as SVG alone are left out.) Whatever the side, the pictures
    are the same ones.
    """
    paths, captions, pixels = [], [], []
    for path in sorted(folder.rglob("*.png")):
        told = path.with_suffix(".txt")
        if told.is_file() and (read := captions_in(told.read_text(encoding="utf-8"))):
            paths.append(str(path.relative_to(folder)))
            captions.append(read)
            pixels.append(picture(path, SIDE))
    if not paths:
        raise InputError(f"{folder} holds no PNG with a caption beside it")
    found = alone(Stamps(paths, captions, torch.stack(pixels)))
    if side == SIDE:
        return found
    return replace(found, pixels=torch.stack([picture(folder / path, side) for path in found.paths]))


def captions_in(text: str) -> dict[str, str]:
    """``A dog.\\nde.utf8=Ein Hund.`` -> {"en": "A dog.", "de": "Ein Hund."}; empty without an English caption."""
    first, *rest = text.split("\n")
    if not first.strip():
        return {}
    found = {"en": first.strip()}
    for line in rest:
        if (match := TRANSLATION.fullmatch(line.strip())) and match[2].strip():
            found[match[1]] = match[2].strip()
    return found


def picture(path: Path, side: int) -> Tensor:
    """One picture (3, side, side) uint8: its opaque part on gray, as large as the square takes it, in the middle."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("reading pictures", "pillow", "examples") from None
    with Image.open(path) as opened:
        image: Any = opened.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    if max(image.size) < side:
        share = side / max(image.size)
        image = image.resize([max(1, round(length * share)) for length in image.size], Image.Resampling.BILINEAR)
    square = Image.new("RGBA", (side, side), (*BACKGROUND, 255))
    square.alpha_composite(image, tuple((side - length) // 2 for length in image.size))
    raw = torch.frombuffer(bytearray(square.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.view(side, side, 3).permute(2, 0, 1).contiguous()


def fingerprints(pixels: Tensor) -> Tensor:
    """(pictures, 64) bool: in a picture shrunk to 9 x 8 gray cells, whether each is brighter than the next in its
    row.
    """
    gray = pixels.float().mean(1, keepdim=True)
    cells = torch.nn.functional.interpolate(gray, (8, 9), mode="area").squeeze(1)  # (pictures, 8, 9)
    return (cells[:, :, :-1] > cells[:, :, 1:]).flatten(1)


def alone(given: Stamps) -> Stamps:
    """Of pictures that look alike, by their fingerprints and colors, the first."""
    prints = fingerprints(given.pixels).float()
    apart = prints @ (1 - prints).T
    apart = apart + apart.T  # (pictures, pictures): bits that differ
    colors = given.pixels.float().mean((2, 3))
    near = (apart <= ALIKE) & (torch.cdist(colors, colors) < 12)
    kept: list[int] = []
    for number in range(len(given)):
        if not near[number, kept].any():
            kept.append(number)
    return given.take(kept)


def split(given: Stamps, held_out: int, generator: torch.Generator) -> tuple[Stamps, Stamps]:
    """Pictures to train on and ``held_out`` others, drawn before any caption or translation is looked at."""
    if not 0 < held_out < len(given):
        raise InputError(
            f"held_out={held_out} must lie between 1 and {len(given) - 1}, one less than there are pictures"
        )
    order = torch.randperm(len(given), generator=generator).tolist()
    return given.take(sorted(order[held_out:])), given.take(sorted(order[:held_out]))
