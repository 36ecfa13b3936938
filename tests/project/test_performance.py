"""The page on performance is what the files of its machines say."""

from __future__ import annotations

import csv
import re

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import report

COLUMNS = ("model", "batch", "kind", "real", "cosine", "side", "ms")


def written(path, times, date="2026-01-02"):
    """A run of one model: milliseconds by (kind, side)."""
    rows = [{"kind": "run", "side": "date", "model": date}] if date else []
    rows += [
        {"kind": "machine", "side": side, "model": path.stem, "ms": ms} for side, ms in (("torch", 1), ("onednn", 2))
    ]
    batch = {"model": "bert-base", "batch": "8 x 128", "real": "0.5", "cosine": "1.0"}
    rows += [{**batch, "kind": kind, "side": side, "ms": ms} for (kind, side), ms in times.items()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return report.Results(path)


def test_the_page_is_what_the_files_say():
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.render(text, report.stored()) == text, "run python -m benchmarks.speed.report"
    assert len(report.BLOCK.findall(text)) == 4


def test_machines_stand_side_by_side_and_a_peer_that_one_lacks_is_a_dash(tmp_path):
    full = {("full", "zoo optimized"): 10, ("full", "transformers"): 20, ("full", "zoo int8"): 5}
    runs = [
        written(tmp_path / "a.csv", full | {("full", "ctranslate2 int8"): 6}),
        written(tmp_path / "b.csv", full | {("full", "transformers"): 13}, "2026-03-04"),
    ]
    table = report.side_by_side(runs)
    assert "| bert-base | full | transformers | zoo optimized | 2.00 x | 1.30 x |" in table
    assert "| bert-base | full | ctranslate2 int8 | zoo int8 | 1.20 x | - |" in table
    assert "| `b` | 2026-03-04 | 1 | 2 | b" in report.machines(runs)


def test_a_file_that_does_not_say_when_it_was_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not say when the run was"):
        written(tmp_path / "a.csv", {}, date=None)


def test_what_was_measured_says_when_and_with_which_version():
    silent = [
        f"{page.relative_to(report.ROOT)}: {paragraph[:90]}"
        for page in sorted((report.ROOT / "docs").rglob("*.md"))
        for paragraph in re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
        if re.search(r"x86\s+cores?\b", paragraph)
        and not (re.search(r"\b20\d\d-\d\d-\d\d\b", paragraph) and re.search(r"zoo\s+\d", paragraph))
    ]
    assert not silent, "\n".join(silent)


def test_a_run_says_its_date_and_the_versions_of_what_is_installed():
    rows = speed.about()
    assert set(rows[0]) == set(COLUMNS)
    said = {row["side"]: row["model"] for row in rows}
    assert said["date"].count("-") == 2
    assert {"zoo", "torch", "transformers"} <= set(said)
