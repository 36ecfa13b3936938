"""A white card to draw on: boxes, lines, text, in the colors and sizes that all drawings share."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

WIDTH = 360
"""Units across: a phone shows one of them as about one pixel."""
MARGIN = 12
INK, SOFT, LINE, PALE = "#1f2733", "#5b6675", "#8893a3", "#f3f5f8"
BLUE, ORANGE, GREEN, VIOLET, RED, GRAY = "#2f6fb3", "#c2701c", "#2e8b57", "#7d55b5", "#c0392b", "#5b6675"
FILL = {
    BLUE: "#dcebf9",
    ORANGE: "#fbe8d1",
    GREEN: "#d8f0df",
    VIOLET: "#e9dff6",
    RED: "#fadcd8",
    GRAY: "#e9edf2",
}
"""The light tone in which a box of each color is filled."""
SHOWN = 1.3  # pixels to a unit where there is room for them

# widths of characters in a sans-serif font of size 1
_NARROW, _WIDE = set("iljtfrI.,:;'|!()[] "), set("mwMWÆ@%×→⊕")


def width_of(text: str, size: float = 12, *, bold: bool = False) -> float:
    """About how wide a text is; a little too much rather than too little."""
    units = sum(
        0.36 if c in _NARROW else 0.86 if c in _WIDE else 1.0 if ord(c) > 0x2E80 else 0.7 if c.isupper() else 0.6
        for c in text
    )
    return units * size * (1.06 if bold else 1)


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def amount(count: float) -> str:
    """A large count as readers say it: 7.1 M, 312 k."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            shown = f"{count / unit:.1f}" if count < 100 * unit else f"{count / unit:.0f}"
            return shown.removesuffix(".0") + name
    return f"{count:.0f}"


