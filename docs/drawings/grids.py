"""A convolutional tower, drawn as the grids that a picture becomes: what a pass of it makes, block by block."""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from docs.drawings.canvas import GRAY, GREEN, INK, MARGIN, ORANGE, PALE, SOFT, VIOLET, WIDTH, Canvas, amount
from zoo.layers.convolution import ConvNorm
from zoo.models.base.conv_encoder import ConvEncoder

BOX, STEP = 22, 30


class Part(NamedTuple):
    """A step of the pass: how it is called, its convolutions, the grid that leaves it, its parameters."""

    name: str
    convolutions: str
    grid: tuple[int, int, int]  # channels, rows, columns
    parameters: int


def convolutions(module: nn.Module) -> str:
    """The kernels of the convolutions that stand one behind the other: ``1x1, 3x3 / 2, 1x1``."""
    found = []
    for name, part in module.named_modules():
        if isinstance(part, ConvNorm) and not name.startswith("shortcut") and "reduce" not in name:
            kernel, stride = part.conv.kernel_size[0], part.conv.stride[0]
            alone = " by channel" if part.conv.groups > 1 else ""
            found.append(f"{kernel}×{kernel}{alone}{f' / {stride}' if stride > 1 else ''}")
    return ", ".join(found)


def parts_of(model: ConvEncoder) -> list[Part]:
    """The stem, the blocks and the top, as a pass over a picture of the usual size meets them."""
    c, found, hooks = model.config, list[Part](), []

    def kept(name: str) -> object:
        def hook(module: nn.Module, _: object, grid: Tensor) -> None:
            _, channels, rows, columns = grid.shape
            count = sum(p.numel() for p in module.parameters())
            found.append(Part(name, convolutions(module), (channels, rows, columns), count))

        return hook

    named = {"stem": model.stem, "top": model.top}
    blocks = {spaced(type(block).__name__): block for block in model.encoder.blocks}
    for name, module in {**named}.items():
        if not isinstance(module, nn.Identity):
            hooks.append(module.register_forward_hook(kept(name)))  # type: ignore[arg-type]
    for block in model.encoder.blocks:
        name = next(name for name, first in blocks.items() if type(first) is type(block))
        hooks.append(block.register_forward_hook(kept(name)))  # type: ignore[arg-type]
    try:
        model(torch.zeros(1, c.num_channels, c.image_size, c.image_size, device="meta"))
    finally:
        for each in hooks:
            each.remove()
    return found


def spaced(kind: str) -> str:
    """InvertedBottleneck -> inverted bottleneck."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", kind).lower()


def draw(name: str, model: ConvEncoder) -> str:
    """The drawing of a variant: a box for each run of equal grids, from the picture to its vector."""
    total, size = amount(model.num_parameters()), model.config.image_size
    canvas = Canvas(f"The architecture of {name}", "")
    y = canvas.heading(name, f"{total} parameters; grids of a picture of {size} × {size}") + 4
    _, said = tower(canvas, y, model)
    canvas.description = f"{name}, {total} parameters, from top to bottom: {', '.join(said)}."
    return canvas.svg()


def tower(canvas: Canvas, y: float, model: ConvEncoder) -> tuple[float, list[str]]:
    """A tower, drawn from ``y`` on. -> its bottom, and what was drawn in words."""
    x, width, size = WIDTH / 2, WIDTH - 2 * MARGIN, model.config.image_size
    said = [f"picture of {size} × {size}"]
    canvas.box(x - 90, y, 180, BOX, [f"picture: {model.config.num_channels} × {size} × {size}"], VIOLET)
    y += BOX
    for (kind, grid), run in groupby(parts_of(model), key=lambda part: (part.name, part.grid)):
        same = list(run)
        canvas.line([(x, y), (x, y + STEP - BOX)], arrow=True)
        y += STEP - BOX
        rows = list(dict.fromkeys(part.convolutions for part in same))
        height = 24 + 14 * len(rows)
        canvas.rect(MARGIN, y, width, height, fill=PALE, stroke="#d5dbe3", radius=8)
        times = f"{len(same)} × {kind}" if len(same) > 1 else kind
        shape = " × ".join(f"{n:,}" for n in grid)
        canvas.text(MARGIN + 8, y + 13, times, bold=True, color=INK, note=amount(sum(part.parameters for part in same)))
        canvas.text(WIDTH - MARGIN - 8, y + 13, shape, color=ORANGE, anchor="end")
        for number, row in enumerate(rows):
            canvas.text(MARGIN + 8, y + 28 + 14 * number, row, size=11, color=SOFT)
        said.append(f"{times} to {shape}")
        y += height
    canvas.line([(x, y), (x, y + STEP - BOX)], arrow=True)
    y += STEP - BOX
    canvas.box(x - 110, y, 220, BOX, ["mean over the cells"], GREEN, note=f"{model.config.hidden_size:,}")
    canvas.text(MARGIN, y + BOX + 14, "right: channels × rows × columns; / 2: with a stride of 2", size=11, color=GRAY)
    return y + BOX + 20, [*said, "mean over the cells"]
