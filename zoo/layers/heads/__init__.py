"""Prediction heads that several families' checkpoints carry: of words, of regions, of labels."""

from zoo.layers.heads.classifiers import AnswerHead, ClassificationHead, ScaledHead, ScaledLinear, TransformHead
from zoo.layers.heads.regions import RegionHead, RegionToPhraseHead
from zoo.layers.heads.words import MaskedLMHead, TableHead, masked_lm_of

__all__ = [
    "AnswerHead",
    "ClassificationHead",
    "MaskedLMHead",
    "RegionHead",
    "RegionToPhraseHead",
    "ScaledHead",
    "ScaledLinear",
    "TableHead",
    "TransformHead",
    "masked_lm_of",
]
