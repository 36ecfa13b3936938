"""CLIP: its tokenizer, its preprocessing, and its losses. The case's own merges take the place of the public file's."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

from tests.references.case import Adapter, Case
from tests.references.contrast import open_clip, open_siglip
from tests.references.images import clip_transform
from zoo.errors import InputError
from zoo.tokenization import load_tokenizer


def bpe_tokenizer(case: Case) -> dict[str, Any]:
    given = case.given
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        file.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(given["merges"]) + "\n").encode()))
        tokenizer = load_tokenizer(folder, {"clip": file.name, "max_length": given["context_length"]})
    rows = []
    for text in given["texts"]:
        whole = tokenizer.encode(text).ids[1:-1]
        row: dict[str, Any] = {
            "text": text,
            "bpe_ids": whole,
            "decoded": tokenizer.decode(whole, skip_special_tokens=False),
        }
        try:
            batch = tokenizer(text, padding="max_length", truncation=given["truncate"])
            row |= {"ids": batch["input_ids"][0].tolist(), "too_long_error": False}
        except InputError:
            row |= {"ids": None, "too_long_error": True}
        rows.append(row)
    return {
        "vocab_size": tokenizer.vocab_size,
        "start_token": tokenizer.cls_token_id,
        "end_token": tokenizer.sep_token_id,
        "rows": rows,
        "some_ids": {tokenizer.id_to_token(i): i for i in range(tokenizer.vocab_size)},
    }


ADAPTERS: dict[str, Adapter] = {
    "clip.simple_tokenizer": bpe_tokenizer,
    "clip.clip._transform": clip_transform,
    "ClipLoss": open_clip,
    "SigLipLoss": open_siglip,
}
