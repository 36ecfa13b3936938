"""The one entry to golden cases: what ours computes for a folder that holds what public reference
code computed.

run_case(folder) -> {reference output name: tensor}           reads inputs, config and weights; never the stored outputs
python -m tests.reference FOLDER... [--out DIR]                runs and compares; exit code 1 where one differs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.references.case import Case, Output, Skipped, expected, find_adapter, flatten, load_case
from tests.references.compare import compare


def run(case: Case) -> dict[str, Any]:
    """Ours for a loaded case, with the adapter's remarks on what may be compared."""
    return dict(find_adapter(case)(case))


def run_case(folder: Path | str) -> dict[str, Tensor]:
    """Ours for the case in ``folder``, under the reference's output names. Values that are no
    tensors (strings) come as they are.
    """
    named = flatten(run(load_case(folder)))
    plain = {
        name: value.value if isinstance(value, Output) else value
        for name, value in named.items()
        if not isinstance(value, Skipped)
    }
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in flatten(plain).items()}


def check(folder: Path | str) -> list[str]:
    """The differences between ours and the stored outputs of a case; empty where it passes."""
    case = load_case(folder)
    return compare(case, run(case))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="golden cases, or folders that hold some at any depth"
    )
    parser.add_argument("--out", type=Path, help="write what ours computed into this folder, one file per case")
    options = parser.parse_args(arguments)
    cases = sorted({file.parent for folder in options.folders for file in folder.rglob("case.json")})
    if not cases:
        parser.error(f"no case.json under {', '.join(map(str, options.folders))}")
    failed = 0
    for folder in cases:
        started = time.perf_counter()
        name = f"{folder.parent.name}/{folder.name}"
        try:
            case = load_case(folder)
            ours = run(case)
            differences = compare(case, ours) if expected(case) else []
        except Exception as error:  # a report of many cases goes on to the next one
            failed += 1
            print(f"ERROR {name}: {type(error).__name__}: {error}")
            continue
        failed += bool(differences)
        print(f"{'FAIL' if differences else 'ok  '} {name} ({time.perf_counter() - started:.2f} s)")
        for difference in differences:
            print(f"       {difference}")
        if options.out:
            _write(options.out / f"{folder.parent.name}--{folder.name}", run_case(folder))
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _write(path: Path, named: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in named.items() if isinstance(v, Tensor)}, f"{path}.safetensors")
    rest = {n: v for n, v in named.items() if not isinstance(v, torch.Tensor)}
    if rest:
        Path(f"{path}.json").write_text(json.dumps(rest, default=str), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
