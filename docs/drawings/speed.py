"""Parameters and speed of each family's default variant, from `docs/family_speed.csv`, which
`python -m benchmarks.family_speed docs/family_speed.csv` measures.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from docs.drawings.canvas import FILL, MARGIN, SOFT, WIDTH, Canvas, amount, width_of
from docs.drawings.tree import COLORS

FILE = Path(__file__).parents[1] / "family_speed.csv"


def measured() -> list[dict[str, str]]:
    """The rows, the fastest first."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return sorted(csv.DictReader(file), key=lambda row: float(row["relative"]))


def bar(value: float, low: float, high: float, width: float) -> float:
    """How long a bar is on a scale where each doubling takes the same room."""
    return width * (0.04 + 0.96 * math.log(value / low) / math.log(high / low))


def drawings() -> dict[str, str]:
    rows = measured()
    first = rows[0]
    canvas = Canvas(
        "Parameters and speed of each family",
        "Time in passes of bert-base. "
        + "; ".join(
            f"{row['variant']}: {amount(int(row['parameters']))} parameters, {float(row['relative']):.2f} times"
            for row in rows
        ),
    )
    y = canvas.heading(
        "Parameters and speed",
        f"One pass over {first['texts']} texts of {first['tokens']} tokens, in passes of bert-base. Bars are on a "
        "logarithmic scale.",
    )
    left, right, width = MARGIN + 120, MARGIN + 238, 66
    canvas.text(left, y + 4, "parameters", size=11, color=SOFT)
    canvas.text(right, y + 4, "time", size=11, color=SOFT)
    y += 14
    counts = [int(row["parameters"]) for row in rows]
    times = [float(row["relative"]) for row in rows]
    for row, count, time in zip(rows, counts, times, strict=True):
        color = COLORS[row["pillar"]]
        size = min(11, 11 * 116 / width_of(row["variant"], 11))
        canvas.text(MARGIN, y + 8, row["variant"], size=size)
        wide = bar(count, min(counts), max(counts), width)
        canvas.rect(left, y + 2, wide, 12, fill=FILL[color], stroke=color, radius=2)
        canvas.text(left + wide + 4, y + 8, amount(count), size=10.5)
        wide = bar(time, min(times), max(times), width)
        canvas.rect(right, y + 2, wide, 12, fill=color, radius=2)
        canvas.text(right + wide + 4, y + 8, f"{time:.2f} ×" if time < 10 else f"{time:.0f} ×", size=10.5)
        y += 19
    y += 10
    x = float(MARGIN)
    for pillar, color in COLORS.items():
        room = 20 + 5.6 * len(pillar)
        if x + room > WIDTH - MARGIN:
            x, y = MARGIN, y + 17
        canvas.rect(x, y - 5, 10, 10, fill=color, radius=3)
        canvas.text(x + 14, y, pillar, size=10.5, color=SOFT)
        x += room
    dates = sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    machine = first["machine"].replace("1 threads", "1 thread")
    canvas.paragraph(
        MARGIN,
        y + 10,
        f"{machine}; zoo {first['zoo']}; {when}.",
        WIDTH - 2 * MARGIN,
        size=10,
    )
    return {"family-speed.svg": canvas.svg()}
