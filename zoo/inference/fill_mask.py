"""Small ready uses of task models."""

from __future__ import annotations

from typing import Any

import torch

from zoo.errors import InputError


def fill_masks(model: Any, tokenizer: Any, text: str, top: int = 5) -> list[list[dict[str, Any]]]:
    """The ``top`` likeliest tokens at each mask of ``text``, likeliest first, with their
    probabilities.

    model: a masked-lm task model in eval mode. Raises InputError where the text holds no mask.
    """
    mask = tokenizer.mask_token_id
    if mask is None:
        raise InputError("this model's tokenizer has no mask token, so there is nothing to fill")
    batch = tokenizer([text])
    places = (batch["input_ids"][0] == mask).nonzero().flatten()
    if not len(places):
        raise InputError(f"the text holds no mask token; write {tokenizer.id_to_token(mask)} where a word is missing")
    with torch.inference_mode():
        probabilities = model(**batch).prediction_logits[0, places].softmax(-1)
    best = probabilities.topk(min(top, probabilities.shape[1]))
    return [
        [{"token": tokenizer.id_to_token(i), "id": i, "probability": p} for i, p in zip(ids, values, strict=True)]
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
