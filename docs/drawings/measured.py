"""The charts of what was measured, drawn anew from the figures that are stored: `docs/performance`,
`benchmarks/sparse.json`, and the tables of pages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.report import stored
from docs.drawings.canvas import BLUE, FILL, GRAY, GREEN, INK, MARGIN, ORANGE, RED, SOFT, WIDTH, Canvas
from docs.drawings.charts import Axis, bars, dots, legend, lines

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
FULL_AND_THIRD = (BLUE, ORANGE)


def sides() -> str:
    """Milliseconds of every side for the two models that all of them have."""
    results = stored()[0]
    machine = results.machine()[0]
    canvas = Canvas("Milliseconds of a batch, beside other libraries", "")
    y = canvas.heading("Milliseconds of a batch", f"Median; {machine}; {results.about['date']}.")
    y = legend(canvas, y + 2, {"full batch": "", "one third real tokens": ""}, FULL_AND_THIRD) + 10
    said = []
    for model in ("minilm-l6-h384", "bert-base"):
        canvas.text(MARGIN, y + 4, model, bold=True)
        names = [row["side"] for row in results.rows if row["model"] == model and row["kind"] == "full"]
        rows = {name: [results.ms(model, kind, name) for kind in ("full", "third")] for name in names}
        y = bars(canvas, y + 18, rows, FULL_AND_THIRD, names=132) + 10
        said.append(f"{model}: " + ", ".join(f"{n} {full or 0:.0f} and {t or 0:.0f}" for n, (full, t) in rows.items()))
    canvas.description = f"Full batch, and one third real tokens. {'; '.join(said)}."
    return canvas.svg()


def tokens() -> str:
    """Microseconds for each token over the tokens of a batch."""
    results = stored()[0]
    series: dict[str, list[tuple[float, float]]] = {}
    for row in results.rows:
        if row["kind"] == "per token":
            series.setdefault(row["side"], []).append((int(row["batch"].split()[0]), float(row["ms"]) * 1000))
    low = min(value for points in series.values() for _, value in points)
    high = max(value for points in series.values() for _, value in points)
    model = next(row["model"] for row in results.rows if row["kind"] == "per token")
    canvas = Canvas(
        "The cost of a token",
        f"{model}, microseconds for each real token in batches of 1 to 4,096 tokens, from {low:.0f} to {high:.0f}: "
        + "; ".join(f"{name} {points[0][1]:.0f} to {points[-1][1]:.0f}" for name, points in series.items()),
    )
    y = canvas.heading("The cost of a token", f"{model}; {results.machine()[0]}; {results.about['date']}.")
    first = 10.0 ** math.floor(math.log10(low))
    ticks = [tick for tick in (first * k for k in (1, 3, 10, 30, 100, 300, 1000)) if tick < high * 3]
    x = Axis("real tokens in the batch", (1, 8, 64, 512, 4096), log=True)
    lines(canvas, y, series, x, Axis("microseconds for each", ticks, log=True))
    return canvas.svg()


def sparse() -> str:
    """Seconds of one layer's attention over the length, with slopes."""
    from benchmarks.sparse import slopes

    stored = json.loads((ROOT / "benchmarks" / "sparse.json").read_text(encoding="utf-8"))
    rises, series = slopes(stored["rows"]), {}
    for row in stored["rows"]:
        series.setdefault(row["form"], []).append((row["length"], row["seconds"]))
    canvas = Canvas(
        "The time of sparse attention over the length",
        "One layer's attention, 12 heads of 64. "
        + "; ".join(
            f"{name}: {points[-1][1]:.2f} s at {points[-1][0]} tokens, slope {rises[name]:.2f}"
            for name, points in series.items()
        ),
    )
    y = canvas.heading("The time of sparse attention", f"One layer, 12 heads of 64; {stored['machine']}.")
    values = [value for points in series.values() for _, value in points]
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    lengths = sorted({length for points in series.values() for length, _ in points})
    y = lines(
        canvas,
        y,
        series,
        Axis("tokens", lengths, log=True),
        Axis("seconds", [10.0**n for n in decades], log=True),
        notes={name: f"slope {rise:.2f}" for name, rise in rises.items()},
    )
    canvas.paragraph(MARGIN, y + 2, "Slope: 1 grows like n, 1.5 like n √n, 2 like n².", WIDTH - 2 * MARGIN, size=11)
    return canvas.svg()


def compression() -> str:
    """The chart of the guide on compression, from its table."""
    text = (DOCS / "guides" / "compression.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+) \| ([\d.]+)% \| [\d.]+ \| [\d.]+ M \| ([\d.]+) MB \| ([\d.]+) ms \|", text, re.M)
    return compressed([(name, float(accuracy), float(size), float(ms)) for name, accuracy, size, ms in cells])


