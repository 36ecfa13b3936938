"""Run the suite at the lowest direct versions that pyproject declares, and on other Pythons.

    python -m benchmarks.versions PYTHON [PYTHON ...]            # at the versions of constraints.txt
    python -m benchmarks.versions --lowest PYTHON                # at the lowest versions declared
    python -m benchmarks.versions --lowest python3.11 --into DIR -- tests/inference -x

PYTHON is an interpreter, such as python3.12. Each gets a virtual environment in DIR (default: a
folder beside this checkout's .venv), which a second call reuses. What stands behind `--` goes to
pytest. The last line of each run is printed with the versions that were installed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

HOME = Path(__file__).parents[1]
FLOOR = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)\s*>=\s*(?P<version>[0-9][0-9.]*)")


ORACLE = {"tokenizers": "0.23.1", "huggingface_hub": "1.31.0"}
"""What transformers, which the suite compares with, needs at least; below that `tests.interop.run` goes."""


def floors(pyproject: Path = HOME / "pyproject.toml") -> dict[str, str]:
    """The lowest version of each package that the library and its extras declare, except where the
    suite's own tools need a newer one. Those are taken as constraints.txt has them.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    own = {FLOOR.match(each)["name"] for name in ("regions", "onnx", "xlm", "clip", "chinese") for each in extras[name]}  # type: ignore[index]
    found = {}
    for requirement in [*project["dependencies"], *extras["test"]]:
        match = FLOOR.match(requirement)
        if match is None:
            raise SystemExit(f"{requirement!r} declares no lowest version; write NAME>=VERSION")
        if requirement in project["dependencies"] or match["name"] in own:
            found[match["name"]] = match["version"]
    return found | ORACLE


def environment(python: str, lowest: bool, folder: Path) -> Path:
    """The interpreter of a virtual environment with the versions asked for."""
    ran = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
    if ran.returncode:
        raise SystemExit(f"{python} does not run: {ran.stderr.decode(errors='replace').strip()}")
    version = ran.stdout.decode().strip()
    home = folder / f"python{version}-{'lowest' if lowest else 'tested'}"
    inside = home / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", str(home)], check=True)
    constraints = HOME / "constraints.txt"
    if lowest:
        lowest_of = floors()
        rest = [line for line in constraints.read_text().splitlines() if line.partition("==")[0] not in lowest_of]
        constraints = home / "lowest.txt"
        constraints.write_text("\n".join([*rest, *(f"{name}=={version}" for name, version in lowest_of.items())]))
    install = [str(inside), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([*install, "--editable", f"{HOME}[test]"], check=True)
    return inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+")
    parser.add_argument("--lowest", action="store_true")
    parser.add_argument("--into", type=Path, default=HOME / ".venvs")
    own, _, behind = "\0".join(sys.argv[1:]).partition("\0--\0")
    arguments = parser.parse_args([word for word in own.split("\0") if word])
    pytest = behind.split("\0") if behind else ["-n", "2", "--dist", "worksteal"]
    failed = []
    for python in arguments.pythons:
        inside = environment(python, arguments.lowest, arguments.into.resolve())
        shown = subprocess.run(
            [str(inside), "-m", "pip", "freeze", "--exclude-editable"], capture_output=True, text=True
        )
        known = {name.lower().replace("-", "_") for name in floors()}
        lines = [line for line in shown.stdout.split() if line.split("==")[0].lower().replace("-", "_") in known]
        command = [str(inside), "-m", "pytest", "-q", *pytest]
        ran = subprocess.run(
            command, cwd=HOME, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True
        )
        print(ran.stdout[-6000:] if ran.returncode else "", end="")
        last = (ran.stdout.strip() or ran.stderr.strip() or "no output").splitlines()[-1]
        print(f"{python}: {last.strip('= ')}\n  {', '.join(lines)}", flush=True)
        if ran.returncode:
            failed.append(python)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
