"""`zoo.trim_vocabulary`: a model and its tokenizer without the tokens that some texts never use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, TechniqueError
from zoo.models.base.model import bare_model
from zoo.techniques.blueprint import rebuilt
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
    config: Any = bare_model(model).config
    size = getattr(config, "vocab_size", None)
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
    named = {name: getattr(config, name) for name in config.field_names() if name.endswith("_token_id")}
    wanted |= {index for index in named.values() if index is not None and tokenizer.id_to_token(index) is not None}
    smaller, kept = trim_tokenizer(tokenizer, wanted)
    held, differing = first_difference(tokenizer, smaller, kept, texts)
    if differing is not None:
        raise InputError(f"the trimmed tokenizer cuts {differing[:80]!r} differently; keep more of its tokens")
    rank = {old: new for new, old in enumerate(kept)}
    moved = {name: rank[index] for name, index in named.items() if index in rank}
    rows = torch.tensor(kept)
    made = with_vocabulary(
        model,
        config.replace(vocab_size=len(kept), **moved),
        lambda old, axis: old.index_select(axis, rows.to(old.device)),
    )
    return Trimmed(made, smaller, tuple(kept), model.num_parameters(), made.num_parameters(), held)  # type: ignore[operator]


def with_vocabulary(model: Any, config: Any, along: Callable[[Tensor, int], Tensor]) -> Any:
    """The same model with a vocabulary of another size; ``along(old tensor, axis)`` changes those
    that have an axis of the vocabulary's size.
    """
    size = bare_model(model).config.vocab_size

    def fill(name: str, new: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        if name not in source:
            raise TechniqueError(f"the new model has {name}, which the old one has not")
        old = source[name]
        differing = [axis for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
        if len(differing) > 1 or any(old.shape[axis] != size for axis in differing):
            raise TechniqueError(
                f"{name} is {tuple(old.shape)} and would become {tuple(new.shape)}: not by its {size} tokens alone"
            )
        return along(old, differing[0]) if differing else old

    made = rebuilt(model, config, fill)
    if config.vocab_size <= size and not _same_rows(model, made, along):
        raise TechniqueError(
            f"the token table of this {type(bare_model(model)).__name__} is rounded on a grid that all of its rows "
            "share, and would be rounded otherwise without some of them; trim the vocabulary first, or quantize with "
            "embeddings=False"
        )
    return made


def _same_rows(model: Any, made: Any, along: Callable[[Tensor, int], Tensor]) -> bool:
    """Whether the token tables give for each token what they gave, however they are stored."""
    tables = (
        [site.module for site in bare_model(one).sites() if site.role == "token-embedding"] for one in (model, made)
    )
    for old, new in zip(*tables, strict=True):
        one, other = getattr(old, "weight", None), getattr(new, "weight", None)
        if isinstance(one, Tensor) and isinstance(other, Tensor) and not torch.equal(along(one.detach(), 0), other):
            return False
    return True
