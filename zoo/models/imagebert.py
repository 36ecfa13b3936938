"""ImageBERT (Qi et al., 2020): one BERT over words and regions, from the paper.

    text_t   = norm(token + position + segment)
    region_r = norm(W_f f_r + W_l l_r + segment + position_0)        l: x1, y1, x2, y2, area as shares
    loss     = [matched] (masked words + masked classes + masked features) + matching

Nobody has published code or weights: this is written from the paper and not verified against any
other. The model is Unicoder-VL's; what differs is what it learns: masked regions are predicted as
their features too.

Traps: all regions share one position, since their order means nothing. Retrieval is tuned by
matching each pair and by choosing among several at once, both losses added. Both heads over
regions are one Linear. Oscar's classes named
``ImageBert`` are another model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.models.unicoder_vl import UnicoderVL, UnicoderVLConfig
from zoo.registry.terms import MASKED_WORDS, MATCHING_SCORE, REGION_CLASS, REGION_FEATURE, where_matched


@dataclass(frozen=True, kw_only=True)
class ImageBertConfig(UnicoderVLConfig):
    """Unicoder-VL's."""


class ImageBert(UnicoderVL):
    Config = ImageBertConfig
    heads = {
        **UnicoderVL.heads,
        "region_class": lambda c: nn.Linear(c.hidden_size, c.region_target_size),
        "region_feature": lambda c: nn.Linear(c.hidden_size, c.visual_size),
    }
    pretraining = (  # eq: pretraining
        where_matched(MASKED_WORDS),
        where_matched(REGION_CLASS, class_loss="likeliest"),
        where_matched(REGION_FEATURE),
        MATCHING_SCORE,
    )
    ranking_loss = "binary-softmax"