def compressed(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Accuracy in percent over milliseconds per text; the area of a dot is the size of the file in MB."""
    said = (f"{n} {name}: {a:.1f}% at {ms:.2f} ms, {size:.1f} MB" for n, (name, a, size, ms) in enumerate(rows, 1))
    canvas = Canvas("Accuracy, time and size of compressed models", "; ".join(said))
    y = canvas.heading("Smaller and faster, at which price", "A dot's area is the size of the file.")
    colors = [RED if n == 0 else GREEN if name.startswith("stack") else BLUE for n, (name, *_) in enumerate(rows)]
    points = [(ms, a, 0.95 * size**0.5, color) for (_, a, size, ms), color in zip(rows, colors, strict=True)]
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 50, 100) if step * 6 > max(ms for *_, ms in rows))
    low = 10 * math.floor(min(a for _, a, _, _ in rows) / 10 - 0.1)
    x = Axis("milliseconds for a text", [step * n for n in range(7)])
    y = dots(canvas, y, points, x, Axis("accuracy, %", range(max(low, 0), 101, 10)))
    for n, ((name, *_), color) in enumerate(zip(rows, colors, strict=True), 1):
        canvas.text(MARGIN + 16, y, str(n), size=11, color=color, anchor="end", bold=True)
        canvas.text(MARGIN + 22, y, name, size=11, color=SOFT)
        y += 15
    return canvas.svg()


def translations() -> str:
    """How often a translation is found first, from the table of the page on objectives."""
    text = (DOCS / "concepts" / "objectives.md").read_text(encoding="utf-8")
    found = re.search(r"^\| found first among (\d+) \| (.*) \|\n\|[- |]+\n((?:\|.*\n)+)", text, re.M)
    assert found is not None
    languages = found[2].split(" | ")
    table = {cells[0]: [float(cell.removesuffix(" %")) for cell in cells[1:]] for cells in _cells(found[3])}
    shown = {name: values for name, values in table.items() if name != "chance"}
    said = (
        f"{name}: " + ", ".join(f"{pair} {value}%" for pair, value in zip(languages, values, strict=True))
        for name, values in table.items()
    )
    canvas = Canvas("How often a translation is found first", "; ".join(said))
    y = canvas.heading(
        "The translation found first",
        f"Percent of {found[1]} messages that the model never saw; by chance {table['chance'][0]}.",
    )
    colors = (GRAY, ORANGE, BLUE)
    y = legend(canvas, y + 2, dict.fromkeys(shown, ""), colors) + 10
    rows = {pair: [values[n] for values in shown.values()] for n, pair in enumerate(languages)}
    bars(canvas, y, rows, colors, names=54, written="{:.1f}")
    return canvas.svg()


def knowledge() -> str:
    """Accuracy with and without a fact of the graph, from the table of K-BERT's page."""
    text = (DOCS / "models" / "k-bert.md").read_text(encoding="utf-8")
    found = re.search(r"^\| task \| train / test \| (.*) \|\n\|[- |]+\n((?:\|.*\n)+)", text, re.M)
    assert found is not None
    methods = found[1].split(" | ")
    canvas = Canvas("Does a fact of the graph help?", "")
    y = canvas.heading(
        "Does a fact of the graph help?", "Percent sorted correctly. Bars are means, lines the range of three seeds."
    )
    said = []
    for task, _, *results in _cells(found[2]):
        canvas.text(MARGIN, y + 4, task, bold=True)
        ranges = [[float(value) for value in re.findall(r"\d+\.\d+", cell)] for cell in results]
        left, room = MARGIN + 110, WIDTH - 2 * MARGIN - 110 - 40
        y += 16
        for name, (mean, *ends) in zip(methods, ranges, strict=True):
            canvas.text(MARGIN, y + 6, name, size=11)
            canvas.rect(left, y, room * mean / 70, 12, fill=FILL[BLUE], stroke=BLUE, radius=2)
            if ends:
                canvas.line([(left + room * end / 70, y + 6) for end in ends], color=INK, width=1.8)
            canvas.text(WIDTH - MARGIN, y + 6, f"{mean:.1f}", size=11, anchor="end")
            y += 19
        y += 8
        said.append(f"{task}: " + ", ".join(f"{name} {cell}" for name, cell in zip(methods, results, strict=True)))
    canvas.description = f"Percent sorted correctly, mean (lowest .. highest). {'; '.join(said)}."
    return canvas.svg()


def _cells(rows: str) -> list[list[str]]:
    """The cells of the rows of a Markdown table."""
    return [line.strip("| ").split(" | ") for line in rows.strip().splitlines()]


def drawings() -> dict[str, str]:
    return {
        "speed.svg": sides(),
        "tokens.svg": tokens(),
        "sparse-time.svg": sparse(),
        "compression.svg": compression(),
        "translation-retrieval.svg": translations(),
        "knowledge-gain.svg": knowledge(),
    }
