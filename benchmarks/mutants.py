"""Do the tests bite? ``python -m benchmarks.mutants`` breaks the library on purpose, one way at a
time, and runs the tests for it.

The ways are data: ``benchmarks/mutants/*.toml``, each a name, a file, the text that stands there
and the text put in its place. A mutant is noticed when a test fails, an error while tests are
collected does not count. Every text must occur exactly once, so the list stays true to the code.
Each mutant runs in a copy of the tree, in a process forked from one that has imported torch,
transformers and hypothesis.

    python -m benchmarks.mutants [WORDS ...]     only mutants whose name or file has one of the words
        --list                                    check and print the list
        --jobs N                                  processes at a time (default: the cores)
        --json FILE                               also write the result there
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LISTS = Path(__file__).with_suffix("")
GOAL = 0.95
COPIED = ("zoo", "tests", "weights", "pyproject.toml", "docs", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
FAMILIES = ("bert", "albert")  # what the shared tests draw, unless a list says more
TESTS = (
    "tests/layers/test_attention.py",
    "tests/models/test_golden.py",
    "tests/models/test_equivalence.py",
    "tests/models/test_common.py",
    "tests/models/test_bad_input.py",
)


@dataclass(frozen=True)
class Mutant:
    """One way to break the library. ``tests``: the files that should notice, the quickest first;
    ``families``: those they should try.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    families: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """``noticed_by``: the first test that failed, empty for a survivor; ``broken``: why it is no
    proper mutant.
    """

    name: str
    file: str
    noticed_by: str
    seconds: float
    broken: str = ""


def mutants() -> list[Mutant]:
    """The whole list, each checked against the code."""
    found: list[Mutant] = []
    for path in sorted(LISTS.glob("*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for row in table["mutant"]:
            tests = tuple(row.get("tests", table.get("tests", TESTS)))
            families = tuple(row.get("families", table.get("families", FAMILIES)))
            made = Mutant(row["name"], row.get("file", table.get("file", "")), row["old"], row["new"], tests, families)
            count = (ROOT / made.file).read_text(encoding="utf-8").count(made.old)
            if count != 1:
                raise SystemExit(
                    f"{path.name}: {made.name!r}: the old text occurs {count} times in {made.file}, it must occur once"
                )
            if made.old == made.new:
                raise SystemExit(f"{path.name}: {made.name!r} changes nothing")
            found.append(made)
    names = [m.name for m in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SystemExit(f"two mutants are called {twice.pop()!r}")
    return found


def copy_tree(where: Path) -> None:
    """The parts of the tree that tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, where / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        else:
            shutil.copy(source, where / name)


def preload() -> None:
    """Import what is slow and not ours, once, before the forks."""
    import hypothesis
    import pytest
    import safetensors.torch
    import torch
    import transformers
    from transformers import AlbertForPreTraining, BertForPreTraining  # noqa: F401 - they are loaded lazily

    torch.set_num_threads(1)
    assert "zoo" not in sys.modules, "the library must be imported in the fork alone"
    del hypothesis, pytest, safetensors, transformers


def run_tests(tree: Path, tests: list[str], log: Path, stop: bool) -> None:
    """In a fork: pytest in ``tree``; the exit code is pytest's."""
    import pytest

    sys.dont_write_bytecode = True
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, tree))]
    with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        options = [
            "-q",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            "--hypothesis-profile=unshrunk",
            "-W",
            "ignore",
            *(["-x"] if stop else []),
        ]
        code = int(pytest.main([*options, "-m", "not slow and not weights", *tests]))
        import zoo

        if not Path(zoo.__file__).is_relative_to(tree):
            print(f"the tests ran {zoo.__file__}, not the mutant")
            code = 99
    os._exit(code)


def forked(tree: Path, tests: list[str], log: Path, *, stop: bool, longest: float | None = None) -> int | None:
    """The tests' exit code, or None where they took ``longest`` seconds without coming to an
    end.
    """
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(tree, tests, log, stop))
    process.start()
    process.join(longest)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def failed(log: Path) -> list[str]:
    """The tests that a log says have failed."""
    return re.findall(
        r"^(?:FAILED|ERROR) (\S+?\.py(?:::[^\n]*?)?)(?: - .*)?$", log.read_text(encoding="utf-8"), re.MULTILINE
    )


