"""Charts of measured figures, in the style of the drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from docs.drawings.canvas import (
    BLUE,
    FILL,
    GRAY,
    GREEN,
    INK,
    MARGIN,
    ORANGE,
    RED,
    SOFT,
    VIOLET,
    WIDTH,
    Canvas,
    number,
    width_of,
)

COLORS = (BLUE, ORANGE, GREEN, VIOLET, RED, GRAY, "#0d8a8a", "#8a6d1f")
GRID = "#dfe4ea"


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its label, the marks on it, and whether each doubling takes the same room.
    ``written``: how a mark is written.
    """

    label: str
    ticks: Sequence[float]
    log: bool = False
    written: str = "{:g}"

    def place(self, value: float) -> float:
        """0 at the first mark, 1 at the last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)


def frame(canvas: Canvas, top: float, height: float, x: Axis, y: Axis, beyond: float) -> tuple[float, float, float]:
    """Grid, marks and labels of both axes, with ``beyond`` free to the right. -> left, width and top of the field."""
    left = MARGIN + 8 + max(width_of(y.written.format(tick), 10.5) for tick in y.ticks)
    width = WIDTH - MARGIN - beyond - left
    canvas.text(MARGIN, top + 4, y.label, size=11, color=SOFT)
    top += 20
    for tick in y.ticks:
        at = top + height * (1 - y.place(tick))
        canvas.parts.append(f'<path d="M{number(left)} {number(at)}h{number(width)}" stroke="{GRID}"/>')
        canvas.text(left - 6, at, y.written.format(tick), size=10.5, color=SOFT, anchor="end")
    for tick in x.ticks:
        at = left + width * x.place(tick)
        canvas.text(at, top + height + 12, x.written.format(tick), size=10.5, color=SOFT, anchor="middle")
    canvas.text(left + width, top + height + 28, x.label, size=11, color=SOFT, anchor="end")
    return left, width, top


def lines(
    canvas: Canvas,
    top: float,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: Axis,
    y: Axis,
    *,
    height: float = 210,
    notes: Mapping[str, str] | None = None,
) -> float:
    """A line with dots for each series, its names below. -> the bottom."""
    left, width, top = frame(canvas, top, height, x, y, 8)
    for (_, points), color in zip(series.items(), COLORS, strict=False):
        placed = [(left + width * x.place(a), top + height * (1 - y.place(b))) for a, b in points]
        canvas.line_through(placed, color)
    return legend(canvas, top + height + 46, {name: (notes or {}).get(name, "") for name in series})


def legend(canvas: Canvas, y: float, names: Mapping[str, str], colors: Sequence[str] = COLORS) -> float:
    """Names with their colors and notes, in as many rows as they need. -> the bottom."""
    x = float(MARGIN)
    for (name, note), color in zip(names.items(), colors, strict=False):
        room = 14 + width_of(f"{name}  {note}" if note else name, 11) + 12
        if x > MARGIN and x + room > WIDTH - MARGIN:
            x, y = MARGIN, y + 18
        canvas.rect(x, y - 5, 10, 10, fill=color, radius=3)
        canvas.text(x + 14, y, name, size=11, note=note)
        x += room
    return y + 10


def bars(
    canvas: Canvas,
    top: float,
    rows: Mapping[str, Sequence[float | None]],
    colors: Sequence[str],
    *,
    names: float = 120,
    written: str = "{:.0f}",
) -> float:
    """A row for each name with a bar for each value, None = not measured. -> the bottom."""
    longest = max(value for values in rows.values() for value in values if value is not None)
    left = MARGIN + names
    room = WIDTH - MARGIN - left - 40
    for name, values in rows.items():
        tall = 11 * len(values)
        canvas.text(MARGIN, top + tall / 2, name, size=11)
        for n, (value, color) in enumerate(zip(values, colors, strict=True)):
            if value is not None:
                wide = max(1.5, room * value / longest)
                canvas.rect(left, top + n * 11, wide, 9, fill=color, radius=2)
                canvas.text(left + wide + 4, top + n * 11 + 4.5, written.format(value), size=9.5, color=INK)
        top += tall + 7
    return top


def dots(
    canvas: Canvas, top: float, points: Sequence[tuple[float, float, float, str]], x: Axis, y: Axis, height: float = 300
) -> float:
    """A numbered dot for each (x, y, radius, color). -> the bottom."""
    left, width, top = frame(canvas, top, height, x, y, 14)
    for n, (a, b, radius, color) in enumerate(points, 1):
        at_x, at_y = left + width * x.place(a), top + height * (1 - y.place(b))
        canvas.parts.append(
            f'<circle cx="{number(at_x)}" cy="{number(at_y)}" r="{number(radius)}" fill="{FILL[color]}" '
            f'fill-opacity="0.75" stroke="{color}"/>'
        )
        canvas.text(at_x, at_y, str(n), size=10, anchor="middle")
    return top + height + 40
