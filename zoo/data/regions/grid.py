"""Regions for those who have no detector: the cells of a grid. No checkpoint here was trained on
them, and their label says so.

    regions = grid_regions(images, resnet_grid(pretrained=True))    # a ResNet's last grid; needs torchvision
    regions = grid_regions(images, patches(16), size=64)            # the picture's own pixels, 16 x 16 to a region

images: (batch, 3, height, width) in 0..1.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.regions.regions import Regions
from zoo.errors import InputError, missing_extra

# of ImageNet's pictures in RGB, which torchvision's networks expect
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNetGrid(nn.Sequential):
    """A network with torchvision's ImageNet weights, without what stands behind its last grid."""


def resnet_grid(name: str = "resnet50", *, pretrained: bool = False) -> nn.Module:
    """torchvision's ResNet up to its last grid, (batch, 3, height, width) -> (batch, channels,
    height / 32, width / 32), in eval mode.

    ``pretrained``: torchvision's own ImageNet weights, which it fetches; else random ones, to train
    along.
    """
    try:
        from torchvision import models  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise missing_extra("a ResNet", "torchvision", "vision") from None
    except RuntimeError as error:
        raise InputError(
            f"torchvision can't be imported beside torch {torch.__version__}: {error}; install the two from one index, "
            "both for the CPU or both for the same CUDA"
        ) from error
    whole = models.get_model(name, weights="DEFAULT" if pretrained else None)
    return (ImageNetGrid if pretrained else nn.Sequential)(*list(whole.children())[:-2]).eval()


def patches(side: int) -> nn.Module:
    """A grid without a network: each cell is its ``side`` x ``side`` pixels, 3 · side² numbers."""
    return nn.PixelUnshuffle(side)


LABELS: dict[type[nn.Module], str] = {ImageNetGrid: "torchvision-grid", nn.PixelUnshuffle: "patch-grid"}


@torch.no_grad()
def grid_regions(images: Tensor, network: nn.Module, *, size: int | None = 224) -> Regions:
    """The cells of ``network``'s grid as regions, row by row; boxes are the cells as shares of the
    picture.

    images (batch, 3, height, width) float in 0..1, RGB; ``size``: both sides are scaled to it
    first, None = as they are; network: any module to (batch, channels, rows, columns), such as
    `resnet_grid` or `patches`.
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(
            f"images must be float (batch, 3, height, width) in 0..1, got {images.dtype} {tuple(images.shape)}"
        )
    if float(images.amin()) < 0 or float(images.amax()) > 1:
        raise InputError(f"images must lie in 0..1, got {float(images.amin()):.3g}..{float(images.amax()):.3g}")
    width, height = images.shape[3], images.shape[2]
    if size is not None:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (MEAN, STD))
    label = next((name for kind, name in LABELS.items() if isinstance(network, kind)), "grid")
    return cells_of(network((images - mean) / std), (width, height), label)


def cells_of(grid: Tensor, image_size: tuple[int, int], detector: str = "grid") -> Regions:
    """The cells of a grid (batch, channels, rows, columns) as regions, row by row, of pictures that are ``image_size``
    (width, height) in pixels.
    """
    rows, columns = grid.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    boxes = torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], -1).flatten(0, 1)  # (cells, 4)
    return Regions(
        rearrange(grid, "batch channels rows columns -> batch (rows columns) channels").cpu(),
        boxes.expand(len(grid), -1, -1),
        torch.tensor([float(length) for length in image_size]).expand(len(grid), -1),
        format="normalised",
        detector=detector,
    )
