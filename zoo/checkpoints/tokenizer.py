"""`zoo.tokenizer`: the tokenizer of a model, a registered tag or a folder."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from zoo.checkpoints.binding import MODULES, Header, faults, header_beside, replaced, same_save
from zoo.checkpoints.locate import locate
from zoo.errors import CheckpointError
from zoo.formats.disk import settled


def tokenizer(source: str | os.PathLike[str]) -> Any:
    """The tokenizer of a registered name (its default checkpoint's), a folder, a file, or
    ``"hub:org/name"``.

    ``.encode(text, pair)`` gives a tokenizers.Encoding, ``tokenizer(texts)`` tensors for
    ``model(**batch)``, ``.backend`` the tokenizers.Tokenizer.
    """
    from zoo.tokenization import load_tokenizer

    path, record = locate(source)
    spec = dict(record.tokenizer) if record is not None and record.tokenizer else None
    if not Path(path).is_dir():
        return load_tokenizer(path, spec)

    def read() -> Any:
        header, found = header_beside(path), load_tokenizer(path, spec)
        if header is not None:
            _check(header, path)
        return found

    return settled(read, path)


def _check(header: Header, folder: Path) -> None:
    """Tell of a tokenizer that is not the one written with the weights beside it; refused where it may
    be of another save.
    """
    names = [name for name in header.files if name not in MODULES and "/" not in name and (folder / name).exists()]
    if not (found := faults(folder, header.files, names)):
        return
    if not same_save(folder, header.generation) or replaced(folder, header):
        raise CheckpointError(
            f"{folder}: {found[0]}: it is of another save, of which one was cut short.\nSave the model with its "
            f"tokenizer again, or take this one as it is: zoo.tokenizer({str(folder / names[0])!r})"
        )
    warnings.warn(f"{folder}: {found[0]}: it was edited, and is taken as it is", UserWarning, stacklevel=4)
