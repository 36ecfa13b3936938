"""A folder written beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.checkpoints.description import CONFIG_FILE
from zoo.errors import InputError


@contextmanager
def staged(out: Path, to_file: bool = False, dry_run: bool = False) -> Iterator[Path]:
    """A folder beside ``out`` to work in, moved into its place when whole; for a single file the
    writer does that by itself.
    """
    if out.exists() and (out.is_dir() if to_file else not out.is_dir()):
        raise InputError(f"{out} is a {'folder' if to_file else 'file'}; give a {'file' if to_file else 'folder'}")
    if to_file or dry_run:
        yield Path()
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".incomplete", dir=out.parent))
    try:
        yield stage
        publish(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, folder: Path) -> None:
    """Move a finished folder into its place; where one is there, file by file, the config last."""
    os.chmod(stage, 0o755)
    if not folder.exists():
        os.replace(stage, folder)
        return
    for path in sorted(stage.iterdir(), key=lambda p: p.name == CONFIG_FILE):
        os.replace(path, folder / path.name)
