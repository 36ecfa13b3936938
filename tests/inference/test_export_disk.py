"""Exporting onto a full disk, in processes of their own: writers in C++ have ended them."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys, zoo
model = zoo.create(
    "bert-base", vocab_size=5000, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64
).eval()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    zoo.export(model, sys.argv[1])
except zoo.ZooError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_full_disk_is_a_clear_error_and_nothing_is_left(tmp_path, ending):
    if ending == "onnx":
        pytest.importorskip("onnxscript")
    command = [sys.executable, "-c", CODE, str(tmp_path / f"m.{ending}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-500:]
    assert "can't be written: File too large; nothing was left behind" in done.stdout
    assert list(tmp_path.iterdir()) == []
