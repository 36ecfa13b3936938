"""Regions of pictures, for models that read regions and not pixels: the cells of a grid, computed here, or what a
detector found before, from a dump.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.data.images.images import Images
from zoo.data.regions.files import read_regions
from zoo.data.regions.grid import cells_of, grid_regions
from zoo.data.regions.regions import Regions, stack
from zoo.errors import InputError

SIDE = 224  # pixels, to which both sides of a picture are scaled for a grid
PLAIN = Images(resize="exact", size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class GridCells:
    """Called with pictures (paths, bytes, arrays) it gives the cells of ``network``'s grid over each, as in
    `zoo.data.regions.grid`.
    """

    network: Any

    def __call__(self, pictures: Sequence[Any]) -> Regions:
        return grid_regions(PLAIN(pictures), self.network, size=None)


@dataclass(frozen=True)
class TowerCells:
    """The same with the last grid of an image tower of the zoo, such as EfficientNet, which wants its pictures as its
    ``images`` say.
    """

    tower: Any
    images: Images

    def __call__(self, pictures: Sequence[Any]) -> Regions:
        pixels = self.images(pictures).to(self.tower.device, self.tower.dtype)
        with torch.inference_mode():
            grid = self.tower.grid(pixels)
        return cells_of(grid.float(), (pixels.shape[3], pixels.shape[2]))


@dataclass(frozen=True)
class KnownRegions:
    """Those that stand in a dump by a picture's path, its name, or its name without the ending. The dump is read again
    for pictures that were not asked for before.
    """

    dump: Path
    found: dict[str, Regions] = field(default_factory=dict)

    def __call__(self, pictures: Sequence[Any]) -> Regions:
        names = []
        for picture in pictures:
            if not isinstance(picture, str | os.PathLike):
                raise InputError(f"a picture is looked up in {self.dump} by its path, got a {type(picture).__name__}")
            names.append(str(picture))
        self.look(names)
        return stack([self.found[name] for name in names])

    def look(self, names: Sequence[str]) -> None:
        """Read the regions of these pictures; one that the dump lacks is refused."""
        keys: dict[str, list[str]] = {}
        for name in names:
            if name not in self.found:
                for key in {name, Path(name).name, Path(name).stem}:
                    keys.setdefault(key, []).append(name)
        if not keys:
            return
        for key, regions in read_regions(self.dump):
            self.found.update(dict.fromkeys(keys.get(key, ()), regions))
        if lacking := [name for name in names if name not in self.found]:
            raise InputError(f"{self.dump} holds no regions of {lacking[0]!r}")


PictureRegions = Callable[[Sequence[Any]], Regions]
"""From pictures to a batch of their regions."""