class Canvas:
    """What is drawn so far. ``title`` and ``description`` are read to those who can't see it."""

    def __init__(self, title: str, description: str, width: float = WIDTH) -> None:
        self.title, self.description, self.width = title, description, width
        self.bottom = 0.0
        self.parts: list[str] = []

    def _reach(self, y: float) -> None:
        self.bottom = max(self.bottom, y)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        color: str = INK,
        anchor: str = "start",
        bold: bool = False,
        note: str = "",
    ) -> None:
        """One line; ``y`` is its middle; ``note`` follows in a softer color."""
        extra = ("" if anchor == "start" else f' text-anchor="{anchor}"') + (' font-weight="600"' if bold else "")
        extra += "" if size == 12 else f' font-size="{number(size)}"'
        extra += "" if color == INK else f' fill="{color}"'
        at = f'x="{number(x)}" y="{number(y + size * 0.35)}"'
        weight = ' font-weight="400"' if bold else ""
        behind = f'<tspan dx="5" fill="{SOFT}"{weight}>{escape(note, quote=False)}</tspan>' if note else ""
        self.parts.append(f"<text {at}{extra}>{escape(text, quote=False)}{behind}</text>")
        self._reach(y + size * 0.6)

    def paragraph(self, x: float, y: float, text: str, width: float, *, size: float = 12, color: str = SOFT) -> float:
        """Several lines from the line whose top is ``y``. -> the bottom of the last."""
        for line in wrapped(text, width, size):
            self.text(x, y + size * 0.65, line, size=size, color=color)
            y += size * 1.3
        return y

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        stroke: str = "none",
        radius: float = 4,
        dash: bool = False,
    ) -> None:
        """A rectangle with rounded corners."""
        size = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        round_ = f' rx="{number(radius)}"' if radius else ""
        line = "" if stroke == "none" else f' stroke="{stroke}"' + (' stroke-dasharray="4 3"' if dash else "")
        self.parts.append(f'<rect {size}{round_} fill="{fill}"{line}/>')
        self._reach(y + height)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        lines: Sequence[str],
        color: str = GRAY,
        *,
        size: float = 12,
        dash: bool = False,
        note: str = "",
    ) -> None:
        """A filled box with lines of text in its middle; the first is dark, the others are notes, and
        so is what stands behind the first.
        """
        self.rect(x, y, width, height, fill=FILL[color], stroke=color, dash=dash)
        small = size - 1
        total = size * 1.25 + small * 1.25 * (len(lines) - 1)
        middle = y + (height - total) / 2 + size * 0.62
        for row, line in enumerate(lines):
            if row:
                middle += small * 1.25
            wanted = size if not row else small
            beside = note if not row else ""
            room = (width - 8) / width_of(f"{line}  {beside}" if beside else line, wanted)
            self.text(
                x + width / 2,
                middle,
                line,
                size=max(min(wanted, int(wanted * room * 2) / 2), 8),
                color=INK if not row else SOFT,
                anchor="middle",
                note=beside,
            )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        *,
        color: str = LINE,
        arrow: bool = False,
        dash: bool = False,
        width: float = 1.2,
    ) -> None:
        """A line through the points, bent with small curves; an arrow at its end where asked for."""
        path = f"M{number(points[0][0])} {number(points[0][1])}"
        for before, at, after in zip(points, points[1:-1], points[2:], strict=False):
            one, two = _short_of(at, before), _short_of(at, after)
            path += f"L{number(one[0])} {number(one[1])}Q{number(at[0])} {number(at[1])} "
            path += f"{number(two[0])} {number(two[1])}"
        path += f"L{number(points[-1][0])} {number(points[-1][1])}"
        extra = (' stroke-dasharray="4 3"' if dash else "") + (' marker-end="url(#tip)"' if arrow else "")
        self.parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{number(width)}"{extra}/>')
        self._reach(max(y for _, y in points))

    def line_through(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """A line of a chart, with a dot at each point."""
        path = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        for x, y in points:
            self.dot(x, y, 2.6, color)
        self._reach(max(y for _, y in points))

    def plus(self, x: float, y: float, radius: float = 8) -> None:
        """A circle with a plus: a sum."""
        self.parts.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="white" stroke="{INK}"/>'
            f'<path d="M{number(x - 4)} {number(y)}h8M{number(x)} {number(y - 4)}v8" stroke="{INK}" fill="none"/>'
        )
        self._reach(y + radius)

    def dot(self, x: float, y: float, radius: float = 2, color: str = LINE) -> None:
        self.parts.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="{color}"/>')

    def heading(self, text: str, note: str = "", *, y: float = 0) -> float:
        """The drawing's name, at its top. -> where it goes on."""
        self.text(MARGIN, y + 20, text, size=14, bold=True)
        if note:
            return self.paragraph(MARGIN, y + 31, note, self.width - 2 * MARGIN, size=12) + 8
        return y + 38

    def svg(self) -> str:
        """The file."""
        height = number(self.bottom + MARGIN)
        width = number(self.width)
        shown = f'width="{number(self.width * SHOWN)}" height="{number((self.bottom + MARGIN) * SHOWN)}"'
        tip = '<marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {shown} viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif" font-size="12" '
            f'fill="{INK}" aria-labelledby="t d">',
            f'<title id="t">{escape(self.title, quote=False)}</title>',
            f'<desc id="d">{escape(self.description, quote=False)}</desc>',
            f'<defs>{tip}<path d="M0 0L6 3L0 6z" fill="{SOFT}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#fff"/>',
        ]
        return "\n".join([*head, *self.parts, "</svg>"]) + "\n"


def _short_of(corner: tuple[float, float], end: tuple[float, float], by: float = 5) -> tuple[float, float]:
    """The point so far before a corner, on the way from ``end``."""
    dx, dy = end[0] - corner[0], end[1] - corner[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-6)
    by = min(by, length / 2)
    return corner[0] + dx / length * by, corner[1] + dy / length * by


def wrapped(text: str, width: float, size: float = 12) -> list[str]:
    """The text in lines that fit."""
    return textwrap.wrap(text, max(8, int(width / (size * 0.5)))) or [""]
