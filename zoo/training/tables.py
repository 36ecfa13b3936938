"""Rows that fine-tuning adds to a trained model's tables: new words, and segments that start as old
ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.layers.heads import MaskedLMHead, TableHead
from zoo.layers.init import truncated_normal
from zoo.models.base.model import M, bare_model


@torch.no_grad()
def grow_tables(model: M, words: int = 0, segments: Sequence[int] = (), generator: torch.Generator | None = None) -> M:
    """Add ``words`` rows to the table of words, drawn as the model draws them, and to the table of
    segments a copy of each row that ``segments`` names -> the same model, changed in place; its config
    counts the rows.

    UNITER on VCR takes ``words=81, segments=(0, 0)``, on NLVR2 ``segments=(1,)``. Heads that predict
    words learn the new ones too.
    """
    bare = bare_model(model)
    wanted = [name for name, rows in (("token", words), ("segment", segments)) if rows]
    tables: dict[str, nn.Embedding | None] = {name: getattr(bare.embeddings, name, None) for name in wanted}
    for name, table in tables.items():
        if type(table) is not nn.Embedding:
            kind = "none" if table is None else type(table).__name__
            raise InputError(f"only plain tables grow; embeddings.{name} is {kind}")
    changed = {}
    if (token := tables.get("token")) is not None:
        if words < 0:
            raise InputError(f"words must be 0 or more, got {words}")
        _append(token, _drawn(token.weight, words, bare.config.initializer_range, generator))
        changed["vocab_size"] = token.num_embeddings
        for part in model.modules():
            if isinstance(part, MaskedLMHead | TableHead):
                part.bias = nn.Parameter(torch.cat([part.bias, part.bias.new_zeros(words)]))
                if part.decoder is not None:
                    new = _drawn(part.decoder.weight, words, bare.config.initializer_range, generator)
                    part.decoder.weight = nn.Parameter(torch.cat([part.decoder.weight, new]))
                    part.decoder.out_features += words
    if (segment := tables.get("segment")) is not None:
        wrong = [row for row in segments if not 0 <= row < segment.num_embeddings]
        if wrong:
            raise InputError(f"segments must name rows in 0..{segment.num_embeddings - 1}, got {wrong[0]}")
        _append(segment, segment.weight[list(segments)])
        changed["num_segments"] = segment.num_embeddings
    bare.config = bare.config.replace(**changed)
    return model


def _append(table: nn.Embedding, rows: Tensor) -> None:
    table.weight = nn.Parameter(torch.cat([table.weight, rows]), table.weight.requires_grad)
    table.num_embeddings += len(rows)


def _drawn(like: Tensor, rows: int, std: float, generator: torch.Generator | None) -> Tensor:
    """New rows, as those of a fresh model are drawn."""
    new = like.new_empty(rows, like.shape[1])
    truncated_normal(new, std, generator)
    return new
