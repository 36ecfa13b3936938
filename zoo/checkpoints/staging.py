"""A folder written beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.checkpoints.binding import CONFIG_FILE, header_beside
from zoo.errors import InputError
from zoo.formats.disk import alone, workspace

WEIGHTS = re.compile(r"^model(-.*\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$")


@contextmanager
def staged(out: Path, to_file: bool = False, dry_run: bool = False, *, keep: bool = False) -> Iterator[Path]:
    """A folder beside ``out`` to work in, moved into its place when whole; for a single file the
    writer does that by itself. ``keep``: as `publish`.
    """
    if out.exists() and (out.is_dir() if to_file else not out.is_dir()):
        raise InputError(f"{out} is a {'folder' if to_file else 'file'}; give a {'file' if to_file else 'folder'}")
    if to_file or dry_run:
        yield Path()
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with workspace(out) as stage:
        yield stage
        publish(stage, out, keep=keep)


def publish(stage: Path, folder: Path, *, keep: bool = False) -> None:
    """Move a finished folder into its place; where one is there, file by file: the weights first, the
    config last. Between the two the weights' own header tells what they are, and that the config is
    of another save; once both are there, whatever differs was edited by hand.

    Weights that an older save split otherwise go, and, unless ``keep`` says otherwise, the files that
    were written with the old weights and have no successor.
    """
    if not folder.exists():
        try:
            os.replace(stage, folder)
            return
        except OSError:
            if not folder.is_dir():  # another process made it meanwhile
                raise
    with alone(folder):
        old = header_beside(folder)
        new = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
        for name in sorted(filter(WEIGHTS.match, new), key=lambda name: (name.endswith(".json"), name)):
            os.replace(stage / name, folder / name)  # shards before the index that names them
        if any(map(WEIGHTS.match, new)):
            for path in folder.iterdir():
                if WEIGHTS.match(path.name) and path.name not in new:
                    path.unlink()  # it would be read in place of the new ones, or beside them
            for name in () if old is None or keep else old.files:
                if name not in new:
                    with suppress(OSError):  # it is gone, or something of the user's own
                        (folder / name).unlink()
        for name in sorted(new, key=lambda name: (name == CONFIG_FILE, name)):
            if not WEIGHTS.match(name):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(stage / name, folder / name)
