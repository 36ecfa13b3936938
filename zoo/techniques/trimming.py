"""`zoo.trim_vocabulary`: a model and its tokenizer without the tokens that some texts never use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import InputError
from zoo.techniques.rebuild import rebuilt
from zoo.tokenization.tokenizer import Tokenizer
from zoo.tokenization.trim import first_difference, tokens_of, trim_tokenizer


@dataclass(frozen=True)
class Trimmed:
    """The smaller model and tokenizer. ``kept``: the old ids in order, the new id is the place
    there; ``before`` and ``after``: parameters; ``held``: how many texts were held against the old
    tokenizer, all equal.
    """

    model: Any
    tokenizer: Tokenizer
    kept: tuple[int, ...]
    before: int
    after: int
    held: int

    def __str__(self) -> str:
        share = 1 - self.after / self.before
        counts = f"{self.before:,} parameters before, {self.after:,} after ({share:.1%} less)"
        return f"{len(self.kept):,} tokens stay; {counts}; {self.held:,} texts held"


def trim_vocabulary(
    model: nn.Module, tokenizer: Tokenizer, texts: Iterable[str], *, least: int = 1, keep: Iterable[str] = ()
) -> Trimmed:
    """Leave every token that ``texts`` don't use out of a model's token table and of what predicts
    tokens. -> both new; the old ones stay.

    least: tokens that occur less often go too, and with them the texts that use them. keep: tokens
    that stay besides. Special tokens and all ids up to the padding's stay. Before it returns, both
    tokenizers have cut every text that lies wholly in the kept tokens, and the two agree; a
    difference would be an InputError.
    """
    texts = list(texts)
    bare: Any = getattr(model, "model", model)
    size = getattr(bare.config, "vocab_size", None)
    if size is None or tokenizer.vocab_size > size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model's table {size}; give the model its own "
            "tokenizer"
        )
    wanted = tokens_of(tokenizer, texts, least)
    for token in keep:
        index = tokenizer.token_to_id(token)
        if index is None:
            raise InputError(f"keep names {token!r}, which is no token of this tokenizer")
        wanted.add(index)
    config = bare.config
    named = {name: getattr(config, name) for name in config.field_names() if name.endswith("_token_id")}
    wanted |= {index for index in named.values() if index is not None and tokenizer.id_to_token(index) is not None}
    smaller, kept = trim_tokenizer(tokenizer, wanted)
    held, differing = first_difference(tokenizer, smaller, kept, texts)
    if differing is not None:
        raise InputError(f"the trimmed tokenizer cuts {differing[:80]!r} differently; keep more of its tokens")
    rank = {old: new for new, old in enumerate(kept)}
    moved = {name: rank[index] for name, index in named.items() if index in rank}
    made = _smaller(model, bare, config.replace(vocab_size=len(kept), **moved), kept)
    return Trimmed(made, smaller, tuple(kept), _count(model), _count(made), held)


def _count(model: Any) -> int:
    return int(model.num_parameters())


def _smaller(model: Any, bare: Any, config: Any, kept: list[int]) -> Any:
    index = torch.tensor(kept)
    return rebuilt(model, config, lambda path, old, axis: old.index_select(axis, index.to(old.device)))
