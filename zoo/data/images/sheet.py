"""A contact sheet: pictures side by side with a line of text under each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.images.reading import WHITE, pillow, read_picture
from zoo.errors import InputError

SIDE, GAP, LINE = 192, 8, 16  # pixels


def contact_sheet(
    pictures: Sequence[Any],
    captions: Sequence[str],
    out: str | os.PathLike[str],
    *,
    columns: int = 5,
    title: str = "",
) -> None:
    """Write a PNG with ``columns`` pictures in a row, each scaled into a square, its caption below."""
    if not pictures or len(pictures) != len(captions):
        raise InputError(f"a sheet needs pictures, each with a caption; got {len(pictures)} and {len(captions)}")
    if Path(out).suffix.lower() != ".png":
        raise InputError(f"a contact sheet is a PNG; {out} should end in .png")
    from PIL import ImageDraw, ImageFont

    font, top = ImageFont.load_default(size=12), LINE + GAP if title else 0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = columns * (SIDE + GAP) + GAP, rows * (SIDE + LINE + GAP) + GAP
    sheet = pillow().new("RGB", (width, top + height), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _fitting(title, width - 2 * GAP, font), fill="black", font=font)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = GAP + place % columns * (SIDE + GAP), top + GAP + place // columns * (SIDE + LINE + GAP)
        small = read_picture(picture)
        small.thumbnail((SIDE, SIDE))
        sheet.paste(small, (x + (SIDE - small.width) // 2, y + (SIDE - small.height) // 2))
        draw.text((x, y + SIDE + 2), _fitting(caption, SIDE, font), fill="black", font=font)
    try:
        sheet.save(out, "PNG")
    except OSError as error:
        raise InputError(f"{out} can't be written: {error.strerror or error}") from error


def _fitting(text: str, width: int, font: Any) -> str:
    """The end of a text that is no wider, where file names differ."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
