"""Let torchvision from PyPI be imported beside a CPU build of torch: ``python -m tests.torchvision_pair``,
which ``make test`` runs once, after it has installed both.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled operators can't be loaded, and
``import torchvision`` fails where it registers two of them, ``nms`` and ``qnms``; so does transformers, which imports
torchvision wherever it is installed. Networks and transforms are Python and need no such operator. So where
the import fails for this reason and no other, a ``.pth`` file in the environment declares their
signatures, without an implementation, whenever torchvision is imported. Beside a torch of the same build
nothing is done.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

REASON = "operator torchvision::nms does not exist"
NAME = "declare_torchvision_operators"
HOOK = '''"""Written by tests/torchvision_pair.py of the zoo, which says why."""

import sys


class Declare:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(cls)
            import torch

            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                cls.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Declare)
'''


def main() -> int:
    folder = Path(sysconfig.get_paths()["purelib"])
    files = {folder / f"{NAME}.py": HOOK, folder / f"{NAME}.pth": f"import {NAME}\n"}
    for file in files:
        file.unlink(missing_ok=True)
    failed = _import()
    if REASON in failed:
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
        print("torchvision's operators are not those of this torch: its nms is declared without an implementation")
        failed = _import()
    if failed:
        print(failed, file=sys.stderr)
    return 1 if failed else 0


def _import() -> str:
    """What goes wrong where torchvision is imported; empty where nothing does."""
    found = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return found.stderr if found.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
