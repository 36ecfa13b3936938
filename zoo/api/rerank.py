"""A model that reads words and regions together, ordering pictures that others found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.api.picture_regions import picture_regions, regions_source
from zoo.api.pipeline import require_trained
from zoo.checkpoints.load import load
from zoo.inference.picture_regions import KnownRegions, PictureRegions
from zoo.tokenization import Tokenizer


@dataclass(frozen=True)
class Reranker:
    """``model``: with the head of image-text-retrieval. ``regions``: from pictures to their regions, see
    `zoo.inference.picture_regions`; ``by_name``: they stand in a dump, by the pictures' names in their folder.
    """

    model: Any
    tokenizer: Tokenizer
    regions: PictureRegions
    by_name: bool = False

    @classmethod
    def of(
        cls, source: str, *, detector: str | None = None, dump: Path | None = None, wanted: Sequence[str] = ()
    ) -> Reranker:
        """Load a model, and what makes the regions that it was trained on: by the record of a registered name,
        else as ``detector`` says. ``dump``: a file with the regions of the ``wanted`` pictures. Raises InputError
        where those come from a detector and no dump has them.
        """
        regions_source(source, detector, dump)
        model = load(source, task="image-text-retrieval")
        require_trained(model)
        regions = picture_regions(source, model.config.visual_size, detector=detector, dump=dump)
        if isinstance(regions, KnownRegions):
            regions.look(sorted(wanted))
        return cls(model, model.need_tokenizer(), regions, isinstance(regions, KnownRegions))

    def ordered(self, query: str, folder: Path, names: Sequence[str]) -> list[tuple[str, float]]:
        """The names with their scores, the best first."""
        if not names:
            return []
        regions = self.regions(names if self.by_name else [folder / name for name in names])
        pictures = {name: value[None] for name, value in regions.for_model(self.model.config).items()}
        with torch.inference_mode():
            scores = self.model(**self.tokenizer([query]), **pictures).logits[0].float()  # (pictures,)
        best = scores.sort(descending=True)
        return [(names[place], score) for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
