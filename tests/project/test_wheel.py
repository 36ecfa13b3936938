"""The built wheel carries everything: installed where nothing else of ours is, it lists, informs,
converts and creates.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, torch, zoo
from pathlib import Path
assert "site-packages" in zoo.__file__, zoo.__file__
sizes = dict(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=20, embedding_size=8, vocab_size=30)
model = zoo.create("albert-base", **sizes)
zoo.save(model, "ours")
zoo.convert("ours", "theirs", to="hf-albert")
report = zoo.convert("theirs", "again.safetensors")
assert report.checks.ok
again = zoo.load("again.safetensors")
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
print("done", report.tensors)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A new environment with the wheel alone; its dependencies are seen through the tests' own
    environment, our package is not.
    """
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next(folder.glob("*.whl"))
    environment = folder / "env"
    venv.create(environment, with_pip=False)
    site = next((environment / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "weights/", "docs/"))]
    (site / "dependencies.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # a plain path: its own .pth files stay unread
    return environment / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_by_itself(installed, tmp_path):
    assert "albert-base" in run(installed, tmp_path, "-m", "zoo", "list").split()
    assert "11,683,584" in run(installed, tmp_path, "-m", "zoo", "info", "albert-base")
    assert run(installed, tmp_path, "-c", SCRIPT).startswith("done")
