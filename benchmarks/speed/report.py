"""The docs' results page from the runs of one or more machines: python -m benchmarks.speed.report

Reads docs/performance/*.csv, a file for each machine, fills the tables of docs/performance.md between
their markers and draws docs/images/speed.svg and docs/images/tokens.svg. The detailed tables and the
pictures are those of the first file by name; a table shows all machines side by side.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, str]
BLOCK = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ROOT = Path(__file__).parents[2]
RUNS = ROOT / "docs" / "performance"
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
FULL = ("bert-base", "albert-base", "xlm-mlm-tlm-xnli15-1024", "visualbert-base", "vilbert-base")


class Results:
    """A run's rows, looked up by model, kind of batch and side."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        self.name = path.stem
        self.about = {row["side"]: row["model"] for row in self.rows if row["kind"] == "run"}
        if "date" not in self.about:
            raise ValueError(
                f"{path} does not say when the run was; it needs a row of the kind 'run' with the side 'date'"
            )

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


def stored() -> list[Results]:
    """The runs of all machines; the first is that of the detailed tables and of the pictures."""
    return [Results(path) for path in sorted(RUNS.glob("*.csv"))]


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


def machines(runs: Sequence[Results]) -> str:
    """A row for each machine: its rates, and when and with which versions it ran."""
    rows = []
    for run in runs:
        name, own, onednn = run.machine()
        versions = ", ".join(f"{key} {value}" for key, value in run.about.items() if key not in ("date", "torch"))
        rows.append([f"`{run.name}`", run.about["date"], f"{own:.0f}", f"{onednn:.0f}", f"{name}, {versions}"])
    return table(["run", "date", "torch, GFLOP/s", "oneDNN, GFLOP/s", "machine and versions"], rows)


def side_by_side(runs: Sequence[Results]) -> str:
    """How many times as fast as each peer ours is, on each machine."""
    ours = {"bfloat16": "zoo bfloat16", "int8": "zoo int8"}
    rows = []
    batches = (("full", "full"), ("third", "one third real"), ("text", "one third of the words real"))
    for model in dict.fromkeys(model for run in runs for model in run.models()):
        for kind, batch in batches:
            peers = {
                row["side"]: None
                for run in runs
                for row in run.rows
                if (row["model"], row["kind"]) == (model, kind) and not row["side"].startswith("zoo")
            }
            for peer in peers:
                mine = ours.get(peer.split()[-1], "zoo optimized")
                ratios = [over(run.ms(model, kind, peer), run.ms(model, kind, mine)) for run in runs]
                if not peer.endswith("compiled"):
                    rows.append([model, batch, peer, mine, *("-" if r is None else f"{r:.2f} x" for r in ratios)])
    return table(["model", "batch", "peer", "ours", *(f"`{run.name}`" for run in runs)], rows)


def render(text: str, runs: Sequence[Results]) -> str:
    """The page with its tables filled anew."""
    first = runs[0]
    fillings = {
        "machines": machines(runs),
        "side_by_side": side_by_side(runs),
        "goals": goals(first),
        "times": times(first),
    }
    return BLOCK.sub(lambda match: f"{match[1]}\n{fillings[match[2]]}\n{match[3]}", text)


def main() -> None:
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), stored()), encoding="utf-8")
    from docs.drawings import measured  # which reads this module

    for picture, drawn in measured.drawings().items():
        (IMAGES / picture).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
