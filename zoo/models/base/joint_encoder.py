"""A model that reads words and the regions of a picture as one sequence, the text first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.cache import KeyValueCache
from zoo.layers.embeddings import check_ids, same_shape
from zoo.layers.feed_forward import check_activation
from zoo.layers.masks import causal
from zoo.layers.padding import Part, joined
from zoo.layers.run import Run
from zoo.layers.stack import Stack
from zoo.layers.trace import Wanted
from zoo.models.base.config import LARGEST_NUMBER, check_heads, check_positive
from zoo.models.base.model import Reading, VisionLanguageModel
from zoo.models.base.outputs import Joint

Real = tuple[Tensor | None, Tensor | None, Sequence[int] | None, Sequence[int] | None]
"""What a call says is real: attention_mask, visual_mask, lengths, visual_lengths."""


def check_joint(c: Any, *positive: str) -> None:
    """Refuse sizes that no such model can have; ``positive``: further fields that must be above zero."""
    check_positive(c, "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
    check_positive(c, *positive, "visual_size")
    check_heads(c.hidden_size, c.num_heads)
    check_activation(c.activation)


class JointEncoder(VisionLanguageModel):
    """One stack over ``[words ; regions]``. A family writes `forward` with the arguments that it
    reads: it embeds both as its paper does and gives them to `encode`.
    """

    offers = {**VisionLanguageModel.offers, "tokens": Reading(lambda e: e.text.last_hidden_state, "length")}
    encoder: Stack
    pooler: nn.Module | None

    def encode(
        self,
        text: Float[Tensor, "batch length hidden"] | None,
        regions: Float[Tensor, "batch regions hidden"] | None,
        real: Real,
        kept: tuple[Wanted, Wanted],
        ranks: Int[Tensor, "batch length"] | None = None,
        cache: KeyValueCache | None = None,
        behind: Float[Tensor, "batch _more hidden"] | None = None,
    ) -> Joint:
        """Embedded words and regions through the encoder, padding left out. ``regions`` None: a text
        alone; ``text`` None: a picture alone, whose first region is pooled. kept: which hidden states
        and attention maps are wanted.

        ranks: 0 for words that are read, 1, 2, ... for those that are written: these attend to what is
        read, regions too, and to the words before them, and what is read attends to nothing that is
        written. None: all attend to all. cache: keys and values of what was given before; the result
        holds the new words and regions alone, and a text that is written needs its ranks each time.
        behind: elements that every row has behind its regions, and that are none of them.
        """
        parts = [part for part in (text, regions) if part is not None]
        if not parts:
            raise InputError("give words (input_ids or inputs_embeds), regions (visual_features) or both; got neither")
        parts += [] if behind is None else [behind]
        x = torch.cat(parts, 1)  # (batch, length + regions, hidden)  # eq: joint
        length, count = (None if part is None else part.shape[1] for part in (text, regions))
        mask = with_more(self.joint_mask(x.shape[0], length, count, real), x.shape[1])
        if ranks is not None:
            ranks = self._joint_ranks(ranks, text, count or 0)  # eq: ranks
        elif cache is not None:  # all of it is read
            ranks = x.new_zeros(x.shape[:2], dtype=torch.int64)
        run = Run(x, mask, None, *kept, ranks=ranks, cache=cache)
        x = run.through(self.encoder, None if ranks is None else causal())  # eq: encoder
        encoded = run.encoded(x, self.joint_pooler)
        return Joint(**vars(encoded), text_length=length or 0, region_length=count or 0)

    @property
    def joint_pooler(self) -> nn.Module | None:
        """What pools the joint sequence; None for a family that pools words and regions apart."""
        return self.pooler

    @staticmethod
    def _joint_ranks(
        ranks: Int[Tensor, "batch length"], text: Float[Tensor, "batch length hidden"] | None, regions: int
    ) -> Int[Tensor, "batch joint_length"]:
        """The ranks of words, and 0 for each region."""
        if text is None:
            raise InputError("ranks are of words: give input_ids or inputs_embeds with them")
        same_shape(ranks, text, "ranks")
        return F.pad(check_ids(ranks, LARGEST_NUMBER + 1, "ranks"), (0, regions))

    def region_segments(
        self, segments: Int[Tensor, "batch regions"] | None, features: Float[Tensor, "batch regions visual_size"]
    ) -> Float[Tensor, "*grid hidden"]:
        """Rows of the text's table of segments for each region, or one for all: ``config.visual_segment``."""
        table = self.embeddings.segment
        assert table is not None
        if segments is None:
            return table.weight[self.config.visual_segment]
        same_shape(segments, features, "visual_token_type_ids", "regions")
        return table(check_ids(segments, table.num_embeddings, "visual_token_type_ids"))

    @staticmethod
    def joint_mask(
        batch: int, length: int | None, regions: int | None, real: Real
    ) -> Bool[Tensor, "batch joint_length"] | Tensor | None:
        """What is real of words and regions as one mask (batch, length + regions); None where all is. On
        the CPU where lengths say it. ``length`` or ``regions`` None: there are none.
        """
        mask, visual_mask, lengths, visual_lengths = real
        if regions is None and not (visual_mask is None and visual_lengths is None):
            raise InputError("visual_mask was given without visual_features")
        if length is None and not (mask is None and lengths is None):
            raise InputError("attention_mask was given without input_ids or inputs_embeds")
        words = Part((batch, length or 0), mask, lengths, "attention_mask", "lengths")
        pictures = Part((batch, regions or 0), visual_mask, visual_lengths, "visual_mask", "visual_lengths")
        if regions is None or length is None:
            return (words if regions is None else pictures).given()
        if isinstance(mask, Tensor) and mask.dim() == 3:
            raise InputError(
                "attention_mask must be (batch, length) here: a matrix can't say what words and regions see of each "
                "other"
            )
        return joined(words, pictures)

    def word_mask(self, given: Mapping[str, Any], encoded: Joint) -> tuple[Tensor | None, None]:
        batch, total = encoded.last_hidden_state.shape[:2]
        length = encoded.text_length
        mask, visual_mask = given.get("attention_mask"), given.get("visual_mask")
        real = mask, visual_mask, given.get("lengths"), given.get("visual_lengths")
        regions = total - length if encoded.region_length is None else encoded.region_length
        return with_more(self.joint_mask(batch, length or None, regions or None, real), total), None


def with_more(mask: Tensor | None, total: int) -> Tensor | None:
    """A mask of words and regions, (batch, length + regions), with what stands behind them, which is real; a matrix as
    it is.
    """
    return mask if mask is None or mask.dim() != 2 else F.pad(mask, (0, total - mask.shape[1]), value=True)
