"""The published recipes as lists of terms: DistilBERT, BERT-PKD, TinyBERT, pre-trained
distillation.
"""

from __future__ import annotations

from collections.abc import Callable

from zoo.training.distillation.terms import (
    AttentionScores,
    DistillationTerm,
    Embeddings,
    HiddenStates,
    LastStates,
    Layers,
    Patience,
    Relations,
    SoftTargets,
    Transfer,
)


def distilbert_terms() -> list[DistillationTerm]:
    """DistilBERT's triple loss: 5 softened divergence at T = 2, 2 masked words, 1 cosine of the
    last states; for masked-LM models.
    """
    return [SoftTargets(temperature=2.0, weight=5.0, hard_weight=2.0), LastStates(form="cosine")]  # eq: distilbert


def pkd_terms(
    temperature: float = 10.0, alpha: float = 0.5, beta: float = 100.0, layers: Layers = "skip"
) -> list[DistillationTerm]:
    """BERT-PKD: ``(1 - α) hard + α soft + β patience``."""
    return [
        SoftTargets(temperature=temperature, weight=alpha, hard_weight=1 - alpha, form="averaged"),
        Patience(weight=beta, layers=layers),
    ]


def tinybert_stages(temperature: float = 1.0) -> tuple[list[DistillationTerm], list[DistillationTerm]]:
    """TinyBERT's two stages: first embeddings, states and attention scores through one shared map,
    then the prediction.
    """
    shared = "shared"
    return (
        [Embeddings(projection=shared), HiddenStates(projection=shared), AttentionScores()],
        [SoftTargets(temperature=temperature, form="cross-entropy")],
    )


def pretrained_distillation_terms(temperature: float = 1.0) -> list[DistillationTerm]:
    """PD (Turc et al., 2019): soft labels alone, for a student that was pre-trained as a small
    model before.
    """
    return [SoftTargets(temperature=temperature)]


RECIPES: dict[str, Callable[[], tuple[list[DistillationTerm], ...]]] = {
    "soft-targets": lambda: ([SoftTargets(temperature=2.0, weight=0.5, hard_weight=0.5)],),
    "distilbert": lambda: (distilbert_terms(),),
    "pkd-skip": lambda: (pkd_terms(),),
    "pkd-last": lambda: (pkd_terms(layers="last"),),
    "tinybert": tinybert_stages,
    "minilm": lambda: ([Relations(version=1)],),
    "minilmv2": lambda: ([Relations(version=2)],),
    "mobilebert": lambda: ([Transfer()],),
    "pd": lambda: (pretrained_distillation_terms(),),
}
"""Published recipes by name: the terms of each stage, one stage after the other."""
