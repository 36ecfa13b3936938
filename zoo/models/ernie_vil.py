"""ERNIE-ViL (Yu et al., 2021): ViLBERT's two streams, taught what a caption's scene graph says.

    layers   : ViLBERT's; behind the last connection one more block of each stream
    norms    : epsilon 1e-5 everywhere, Paddle's default
    answer   = W_2 dropout(relu(W_1 pooled + b)) + b'
    training : masked words, regions and matching as ViLBERT, and scene-graph prediction: all words of a chosen
               object, attribute or relation of the caption are masked, and predicted by the words' head
               (`zoo.data.scene_graphs`)

Traps: the numbers of layers follow from the connections, whatever num_hidden_layers says. A text block's
feed-forward is 4 · hidden_size wide in the reference, with no key of the config. Region 0 is the whole picture, its
feature the mean of the others. In VCR each choice is judged alone, by binary cross entropy; in RefCOCO+ each region,
as a mean over real regions, which the authors multiply by the batch size. Pre-training heads are not public.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.layers.heads import ClassificationHead
from zoo.models.base.config import check_positive, free
from zoo.models.vilbert import ViLBert, ViLBertConfig
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class ErnieVilConfig(ViLBertConfig):
    num_segments: int = 4
    norm_eps: float = 1e-5
    image_num_layers: int = 6  # blocks over the regions
    poolers: bool = True  # RefCOCO+'s files have none
    answer_hidden_size: int = 2048  # in the middle of the head over answers
    answer_dropout: float = free(0.5)  # in that head

    def check(self) -> None:
        super().check()
        check_positive(self, "answer_hidden_size")


class ErnieVil(ViLBert):
    Config = ErnieVilConfig
    task_heads = {
        **ViLBert.task_heads,
        "visual_question_answering": lambda c, n: ClassificationHead(
            c.co_hidden_size, n, "relu", c.answer_dropout, inner_size=c.answer_hidden_size
        ),
    }
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask")
    choice_loss = "binary"
    grounding_loss = "mean"
    ranking_loss = "circle"

    def __init__(self, config: ErnieVilConfig) -> None:
        super().__init__(config)
        if not config.poolers:
            self.text_pooler: nn.Module | None = None
            self.image_pooler: nn.Module | None = None
