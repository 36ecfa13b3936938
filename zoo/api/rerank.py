"""A model that reads words and regions together, ordering pictures that others found."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.api.pipeline import require_trained
from zoo.checkpoints.load import load
from zoo.checkpoints.locate import locate
from zoo.data.images.images import Images
from zoo.data.regions.files import read_regions
from zoo.data.regions.grid import grid_regions, patches, resnet_grid
from zoo.data.regions.regions import Regions, stack
from zoo.errors import InputError
from zoo.tokenization import Tokenizer

GRIDS = ("patch-grid", "torchvision-grid")
"""Regions that are made here from pixels; those of detectors come from a dump."""
SIDE = 224  # pixels, to which both sides of a picture are scaled for a grid


@dataclass(frozen=True)
class Reranker:
    """``model``: with the head of image-text-retrieval. ``network``: to the grid of a picture, None where ``known``
    has the regions of each by its name.
    """

    model: Any
    tokenizer: Tokenizer
    network: Any = None
    known: Mapping[str, Regions] = field(default_factory=dict)

    @classmethod
    def of(
        cls, source: str, *, detector: str | None = None, dump: Path | None = None, wanted: Collection[str] = ()
    ) -> Reranker:
        """Load a model, and what makes the regions that it was trained on: by the record of a registered name,
        else as ``detector`` says. ``dump``: a file with the regions of the ``wanted`` pictures. Raises InputError
        where those come from a detector and no dump has them.
        """
        record = None if Path(source).exists() else locate(source)[1]
        trained_on = record.detector if record is not None else None
        if detector is not None and trained_on not in (None, detector):
            raise InputError(f"{source} was trained on the regions of {trained_on}, not of {detector}")
        named = trained_on or detector
        if dump is None and named is None:
            raise InputError(
                f"nothing says whose regions {source} was trained on; say so by --detector, or give them by --regions"
            )
        if dump is None and named not in GRIDS:
            raise InputError(
                f"{source} reads the regions of {named}, a detector that is not here; give what it found by --regions, "
                f"or take a model that was trained on {' or '.join(GRIDS)}"
            )
        model = load(source, task="image-text-retrieval")
        require_trained(model)
        if dump is None:
            return cls(model, model.need_tokenizer(), network=_grid(str(named), model.config.visual_size))
        keys = {key: name for name in wanted for key in (name, Path(name).name, Path(name).stem)}
        found = {keys[key]: regions for key, regions in read_regions(dump) if key in keys}
        if lacking := sorted(set(wanted) - set(found)):
            raise InputError(f"{dump} holds no regions of {lacking[0]!r}, one of the first hits")
        return cls(model, model.need_tokenizer(), known=found)

    def ordered(self, query: str, folder: Path, names: Sequence[str]) -> list[tuple[str, float]]:
        """The names with their scores, the best first."""
        if not names:
            return []
        regions = self._grids(folder, names) if self.network is not None else stack([self.known[n] for n in names])
        pictures = {name: value[None] for name, value in regions.for_model(self.model.config).items()}
        with torch.inference_mode():
            scores = self.model(**self.tokenizer([query]), **pictures).logits[0].float()  # (pictures,)
        best = scores.sort(descending=True)
        return [(names[place], score) for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def _grids(self, folder: Path, names: Sequence[str]) -> Regions:
        plain = Images(resize="exact", size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return grid_regions(plain([folder / name for name in names]), self.network, size=None)


def _grid(name: str, width: int) -> Any:
    """The network of a grid whose cells are ``width`` wide."""
    if name == "torchvision-grid":
        return resnet_grid(pretrained=True)
    side = math.isqrt(width // 3)
    if 3 * side**2 != width or SIDE % side:
        raise InputError(f"regions {width} wide are no patches of a picture of {SIDE} x {SIDE} pixels")
    return patches(side)