def attempt(mutant: Mutant, tree: Path, left_out: list[str], longest: float) -> Outcome:
    """Break, test, mend."""
    path, log, start = tree / mutant.file, tree / "log.txt", time.perf_counter()
    good = path.read_text(encoding="utf-8")
    path.write_text(good.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = forked(
            tree, [*mutant.tests, *(f"--deselect={name}" for name in left_out)], log, stop=True, longest=longest
        )
    finally:
        path.write_text(good, encoding="utf-8")
    seconds = round(time.perf_counter() - start, 1)
    if code == 0:
        return Outcome(mutant.name, mutant.file, "", seconds)
    if code == 1:
        return Outcome(mutant.name, mutant.file, (failed(log) or ["?"])[0], seconds)
    if code is None:
        return Outcome(mutant.name, mutant.file, f"no end within {longest:.0f} s", seconds)
    return Outcome(
        mutant.name, mutant.file, "", seconds, f"exit code {code}: {log.read_text(encoding='utf-8').strip()[-300:]}"
    )


def baseline(tree: Path, tests: list[str]) -> list[str]:
    """The tests that fail without any mutant; they are left out of all runs, and said so."""
    log = tree / "log.txt"
    code = forked(tree, tests, log, stop=False)
    if code not in (0, 1):
        raise SystemExit(f"the tests can't run: {log.read_text(encoding='utf-8')[-2000:]}")
    return failed(log)


def work(
    queue: multiprocessing.Queue[Mutant | None],
    results: multiprocessing.Queue[Outcome],
    tree: Path,
    left_out: list[str],
    longest: float,
) -> None:
    while (mutant := queue.get()) is not None:
        results.put(attempt(mutant, tree, left_out, longest))


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the library on purpose and see whether the tests notice.")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = [m for m in mutants() if not arguments.words or any(w in f"{m.name} {m.file}" for w in arguments.words)]
    if arguments.list:
        print("\n".join(f"{m.file}: {m.name}" for m in chosen))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["ZOO_TEST_FAMILIES"] = ",".join(sorted({family for mutant in chosen for family in mutant.families}))
    preload()
    context = multiprocessing.get_context("fork")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder).resolve() / str(number) for number in range(max(1, min(arguments.jobs, len(chosen))))]
        for tree in trees:
            tree.mkdir()
            copy_tree(tree)
        left_out = baseline(trees[0], list(dict.fromkeys(test for mutant in chosen for test in mutant.tests)))
        for name in left_out:
            print(f"left out, it fails without any mutant: {name}", flush=True)
        longest = 60 + 6 * (time.perf_counter() - start)  # a mutant that hangs is noticed
        print(
            f"{time.perf_counter() - start:.0f} s for the tests without a mutant; now {len(chosen)} mutants", flush=True
        )
        queue, results = context.Queue(), context.Queue()
        for item in [*chosen, *([None] * len(trees))]:
            queue.put(item)
        workers = [context.Process(target=work, args=(queue, results, tree, left_out, longest)) for tree in trees]
        for worker in workers:
            worker.start()
        outcomes = []
        for _ in chosen:
            outcomes.append(outcome := results.get())
            word = "BROKEN" if outcome.broken else "noticed" if outcome.noticed_by else "SURVIVED"
            print(
                f"{word:8} {outcome.seconds:6.1f} s  {outcome.name}  [{outcome.broken or outcome.noticed_by}]",
                flush=True,
            )
        for worker in workers:
            worker.join()
    noticed = sum(bool(o.noticed_by) for o in outcomes)
    survivors = [o for o in outcomes if not o.noticed_by]
    print(f"{noticed} of {len(outcomes)} noticed: {noticed / len(outcomes):.1%} in {time.perf_counter() - start:.0f} s")
    for outcome in survivors:
        print(f"  {'broken' if outcome.broken else 'survived'}: {outcome.file}: {outcome.name}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    return 0 if noticed / len(outcomes) >= GOAL and not any(o.broken for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
