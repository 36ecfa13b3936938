"""A folder written beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from zoo.checkpoints.description import CONFIG_FILE
from zoo.errors import InputError


class staged:
    """A folder beside ``out`` to work in, moved into its place when whole; for a single file the
    writer does that by itself.
    """

    def __init__(self, out: Path, to_file: bool = False, dry_run: bool = False) -> None:
        if out.exists() and (out.is_dir() if to_file else not out.is_dir()):
            raise InputError(f"{out} is a {'folder' if to_file else 'file'}; give a {'file' if to_file else 'folder'}")
        self.out, self.needed, self.stage = out, not to_file and not dry_run, Path()

    def __enter__(self) -> Path:
        if self.needed:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.stage = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".incomplete", dir=self.out.parent))
        return self.stage

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.needed:
            try:
                if kind is None:
                    publish(self.stage, self.out)
            finally:
                shutil.rmtree(self.stage, ignore_errors=True)


def publish(stage: Path, folder: Path) -> None:
    """Move a finished folder into its place; where one is there, file by file, the config last."""
    os.chmod(stage, 0o755)
    if not folder.exists():
        os.replace(stage, folder)
        return
    for path in sorted(stage.iterdir(), key=lambda p: p.name == CONFIG_FILE):
        os.replace(path, folder / path.name)
