"""Words and regions in streams of their own under one schedule: what such families share beside their blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from einops import repeat
from torch import Tensor

from zoo.errors import InputError
from zoo.layers import Runs, Schedule
from zoo.layers.embeddings import check_boxes
from zoo.models.base.model import Reading, VisionLanguageModel
from zoo.models.base.outputs import Streams


def both_ways(runs: Runs) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """The maps of each connection together: the text's looks at the image, the image's at the text."""
    text, image = runs["text"].cross_attentions, runs["image"].cross_attentions
    return None if text is None or image is None else tuple(zip(text, image, strict=True))


class TwoStreamModel(VisionLanguageModel):
    """A model with the streams "text" and "image". A family embeds them and runs `through`; one text may meet many
    pictures, or each text each picture.
    """

    offers = {
        **VisionLanguageModel.offers,
        "regions": Reading(
            lambda e: e.image.last_hidden_state, "regions", mask=lambda model, given, e: model.region_mask(given, e)
        ),
    }
    encoder: Schedule

    def check_regions(self, features: Tensor | None, boxes: Tensor | None, texts: int, all_pairs: bool) -> None:
        """Refuse regions without features or boxes, and those that do not go with so many texts."""
        if features is None or boxes is None:
            raise InputError("this model reads pictures: give visual_features and visual_boxes")
        batch = features.shape[0] if texts == 1 or all_pairs else texts
        check_boxes(features, boxes, batch, self.config)

    def through(self, runs: Runs, all_pairs: bool) -> tuple[Runs, dict[str, Tensor]]:
        """Both streams through the schedule. Where their batches differ, or with ``all_pairs``, they run apart until
        they first meet; there one text, or each, is repeated for each picture; pictures vary fastest.
        """
        if not (all_pairs or runs.apart):
            return runs, runs.through(self.encoder)
        steps = self.encoder.steps
        meet = next((i for i, step in enumerate(steps) if len(step.writes) > 1), len(steps))
        x = runs.through(self.encoder, slice(meet))
        texts, pictures = x["text"].shape[0], x["image"].shape[0]
        change: dict[str, Callable[[Tensor], Tensor]] = {
            "text": lambda y: repeat(y, "texts ... -> (texts pictures) ...", pictures=pictures)
        }
        if all_pairs:
            change["image"] = lambda y: repeat(y, "pictures ... -> (texts pictures) ...", texts=texts)
        runs = runs.repeated(x, change)
        return runs, runs.through(self.encoder, slice(meet, None))

    def text_given(self, mask: Tensor | None, lengths: Sequence[int] | None) -> tuple[Any, Any]:
        """The text's mask and lengths as its stream has them; a family may add tokens."""
        return mask, lengths

    def word_mask(self, given: Mapping[str, Any], encoded: Streams) -> tuple[Tensor | None, Sequence[int] | None]:
        assert encoded.text is not None
        rows = encoded.text.last_hidden_state.shape[0]
        mask, lengths = self.text_given(given.get("attention_mask"), given.get("lengths"))
        # one text, or each, may have met many pictures
        mask = None if mask is None else mask.repeat_interleave(rows // mask.shape[0], 0)
        return mask, None if lengths is None else [n for n in lengths for _ in range(rows // len(lengths))]

    def region_mask(self, given: Mapping[str, Any], encoded: Streams) -> tuple[Tensor | None, Sequence[int] | None]:
        """Which regions are real; every picture may have met every text, pictures running fast."""
        assert encoded.image is not None
        rows = encoded.image.last_hidden_state.shape[0]
        mask, lengths = given.get("visual_mask"), given.get("visual_lengths")
        mask = None if mask is None else mask.repeat(rows // mask.shape[0], 1)
        return mask, None if lengths is None else [*lengths] * (rows // len(lengths))
