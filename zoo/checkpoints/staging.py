"""A folder written beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.checkpoints.description import CONFIG_FILE
from zoo.errors import InputError

WEIGHTS = re.compile(r"^model(-.*\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$")


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
    """Move a finished folder into its place; where one is there, file by file, the config last, and
    without the weights that an older save split otherwise.
    """
    os.chmod(stage, 0o755)
    if not folder.exists():
        os.replace(stage, folder)
        return
    new = {path.name: path for path in stage.iterdir()}
    config = new.pop(CONFIG_FILE, None)
    for name, path in sorted(new.items()):
        if path.is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(path, folder / name)
    if any(WEIGHTS.match(name) for name in new):
        for path in folder.iterdir():
            if WEIGHTS.match(path.name) and path.name not in new:
                path.unlink()  # it would be read in place of the new ones, or beside them
    if config is not None:
        os.replace(config, folder / CONFIG_FILE)
