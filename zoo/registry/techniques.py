"""Every technique, declared once, without torch: where its class stands, its docs page, and an
example for the matrix.

`zoo.__all__`, what a saved config may name, `zoo matrix` and the tables of `docs/techniques.md` are
made from this table. A new technique takes a row here, and then `python -m docs.generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """The ``module`` of the class and its ``page`` in `docs/techniques/`. ``example``: fields at
    which small models take it, None where the matrix leaves it out. ``after``: what it needs on the
    model first. ``alone``: by its paper what it adds is trained alone, and the model stays as it is.
    """

    module: str
    page: str
    example: Mapping[str, Any] | None = {}
    after: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    alone: bool = False


_ADAPTERS = tuple(("BottleneckAdapter", {"name": name, "reduction": 2.0}) for name in ("one", "two"))
_K_ADAPTER = {
    "names": ("facts", "grammar"),
    "size": 4,
    "num_heads": 2,
    "intermediate_size": 6,
    "num_layers": 1,
    "dropout": 0.0,
}
_IN = "zoo.techniques."

TECHNIQUES: dict[str, Declaration] = {
    "StridedAttention": Declaration(f"{_IN}sparse.technique", "sparse-attention", {"stride": 2}),
    "FixedAttention": Declaration(f"{_IN}sparse.technique", "sparse-attention", {"stretch": 3, "summary": 1}),
    "SlidingWindow": Declaration(f"{_IN}sparse.technique", "sparse-attention", {"radius": 1, "global_tokens": 1}),
    "AdaptiveSpan": Declaration(
        f"{_IN}adaptive_span.technique", "adaptive-span", {"limit": 2, "ramp": 2, "start": 0.5, "positions": True}
    ),
    "LongShortRange": Declaration(f"{_IN}long_short.technique", "long-short-range"),
    "Sharing": Declaration(f"{_IN}sharing", "sharing"),
    "FactorizedEmbedding": Declaration(f"{_IN}sharing", "factorized-embedding", {"size": 3}),
    "LoRA": Declaration(f"{_IN}lora.technique", "lora", {"rank": 2, "alpha": 4}, alone=True),
    "IA3": Declaration(f"{_IN}lora.technique", "ia3", alone=True),
    "BottleneckAdapter": Declaration(f"{_IN}adapters.technique", "adapters", {"reduction": 2.0}, alone=True),
    "AdapterFusion": Declaration(f"{_IN}adapters.technique", "adapters", {"names": ("one", "two")}, _ADAPTERS, True),
    "ActiveAdapters": Declaration(f"{_IN}adapters.technique", "adapters", {"names": ("two", "one")}, _ADAPTERS, True),
    "InvertibleAdapter": Declaration(f"{_IN}adapters.technique", "adapters", alone=True),
    "PrefixTuning": Declaration(f"{_IN}prefix.technique", "prefix-tuning", {"length": 2, "bottleneck": 3}, alone=True),
    "KAdapter": Declaration(f"{_IN}k_adapter.technique", "k-adapter", _K_ADAPTER, alone=True),
    "WeightPruning": Declaration(f"{_IN}pruning.weights", "pruning", {"sparsity": 0.5, "scope": "across"}),
    "MovementPruning": Declaration(f"{_IN}pruning.weights", "pruning", {"threshold": 0.5}),
    "L0Pruning": Declaration(f"{_IN}pruning.weights", "pruning"),
    "HeadPruning": Declaration(f"{_IN}pruning.structured", "pruning", {"kept": 0.5}),
    "FeedForwardPruning": Declaration(f"{_IN}pruning.structured", "pruning", {"kept": 0.5}),
    "WidthPruning": Declaration(f"{_IN}pruning.width", "pruning", {"kept": 0.5}),
    "GatePruning": Declaration(f"{_IN}pruning.gates", "pruning"),
    "Theseus": Declaration(f"{_IN}theseus", "theseus", {"layers": 1, "rate": 1.0}),
    "LayerPruning": Declaration(f"{_IN}pruning.structured", "pruning", {"layers": (1,)}),
    "Q8Bert": Declaration(f"{_IN}quantization.technique", "quantization"),
    "QBert": Declaration(f"{_IN}quantization.technique", "quantization", {"bits": 3, "groups": 4}),
    "FullyQt": Declaration(f"{_IN}quantization.technique", "quantization", {"bits": 6}),
    "IBert": Declaration(f"{_IN}quantization.technique", "quantization"),
    "Int8": Declaration(f"{_IN}quantization.technique", "quantization"),
    "WeightOnly": Declaration(f"{_IN}quantization.technique", "quantization", {"bits": 4, "block": 4}),
    "EarlyExit": Declaration(f"{_IN}early_exit", "early-exit", None),  # it changes no result of the model's
}
