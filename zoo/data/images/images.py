"""How a model wants its pictures: size, crop and normalization as data.

    images = zoo.images("clip-vit-b-32")  # or Images(size=224, crop=224)
    pixel_values = images(["cat.jpg", "dog.png"])  # (2, 3, 224, 224) float32

    x = picture / 255                      # upright RGB, in 0..1
    x = crop(resize(x, size), crop)        # the shorter side to `size`, then its middle
    pixel_values = (x - mean) / std

Traps, in which public preprocessing differs: Pillow resizes the 8-bit picture and always antialiases
(CLIP), torchvision's first versions resized a tensor of floats without (BriVL); the longer side is rounded
down, never to the nearest; torchvision's crop starts at the nearest pixel (to the even one of two),
transformers' at the one below.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.data.images.reading import MAX_PIXELS, WHITE, as_list, pillow, read_picture
from zoo.errors import ConfigError, InputError, unknown

RESIZES = ("shortest", "exact", "none")
RESIZERS: Mapping[str, tuple[str, ...]] = {
    "pillow": ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"),  # in the order of Pillow's numbers
    "torch": ("nearest", "bilinear", "bicubic"),
}
"""What resizes, with its interpolations."""
THREADS = 8
"""The most pictures that are decoded at once."""
STARTS = ("nearest", "below")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Images:
    """From pictures to ``pixel_values``; see the module for the steps. A size is (height, width), or
    one number for both.
    """

    resize: str = "shortest"  # "shortest": the shorter side to `size`; "exact": both sides, the ratio is lost; "none"
    size: int | tuple[int, int] = 224  # one number for "shortest"
    crop: int | tuple[int, int] | None = None  # cut out of the middle; a smaller picture gets a black border
    crop_start: str = "nearest"  # where the middle lies between two pixels: "nearest" (to even) or "below"
    interpolation: str = "bicubic"
    resizer: str = "pillow"  # "pillow": the 8-bit picture; "torch": the floats
    antialias: bool = True
    mean: tuple[float, float, float] = CLIP_MEAN  # of red, green and blue, in 0..1
    std: tuple[float, float, float] = CLIP_STD
    background: tuple[int, int, int] | None = WHITE  # behind transparent pixels; None: their hidden color
    max_pixels: int = MAX_PIXELS  # larger pictures are refused, before and after resizing

    def __post_init__(self) -> None:
        for name, known in (("resize", RESIZES), ("resizer", tuple(RESIZERS)), ("crop_start", STARTS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.interpolation not in RESIZERS[self.resizer]:
            raise ConfigError(
                f"interpolation must be one of {', '.join(RESIZERS[self.resizer])} where {self.resizer} resizes, got "
                f"{self.interpolation!r}"
            )
        if self.resizer == "pillow" and not self.antialias:
            raise ConfigError('Pillow always antialiases; for antialias=False take resizer="torch"')
        self._set("size", _pair("size", self.size) if self.resize == "exact" else self.size)
        if self.resize == "shortest" and not _positive(self.size):
            raise ConfigError(
                f"size must be one positive number where the shorter side is resized, got {self.size!r}; "
                'resize="exact" takes two'
            )
        self._set("crop", None if self.crop is None else _pair("crop", self.crop))
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ConfigError(f"{name} must be three {'positive ' * (name == 'std')}numbers, got {values}")
            self._set(name, values)
        if self.background is not None:
            color = tuple(self.background)
            if len(color) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in color):
                raise ConfigError(f"background must be three numbers in 0..255, or None, got {self.background!r}")
            self._set("background", color)
        if not _positive(self.max_pixels):
            raise ConfigError(f"max_pixels must be a positive number, got {self.max_pixels!r}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Images:
        """From plain values, as a family's toml has them."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise unknown("field of Images", name, known)
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Images:
        """The same with other values."""
        return self.from_dict({**self.to_dict(), **changes})

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of what comes out, None where they depend on the picture."""
        whole = self.size if self.resize == "exact" else None
        return self.crop or whole  # type: ignore[return-value]  # both are pairs here

    def __call__(self, pictures: Any) -> Float[Tensor, "batch 3 height width"]:
        """Paths, bytes of files, Pillow's pictures, uint8 arrays or tensors; one or several. Raises
        InputError for one that can't be read, which it names.
        """
        several = as_list(pictures)
        if not several:
            raise InputError("no pictures were given; give at least one")
        if len(several) == 1:
            return self.pixels(several[0])[None]
        with ThreadPoolExecutor(min(len(several), os.cpu_count() or 1, THREADS)) as pool:  # decoding leaves the GIL
            made = list(pool.map(self.pixels, several))
        sizes = sorted({tuple(pixels.shape[1:]) for pixels in made})
        if len(sizes) > 1:
            raise InputError(
                f"pictures of {' and '.join(f'{height} x {width}' for height, width in sizes[:2])} can't be one batch; "
                "give them one by one, or crop"
            )
        return torch.stack(made)

    def pixels(self, picture: Any) -> Float[Tensor, "3 height width"]:
        """One picture."""
        rgb = read_picture(picture, max_pixels=self.max_pixels, background=self.background)
        height, width = self._resized(rgb.height, rgb.width)
        if self.resizer == "pillow":
            number = RESIZERS["pillow"].index(self.interpolation)
            resized = rgb.resize((width, height), pillow().Resampling(number))
            x = _floats(self._cropped(_bytes(resized)))
        else:
            x = _floats(_bytes(rgb))
            if (height, width) != tuple(x.shape[1:]):
                x = self._interpolated(x, height, width)
            x = self._cropped(x)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def _interpolated(self, x: Tensor, height: int, width: int) -> Tensor:
        smooth: dict[str, Any] = {"align_corners": False, "antialias": self.antialias}
        smooth = {} if self.interpolation == "nearest" else smooth
        return F.interpolate(x[None], (height, width), mode=self.interpolation, **smooth)[0]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of this height and width is resized to."""
        if self.resize == "none":
            return height, width
        if self.resize == "exact":
            return self.size  # type: ignore[return-value]  # a pair here
        short, long = self.size, int(self.size * max(height, width) / min(height, width))  # type: ignore[operator]
        if short * long > self.max_pixels:  # type: ignore[operator]
            raise InputError(
                f"a picture of {width:,} x {height:,} pixels whose shorter side becomes {short} would have {short} x "
                f"{long:,}, more than the {self.max_pixels:,} that are allowed; crop it first"
            )
        return (long, short) if height > width else (short, long)  # type: ignore[return-value]

    def _cropped(self, x: Tensor) -> Tensor:
        """The middle of (3, height, width)."""
        if self.crop is None:
            return x
        wanted: tuple[int, int] = self.crop  # type: ignore[assignment]  # a pair here
        lacks = [max(want - have, 0) for want, have in zip(wanted, x.shape[1:], strict=True)]
        if any(lacks):
            x = F.pad(x, (lacks[1] // 2, (lacks[1] + 1) // 2, lacks[0] // 2, (lacks[0] + 1) // 2))
        for axis, want in enumerate(wanted, 1):
            half = (x.shape[axis] - want) / 2
            x = x.narrow(axis, round(half) if self.crop_start == "nearest" else int(half), want)
        return x


def _bytes(picture: Any) -> Tensor:
    """A picture of Pillow as uint8 (3, height, width)."""
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)


def _floats(x: Tensor) -> Tensor:
    return x.to(torch.float32) / 255


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(_positive(side) for side in pair):
        raise ConfigError(f"{name} must be a positive number or two (height, width), got {value!r}")
    return pair  # type: ignore[return-value]
