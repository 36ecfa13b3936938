"""`zoo.tokenizer`: the tokenizer of a model, a registered tag or a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zoo.checkpoints.binding import MODULES, check_beside, header_beside
from zoo.checkpoints.locate import locate
from zoo.data.images.files import FILE as IMAGES_FILE
from zoo.formats.disk import settled
from zoo.inference.search.settings import FILE as SEARCH_FILE


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
            names = [
                name for name in header.files if name not in (*MODULES, IMAGES_FILE, SEARCH_FILE) and "/" not in name
            ]
            there = next((name for name in names if (path / name).exists()), "")
            check_beside(header, path, names, "tokenizer", f"zoo.tokenizer({str(path / there)!r})")
        return found

    return settled(read, path)
