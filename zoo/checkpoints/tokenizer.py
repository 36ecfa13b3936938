"""`zoo.tokenizer`: the tokenizer of a model, a registered tag or a folder."""

from __future__ import annotations

import os
from typing import Any

from zoo.checkpoints.locate import locate


def tokenizer(source: str | os.PathLike[str]) -> Any:
    """The tokenizer of a registered name (its default checkpoint's), a folder, a file, or
    ``"hub:org/name"``.

    ``.encode(text, pair)`` gives a tokenizers.Encoding, ``tokenizer(texts)`` tensors for
    ``model(**batch)``, ``.backend`` the tokenizers.Tokenizer.
    """
    from zoo.tokenization import load_tokenizer

    path, record = locate(source)
    return load_tokenizer(path, dict(record.tokenizer) if record is not None and record.tokenizer else None)
