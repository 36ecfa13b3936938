"""Two random views of a picture, for SimCLR and MoCo.

    collate = Views(MOCO_V2)
    batch = collate(["cat.jpg", "dog.png"], generator)     # pixel_values (2, 2, 3, 224, 224)

    x = picture / 255                                       # upright RGB, in 0..1
    x = resize(crop(x), size)                               # of random area and shape
    x = blur(gray(jitter(flip(x))))                         # each drawn
    pixel_values = (x - mean) / std

Colors as torchvision changes them: brightness scales, contrast and saturation mix with gray, hue turns the color
circle, in a random order. All draws come from the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.data.images.images import IMAGENET_MEAN, IMAGENET_STD
from zoo.data.images.reading import MAX_PIXELS, WHITE, read_picture
from zoo.errors import ConfigError, InputError

GRAY = (0.2989, 0.587, 0.114)
Pixels = Float[Tensor, "3 height width"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a view may differ in. A share is how often it is done."""

    size: int = 224  # height and width of a view
    area: tuple[float, float] = (0.08, 1.0)  # of the picture, that a crop covers
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width to height of a crop
    flip: float = 0.5  # share that is mirrored
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)  # of brightness, contrast, saturation and hue
    jitter_share: float = 0.8
    gray: float = 0.2  # share without color
    blur: float = 0.5  # share that is blurred
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, in pixels
    kernel: float = 0.1  # of the blur, as a part of the view's size
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"size must be a whole number of at least 1, got {self.size!r}")
        for name in ("flip", "jitter_share", "gray", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is a share, from 0 to 1")
        for name in ("area", "ratio", "sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "area" and high > 1):
                raise ConfigError(f"{name}={getattr(self, name)} must be two positive numbers, the smaller first")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ConfigError(f"jitter={self.jitter} must not be negative, and hue at most 0.5, half a circle")


_NORMALIZED: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
SIMCLR = Augmentation()
MOCO_V1 = Augmentation(area=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.4), jitter_share=1.0, blur=0.0, **_NORMALIZED)
MOCO_V2 = Augmentation(area=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), **_NORMALIZED)


@dataclass(frozen=True)
class Views:
    """Pictures to a batch for the tasks view-contrast and momentum-contrast: ``pixel_values`` (batch,
    2, 3, height, width), two views of each.
    """

    augmentation: Augmentation = SIMCLR
    background: tuple[int, int, int] | None = WHITE  # behind transparent pixels
    max_pixels: int = MAX_PIXELS

    def __call__(self, pictures: Sequence[Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Paths, bytes of files, Pillow's pictures, uint8 arrays or tensors."""
        if not len(pictures):
            raise InputError("no pictures were given; give at least one")
        made = []
        for picture in pictures:
            rgb = read_picture(picture, max_pixels=self.max_pixels, background=self.background)
            pixels = torch.from_numpy(numpy.array(rgb)).permute(2, 0, 1).float() / 255
            made.append(torch.stack([view(pixels, self.augmentation, generator) for _ in range(2)]))
        return {"pixel_values": torch.stack(made)}


def view(pixels: Pixels, a: Augmentation, generator: torch.Generator | None = None) -> Pixels:
    """One random view of a picture in 0..1."""
    top, left, height, width = crop_box(pixels.shape[1], pixels.shape[2], a, generator)
    x = pixels[:, top : top + height, left : left + width]
    x = F.interpolate(x[None], (a.size, a.size), mode="bilinear", align_corners=False, antialias=True)[0]
    if _drawn(a.flip, generator):
        x = x.flip(2)
    if _drawn(a.jitter_share, generator):
        x = jittered(x, a.jitter, generator)
    if _drawn(a.gray, generator):
        x = gray(x).expand(3, -1, -1)
    if _drawn(a.blur, generator):
        x = blurred(x, _between(*a.sigma, generator), max(1, int(a.size * a.kernel)) | 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (a.mean, a.std))
    return (x - mean) / std


def crop_box(height: int, width: int, a: Augmentation, generator: torch.Generator | None) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of random area and shape; the largest in the middle where ten
    draws don't fit.
    """
    for _ in range(10):
        area = height * width * _between(*a.area, generator)
        ratio = math.exp(_between(math.log(a.ratio[0]), math.log(a.ratio[1]), generator))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _integer(height - h + 1, generator), _integer(width - w + 1, generator), h, w
    low, high = a.ratio
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


def jittered(x: Pixels, jitter: Sequence[float], generator: torch.Generator | None) -> Pixels:
    """Brightness, contrast, saturation and hue changed in a random order, each by a factor of 1 - j to
    1 + j (hue: a turn of -j to j).
    """
    factors = [_between(max(0.0, 1 - j), 1 + j, generator) for j in jitter[:3]]
    turn = _between(-jitter[3], jitter[3], generator)
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda y: mixed(y, torch.zeros_like(y), factors[0]),
        lambda y: mixed(y, gray(y).mean().expand_as(y), factors[1]),
        lambda y: mixed(y, gray(y).expand_as(y), factors[2]),
        lambda y: turned(y, turn),
    ]
    for number in torch.randperm(4, generator=generator).tolist():
        x = steps[number](x) if jitter[number] else x
    return x


def mixed(x: Pixels, other: Pixels, share: float) -> Pixels:
    """``share · x + (1 - share) · other``, within 0..1; a share above 1 goes away from the other."""
    return (share * x + (1 - share) * other).clamp(0, 1)


def gray(x: Pixels) -> Float[Tensor, "1 height width"]:
    """How bright each pixel is."""
    return (torch.tensor(GRAY, dtype=x.dtype)[:, None, None] * x).sum(0, keepdim=True)


def turned(x: Pixels, turn: float) -> Pixels:
    """The hue turned by a part of the color circle."""
    value, low = x.amax(0), x.amin(0)
    spread = value - low
    safe = torch.where(spread > 0, spread, 1.0)
    red, green, blue = x
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )  # in sixths of the circle
    hue = (hue / 6 + turn) % 1 * 6
    # each channel falls from the value to the lowest as the hue leaves its own sixth
    away = [(hue + shift) % 6 for shift in (5, 3, 1)]
    return torch.stack([value - spread * torch.minimum(k, 4 - k).clamp(0, 1) for k in away])


def blurred(x: Pixels, sigma: float, kernel: int) -> Pixels:
    """A Gaussian of this width, mirrored at the borders."""
    half = kernel // 2
    if half == 0:
        return x
    places = torch.arange(-half, half + 1, dtype=x.dtype)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    mode = "reflect" if half < min(x.shape[1:]) else "replicate"
    y = F.pad(x[None], (half, half, half, half), mode=mode)
    y = F.conv2d(y, weights.expand(3, 1, 1, -1), groups=3)
    return F.conv2d(y, weights[:, None].expand(3, 1, -1, 1), groups=3)[0]


def _drawn(share: float, generator: torch.Generator | None) -> bool:
    return _between(0.0, 1.0, generator) < share


def _between(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(below: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(below, (), generator=generator))
