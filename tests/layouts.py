"""Canonical names and shapes of BERT and ALBERT, written out by hand for tests of the maps: no
model is built.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def block(name: str, c: Mapping[str, int]) -> Shapes:
    shapes: Shapes = {}
    for part in ("query", "key", "value", "output"):
        shapes |= linear(f"{name}.attention.{part}", c["hidden_size"], c["hidden_size"])
    shapes |= norm(f"{name}.attention_norm", c["hidden_size"])
    shapes |= linear(f"{name}.feed_forward.up", c["intermediate_size"], c["hidden_size"])
    shapes |= linear(f"{name}.feed_forward.down", c["hidden_size"], c["intermediate_size"])
    return shapes | norm(f"{name}.feed_forward_norm", c["hidden_size"])


def canonical(family: str, c: Mapping[str, object], heads: tuple[str, ...] = (), labels: int = 3) -> Shapes:
    """Every tensor of ours for a config and some heads, in the order of the contract of names."""
    n: dict[str, int] = {key: value for key, value in c.items() if isinstance(value, int)}
    hidden, embedding = n["hidden_size"], n["embedding_size"] if family == "albert" else n["hidden_size"]
    shapes: Shapes = {
        "embeddings.token.weight": (n["vocab_size"], embedding),
        "embeddings.position.weight": (n["max_positions"], embedding),
        "embeddings.segment.weight": (n["num_segments"], embedding),
        **norm("embeddings.norm", embedding),
    }
    if family == "albert":
        shapes |= linear("embeddings.projection", hidden, embedding)
        for g in range(n["num_groups"]):
            for b in range(n["num_inner_blocks"]):
                shapes |= block(f"encoder.blocks.{g}.blocks.{b}", n)
    else:
        for i in range(n["num_layers"]):
            shapes |= block(f"encoder.blocks.{i}", n)
    if c["pooler"]:
        shapes |= linear("pooler.dense", hidden, hidden)
    for head in heads:
        name = f"heads.{head}"
        if head == "masked_lm":
            shapes |= (
                linear(f"{name}.dense", embedding, hidden)
                | norm(f"{name}.norm", embedding)
                | {f"{name}.bias": (n["vocab_size"],)}
            )
            if not c["tie_word_embeddings"]:
                shapes[f"{name}.decoder.weight"] = (n["vocab_size"], embedding)
        else:
            sizes = {"next_sentence": 2, "sentence_order": 2, "question_answering": 2, "multiple_choice": 1}
            shapes |= linear(name, sizes.get(head, labels), hidden)
    return shapes


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random numbers for each name, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """The same names with the same bits."""
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(left[name], right[name])
        for name in left
    )


BERT: dict[str, object] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 16,
    "num_segments": 2,
    "activation": "gelu",
    "norm_eps": 1e-12,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "classifier_dropout": None,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "pooler": True,
}
ALBERT: dict[str, object] = {
    **BERT,
    "embedding_size": 4,
    "num_groups": 1,
    "num_inner_blocks": 1,
    "activation": "gelu_tanh",
}
CONFIGS = {"bert": BERT, "albert": ALBERT}
