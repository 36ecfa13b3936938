"""Run the checks of `tests.interop.checks` with the libraries that are installed, and enter what came
of them into ``docs/interop.csv``, from which ``python -m docs.generate`` makes the table of
``docs/guides/interop.md``:

    pip install '.[interop]' && python -m tests.interop.run             all that is installed (minutes)
    python -m tests.interop.run peft lightning                          these libraries, or checks by name
    python -m tests.interop.run --dry                                   print, write nothing

A row stands for one check with one version of its library beside one of transformers, and is replaced
by the next run with these. ``adapters`` and ``optimum-onnx`` want an older transformers than the
newest: give them environments of their own. Trained weights are fetched from the package index at the
first run. Exit code 1 where a check failed; its row then says so.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

from tests.interop.checks import Check, checks

TABLE = Path(__file__).parents[2] / "docs" / "interop.csv"
COLUMNS = ("library", "version", "transformers", "way", "check", "claim", "weights", "difference")


def row_of(check: Check, difference: str) -> dict[str, str]:
    return {
        "library": check.library,
        "version": version(check.library),
        "transformers": version("transformers"),
        "way": "reads ours" if check.reads else "is read",
        "check": check.name,
        "claim": check.claim,
        "weights": "trained" if check.trained else "random",
        "difference": difference,
    }


def key(row: dict[str, str]) -> tuple[str, ...]:
    return row["library"], row["check"], row["version"], row["transformers"]


def enter(rows: list[dict[str, str]]) -> None:
    """Put the rows into the table, in place of older ones of the same versions."""
    known = {}
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            known = {key(row): row for row in csv.DictReader(file)}
    known |= {key(row): row for row in rows}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known[one] for one in sorted(known))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chosen", nargs="*", metavar="LIBRARY or CHECK")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # nothing here asks the hub
    rows, failed = [], 0
    for check in checks():
        if options.chosen and check.library not in options.chosen and check.name not in options.chosen:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                difference = f"{check.run(Path(folder)):.1e}"
            except Exception as error:
                failed += 1
                difference = "failed"
                traceback.print_exc(limit=-4)
                print(f"{type(error).__name__}: {error}")
        rows.append(row_of(check, difference))
        taken = time.perf_counter() - start
        print(f"{check.library:22} {check.name:20} {difference:>8}  {taken:5.1f} s", flush=True)
    if not options.dry:
        enter(rows)
    print(f"{len(rows)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
