"""The docs' results page from a run's CSV: python -m benchmarks.speed.report docs/performance.csv

Fills the tables of docs/performance.md between their markers and draws docs/images/speed.svg and
docs/images/tokens.svg.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]
BLOCK = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = Path("docs/performance.md")
FULL = ("bert-base", "albert-base", "xlm-mlm-tlm-xnli15-1024", "visualbert-base", "vilbert-base")


class Results:
    """A run's rows, looked up by model, kind of batch and side."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))

    def ms(self, model: str, kind: str, side: str) -> float | None:
        found = [row for row in self.rows if (row["model"], row["kind"], row["side"]) == (model, kind, side)]
        return float(found[0]["ms"]) if found else None

    def cosine(self, model: str, kind: str, side: str) -> str:
        return next(
            row["cosine"] for row in self.rows if (row["model"], row["kind"], row["side"]) == (model, kind, side)
        )

    def models(self) -> list[str]:
        return list(dict.fromkeys(row["model"] for row in self.rows if row["kind"] == "full"))

    def machine(self) -> tuple[str, float, float]:
        """Its name, and the rates of torch's and of oneDNN's matrix multiplication in GFLOP/s."""
        torch, onednn = (row for row in self.rows if row["kind"] == "machine")
        return torch["model"], float(torch["ms"]), float(onednn["ms"])

    def rate(self, model: str, side: str) -> float | None:
        """GFLOP/s of a full batch."""
        return over(self.ms(model, "gflop", "padded"), over(self.ms(model, "full", side), 1000.0))


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def goal(
    case: str, against: str, ratio: float | None, wanted: float, *, at_most: bool = False, note: str = ""
) -> list[str]:
    """One line of the table of goals."""
    if ratio is None:
        return [case, against, "-", "not measured", note]
    met = ratio <= wanted if at_most else ratio >= wanted
    return [
        case,
        against,
        f"{'≤' if at_most else '≥'} {wanted:g} x",
        f"{ratio:.2f} x, {'met' if met else 'not met'}",
        note,
    ]


