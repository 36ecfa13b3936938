"""A model that reads pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers.outputs import Encoded
from zoo.layers.padding import at_hand
from zoo.layers.trace import Wanted
from zoo.models.base.config import Config, check_positive
from zoo.models.base.model import Model, Reading, need_pooler


@dataclass(frozen=True, kw_only=True)
class PictureConfig(Config):
    """The base of configs of models that read pixels."""

    image_size: int = 224  # height and width of a picture, in pixels

    @property
    def channels(self) -> int:
        return 3

    @property
    def height(self) -> int:
        return self.image_size

    @property
    def width(self) -> int:
        return self.image_size


@dataclass(frozen=True, kw_only=True)
class PatchConfig(PictureConfig):
    """The base of configs of models that cut a picture into square patches."""

    patch_size: int = 16  # height and width of a patch, in pixels

    def check_patches(self) -> None:
        """Refuse a picture that holds no patch."""
        check_positive(self, "image_size", "patch_size")
        if self.patch_size > self.image_size:
            raise ConfigError(
                f"patch_size={self.patch_size} is larger than image_size={self.image_size}: no patch fits"
            )

    @property
    def num_positions(self) -> int:
        """The class token and the patches."""
        return 1 + (self.image_size // self.patch_size) ** 2


class ImageEncoder(Model):
    """A model of pictures: a family embeds the pixels, runs its blocks and pools.

    The result is an `Encoded`: ``last_hidden_state`` (batch, positions, hidden), a transformer's class token first,
    then the patches, or a convnet's grid cells, row by row; ``pooler_output`` (batch, size), what a tower gives
    ahead of its projection.
    """

    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    offers = {
        "patches": Reading(lambda e: e.last_hidden_state),
        "picture": Reading(need_pooler, pooled=True),
    }
    stream: ClassVar[str] = "image"

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode pictures: (batch, 3, height, width), resized and normalized as the model's `Images` do."""
        raise NotImplementedError


class PatchTokens(nn.Module):
    """``[class; W patch_1; ...; W patch_n] + position``, the patches row by row; what follows is the family's."""

    def __init__(self, c: PatchConfig, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.size = c.image_size
        self.patch = nn.Conv2d(c.channels, hidden_size, c.patch_size, c.patch_size, bias=bias)
        self.class_token = nn.Parameter(torch.zeros(hidden_size))
        self.position = nn.Embedding(c.num_positions, hidden_size)

    def placed(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch positions hidden"]:
        """The class token and the patches at their positions."""
        pixels = check_pixels(pixel_values, self.patch.in_channels, self.size, self.patch.weight.dtype)
        x = self.patch(pixels).flatten(2).mT  # (batch, patches, hidden)  # eq: patches
        x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], 1)  # eq: patches
        return x + self.position.weight  # eq: patches

    def resize(self, image_size: int) -> None:
        """Positions for pictures of another size."""
        self.size, self.position = image_size, resized_positions(self.position, image_size // self.patch.kernel_size[0])


class PatchEncoder(ImageEncoder):
    """An image encoder over `PatchTokens`, whose positions can be brought to another size of pictures."""

    resizable = frozenset(["image_size"])
    embeddings: PatchTokens

    def resize_image_size(self, size: int) -> None:
        """Interpolate the positions for pictures of another size."""
        self.config.replace(image_size=size)  # refuses what no picture can have
        self.embeddings.resize(size)


@torch.no_grad()
def resized_positions(table: nn.Embedding, side: int) -> nn.Embedding:
    """A table of positions, one row for no cell and then a square grid row by row, for a grid of another side: bicubic
    interpolation, as vectors of a picture.
    """
    old, size = math.isqrt(table.num_embeddings - 1), table.embedding_dim
    grid = table.weight[1:].unflatten(0, (old, old)).permute(2, 0, 1)[None]  # (1, hidden, rows, columns)
    wide = F.interpolate(grid.double(), (side, side), mode="bicubic", align_corners=False).to(grid.dtype)
    made = nn.Embedding(side**2 + 1, size, device="meta")
    made.weight = nn.Parameter(torch.cat([table.weight[:1], wide[0].flatten(1).T]), table.weight.requires_grad)
    return made


def check_pixels(
    pixel_values: Tensor, channels: int = 3, size: int | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "batch channels height width"]:
    """The pixels in the model's dtype. Refuse what is not (batch, channels, height, width) of finite floats, and,
    where ``size`` is given, pictures of another height or width. Values are looked at on the CPU, not under compile.
    """
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        got = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise InputError(
            f"pixel_values must be a float tensor, resized and normalized, got {got}; model.images(pictures) makes it"
        )
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != channels:
        hint = "; channels come second, not last" if len(shape) == 4 and shape[3] == channels else ""
        raise InputError(f"pixel_values must be (batch, {channels}, height, width), got {shape}{hint}")
    if size is not None and shape[2:] != (size, size):
        raise InputError(
            f"this model reads pictures of {size} x {size} pixels, got {shape[2]} x {shape[3]}; resize them, or call "
            f"model.resize(image_size={shape[2]}), which interpolates the positions"
        )
    if at_hand(pixel_values):
        for end in pixel_values.detach().aminmax():  # both are NaN where one value is
            if not bool(end.isfinite()):
                raise InputError(f"pixel_values must be finite, got {end.item()}; look at where the pictures come from")
    return pixel_values if dtype is None else pixel_values.to(dtype)
