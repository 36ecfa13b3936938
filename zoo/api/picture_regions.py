"""Whose regions a model was trained on, and what makes or holds them here."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from zoo.checkpoints.images import images
from zoo.checkpoints.load import load
from zoo.checkpoints.locate import locate
from zoo.data.regions.grid import patches, resnet_grid
from zoo.errors import InputError
from zoo.inference.picture_regions import SIDE, GridCells, KnownRegions, PictureRegions, TowerCells
from zoo.registry import variants as registry

GRIDS = ("patch-grid", "torchvision-grid")
"""Regions that are made here from pixels; those of detectors come from a dump."""


def regions_source(source: Any, detector: str | None, dump: str | os.PathLike[str] | None) -> str | Path:
    """Whose regions a model reads: a dump where one is given, else a grid of `GRIDS` or an image tower of the zoo, by
    the record of a registered name or as ``detector`` says. Raises InputError where nothing says it, and for a
    detector that is not here.
    """
    named = isinstance(source, str) and not Path(source).exists()
    record = locate(source)[1] if named else None
    trained_on = record.detector if record is not None else None
    if detector is not None and trained_on not in (None, detector):
        raise InputError(f"{source} was trained on the regions of {trained_on}, not of {detector}")
    chosen = trained_on or detector
    if dump is not None:
        return Path(dump)
    shown = source if isinstance(source, str | os.PathLike) else "the model"
    if chosen is None:
        raise InputError(
            f"nothing says whose regions {shown} was trained on; say so by --detector, or give them by --regions"
        )
    if chosen not in GRIDS and not is_tower(chosen):
        raise InputError(
            f"{shown} reads the regions of {chosen}, a detector that is not here; give what it found by --regions, or "
            f"take a model that was trained on {', '.join(GRIDS)} or the grid of an image tower such as "
            "efficientnet-lite0"
        )
    return chosen


def is_tower(name: str) -> bool:
    """Whether a name is that of an image tower with a grid of cells, or a folder."""
    if Path(name).is_dir():
        return True
    try:
        return hasattr(registry.resolve(name)[0].model_class(), "grid")
    except LookupError:
        return False


def picture_regions(
    source: Any, width: int, *, detector: str | None = None, dump: str | os.PathLike[str] | None = None
) -> PictureRegions:
    """What gives the regions, ``width`` wide, that a model was trained on: see `regions_source`."""
    chosen = regions_source(source, detector, dump)
    if isinstance(chosen, Path):
        return KnownRegions(chosen)
    if chosen in GRIDS:
        return GridCells(grid_of(chosen, width))
    tower = load(chosen)
    if not hasattr(tower, "grid"):
        raise InputError(f"{chosen} has no grid of cells; take a convolutional image tower, such as efficientnet-lite0")
    if tower.config.hidden_size != width:
        raise InputError(
            f"the cells of {chosen} are {tower.config.hidden_size} wide, the model reads regions {width} wide"
        )
    return TowerCells(tower, images(chosen))


def grid_of(name: str, width: int) -> Any:
    """The network of a grid whose cells are ``width`` wide."""
    if name == "torchvision-grid":
        return resnet_grid(pretrained=True)
    side = math.isqrt(width // 3)
    if 3 * side**2 != width or SIDE % side:
        raise InputError(f"regions {width} wide are no patches of a picture of {SIDE} x {SIDE} pixels")
    return patches(side)