def over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def goals(r: Results) -> str:
    """Every goal with what was measured."""
    lines: list[list[str]] = []
    fast = "zoo optimized"
    for model in FULL:
        if r.ms(model, "full", "transformers") is not None:
            lines.append(
                goal(
                    f"{model}, float32, full",
                    "transformers",
                    over(r.ms(model, "full", "transformers"), r.ms(model, "full", fast)),
                    1.0,
                )
            )
        own, onednn = r.machine()[1:]
        share, note = over(r.rate(model, fast), own), f"of oneDNN's {over(r.rate(model, fast), onednn) or 0:.2f} x"
        lines.append(goal(f"{model}, float32, full: GFLOP/s", "torch's matrix multiplication", share, 0.9, note=note))
    for model, wanted in (("minilm-l6-h384", 1.3), ("mobilebert-base", 1.5)):
        lines.append(
            goal(
                f"{model}, float32, full",
                "transformers",
                over(r.ms(model, "full", "transformers"), r.ms(model, "full", fast)),
                wanted,
            )
        )
    peers = {
        name: ms
        for name in ("onnxruntime", "openvino", "ctranslate2")
        if (ms := r.ms("minilm-l6-h384", "full", name)) is not None
    }
    if peers:
        best = min(peers, key=peers.__getitem__)
        lines.append(
            goal(
                "minilm-l6-h384, float32, full",
                f"best of three: {best}",
                over(peers[best], r.ms("minilm-l6-h384", "full", fast)),
                0.95,
            )
        )
    for model in r.models():
        if r.ms(model, "third", "transformers") is not None:
            wanted = 2.5 if model.startswith("mobilebert") else 2.7
            plain = over(r.ms(model, "third", "transformers"), r.ms(model, "third", "zoo"))
            ratio = over(r.ms(model, "third", "transformers"), r.ms(model, "third", fast))
            lines.append(
                goal(
                    f"{model}, float32, one third real", "transformers", ratio, wanted, note=f"as loaded {plain:.2f} x"
                )
            )
    for model in ("minilm-l6-h384", "bert-base"):
        lines.append(
            goal(
                f"{model}, float32, one third real",
                "ctranslate2",
                over(r.ms(model, "third", "ctranslate2"), r.ms(model, "third", fast)),
                1.1,
            )
        )
        for kind, wanted in (("full", 0.95), ("third", 2.0)):
            ratio = over(r.ms(model, kind, "openvino bfloat16"), r.ms(model, kind, "zoo bfloat16"))
            note = (
                f"cosine {r.cosine(model, kind, 'zoo bfloat16')}, openvino {r.cosine(model, kind, 'openvino bfloat16')}"
                if ratio
                else ""
            )
            lines.append(goal(f"{model}, bfloat16, {kind}", "openvino bfloat16", ratio, wanted, note=note))
        for kind, wanted in (("full", 1.0), ("third", 1.1)):
            ratio = over(r.ms(model, kind, "ctranslate2 int8"), r.ms(model, kind, "zoo int8"))
            note = (
                f"cosine {r.cosine(model, kind, 'zoo int8')}, ctranslate2 {r.cosine(model, kind, 'ctranslate2 int8')}"
                if ratio
                else ""
            )
            lines.append(goal(f"{model}, int8, {kind}", "ctranslate2 int8", ratio, wanted, note=note))
    for model in ("minilm-l6-h384", "bert-base", "mobilebert-base"):
        for kind in ("full", "third"):
            prepared = over(r.ms(model, kind, fast), r.ms(model, kind, "zoo int8"))
            note = "" if prepared is None else f"against optimized float32 {prepared:.2f} x"
            lines.append(
                goal(
                    f"{model}, int8, {kind}",
                    "our float32 as loaded",
                    over(r.ms(model, kind, "zoo"), r.ms(model, kind, "zoo int8")),
                    2.5,
                    note=note,
                )
            )
    step = over(r.ms("bert-base", "training step", "transformers"), r.ms("bert-base", "training step", "zoo"))
    lines.append(goal("bert-base, training step, one third real", "transformers", step, 2.3))
    for model in ("minilm-l6-h384", "bert-base"):
        first = "first answer of a new process"
        lines.append(
            goal(
                f"{model}, {first}",
                "transformers' time",
                over(r.ms(model, first, "zoo"), r.ms(model, first, "transformers")),
                0.5,
                at_most=True,
            )
        )
        lines.append(
            goal(
                f"{model}, memory of loading",
                "the file's size",
                r.ms(model, "memory of loading, share of the file", "zoo"),
                1.15,
                at_most=True,
            )
        )
    return table(["case", "against", "goal", "measured", ""], lines)


def times(r: Results) -> str:
    """Every measured time."""
    parts = []
    for model in r.models():
        sides = list(
            dict.fromkeys(row["side"] for row in r.rows if row["model"] == model and row["kind"] in ("full", "third"))
        )
        lines = []
        for side in sides:
            cells = [side]
            for kind in ("full", "third"):
                ms, base = r.ms(model, kind, side), r.ms(model, kind, "transformers")
                cells += (
                    ["", "", ""]
                    if ms is None
                    else [f"{ms:.0f}", "" if base is None else f"{base / ms:.2f}", r.cosine(model, kind, side)]
                )
            lines.append(cells)
        batch = next(row for row in r.rows if row["model"] == model and row["kind"] == "third")
        parts.append(f"**{model}**, {batch['batch']}, one third: {float(batch['real']):.1%} real\n\n")
        parts.append(table(["side", "full, ms", "x", "cosine", "one third, ms", "x", "cosine"], lines) + "\n")
    return "".join(parts)


def main() -> None:
    results = Results(Path(sys.argv[1]))
    name, own, onednn = results.machine()
    machine = (
        f"Measured on {name}. Float32 matrix multiplication, GFLOP/s: torch's own {own:.0f}, "
        f"oneDNN's over weights laid out for it {onednn:.0f}.\n"
    )
    fillings = {"machine": machine, "goals": goals(results), "times": times(results)}
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        BLOCK.sub(lambda match: match[1] + "\n" + fillings[match[2]] + "\n" + match[3], text), encoding="utf-8"
    )
    from docs.drawings import measured  # which reads this module

    for picture, drawn in measured.drawings().items():
        (PAGE.parent / "images" / picture).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
