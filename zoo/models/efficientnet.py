"""EfficientNet (Tan and Le, 2019): one small convolutional network, made wider and deeper by two factors.

    width(c) = w c to the nearest multiple of 8, at most a tenth less     w: the width's factor
    depth(n) = ceil(d n)                                                  d: the depth's factor
    block    : y = act(BN(conv1x1(x)))            e times as wide, unless e = 1
               y = act(BN(depthwise(y)))          k x k, with the stage's stride in its first block
               y = y sigmoid(W_2 act(W_1 mean(y)))    squeeze and excite; W_1 gives a quarter of x's channels
               x' = BN(conv1x1(y))  (+ x)         no activation here
    picture  = mean over the cells of act(BN(conv1x1(x)))

act is x·sigmoid(x). EfficientNet-lite has no squeeze and excite, min(max(x, 0), 6) as its activation, and a stem,
a top and a first and last stage that no factor changes.

Traps: batch norm's eps is 1e-3. A convolution with stride 2 pads as TensorFlow does, so that an even size has one
row of zeros behind and none in front. Hugging Face's port pads so whatever the size, and evenly in the blocks that
its config lists: right for the size that a file was made for, and for no other. There a stage's first block never
has a residual, which only widths that no published model has would tell apart. Its config's ``batch_norm_momentum``
is Keras's share of the old value, 0.99, which torch reads as the share of the new one. The quarter of squeeze and
excite is of what enters a block, not of what the block widens it to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import nn

from zoo.errors import ConfigError
from zoo.layers.convolution import (
    ConvNorm,
    ConvStack,
    ConvStyle,
    Grid,
    NewGrid,
    behind,
    deepened,
    halves,
    same,
    widened,
)
from zoo.layers.feed_forward import activation, check_activation
from zoo.models.base.config import MAX_PARTS, check_positive, free
from zoo.models.base.conv_encoder import ConvConfig, ConvEncoder


class BlockPlan(NamedTuple):
    """One block: channels in, inside and out, kernel, stride, has it a residual, does it pad evenly."""

    inputs: int
    inner: int
    outputs: int
    kernel: int
    stride: int
    residual: bool
    symmetric: bool


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(ConvConfig):
    width_multiplier: float = 1.0  # factor on the channels of every stage
    depth_multiplier: float = 1.0  # factor on the blocks of every stage
    channel_multiple: int = 8  # channels are a multiple of this
    stem_channels: int = 32  # behind the first convolution, before the factor
    stage_channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)  # of each stage, before the factor
    stage_blocks: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)  # of each stage, before the factor
    stage_kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)  # of each stage's depthwise convolutions
    stage_strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)  # of each stage's first block
    stage_expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)  # how many times wider a block is inside
    top_size: int = 1280  # channels behind the last convolution, as they are; 0: none, the last block is the end
    fixed_ends: bool = (
        False  # the factors leave the stem, and the depth of the first and last stage, as they are (lite)
    )
    squeeze_ratio: float = 0.25  # of squeeze and excite, to what enters the block; 0: none (lite)
    activation: str = "silu"  # one of zoo.layers.ACTIVATIONS
    padding: Literal["same", "fixed"] = "same"  # of strides: TensorFlow's rule, or that for even sizes, always
    symmetric_blocks: tuple[int, ...] = ()  # with padding "fixed": blocks that pad evenly
    first_residual: bool = True  # a stage's first block has a residual where its shapes allow one
    norm_eps: float = 1e-3
    norm_momentum: float = free(0.01)  # share of a batch in batch norm's running statistics
    path_dropout: float = free(0.2)  # share of pictures whose last block is skipped in training; less before it
    dropout: float = free(0.2)  # on the pooled vector, before a classifier
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(self, "num_channels", "image_size", "channel_multiple", "stem_channels")
        check_activation(self.activation)
        names = ("stage_channels", "stage_blocks", "stage_kernels", "stage_strides", "stage_expansions")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1 or not self.stage_channels:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ConfigError(f"every stage needs its channels, blocks, kernel, stride and expansion; given are {said}")
        for name in names:
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must all be at least 1")
        if any(kernel % 2 == 0 or kernel < 3 for kernel in self.stage_kernels):
            raise ConfigError(
                f"stage_kernels={self.stage_kernels} must be odd and at least 3: a cell and its neighbors"
            )
        if any(stride > 2 for stride in self.stage_strides):
            raise ConfigError(f"stage_strides={self.stage_strides} must be 1 or 2")
        if self.width_multiplier <= 0 or self.depth_multiplier <= 0:
            raise ConfigError(
                f"width_multiplier={self.width_multiplier} and depth_multiplier={self.depth_multiplier} must be above 0"
            )
        if self.top_size < 0 or not 0 <= self.squeeze_ratio <= 1:
            raise ConfigError(
                f"top_size={self.top_size} must be at least 0 and squeeze_ratio={self.squeeze_ratio} lie in [0, 1]"
            )
        if sum(self.depths) > MAX_PARTS:
            raise ConfigError(f"stages of {self.depths} blocks are more than the {MAX_PARTS:,} that a model may have")
        if self.symmetric_blocks and self.padding == "same":
            raise ConfigError(
                'symmetric_blocks go with padding="fixed": "same" works out by itself what each block pads'
            )

    def widened(self, channels: int) -> int:
        """Channels of a stage times the width's factor."""
        return widened(channels, self.width_multiplier, self.channel_multiple)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return deepened(self.stage_blocks, self.depth_multiplier, self.fixed_ends)

    @property
    def stem_size(self) -> int:
        """Channels behind the stem."""
        return self.stem_channels if self.fixed_ends else self.widened(self.stem_channels)

    @property
    def hidden_size(self) -> int:
        """Width of the states and of the pooled vector."""
        return self.top_size or self.widened(self.stage_channels[-1])

    @property
    def plan(self) -> tuple[BlockPlan, ...]:
        """Every block, in order."""
        return tuple(self._blocks())

    def _blocks(self) -> Iterator[BlockPlan]:
        inputs, number = self.stem_size, 0
        columns = self.stage_channels, self.depths, self.stage_kernels, self.stage_strides, self.stage_expansions
        for channels, depth, kernel, first_stride, expansion in zip(*columns, strict=True):
            outputs = self.widened(channels)
            for block in range(depth):
                stride = first_stride if block == 0 else 1
                fits = stride == 1 and inputs == outputs and (block > 0 or self.first_residual)
                symmetric = number in self.symmetric_blocks
                yield BlockPlan(inputs, inputs * expansion, outputs, kernel, stride, fits, symmetric)
                inputs, number = outputs, number + 1


class SqueezeExcite(nn.Module):
    """``x sigmoid(W_2 act(W_1 mean(x) + b_1) + b_2)``: a factor for each channel, from the whole picture."""

    def __init__(self, channels: int, inner: int, activation_name: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.activation = activation(activation_name)

    def forward(self, x: Grid) -> Grid:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(self.activation(self.reduce(mean))))  # eq: squeeze-excite


class InvertedBottleneck(nn.Module):
    """Widen, convolve each channel alone, weigh the channels, narrow; a residual where the shapes are equal."""

    def __init__(self, plan: BlockPlan, style: ConvStyle, squeeze_ratio: float, path_dropout: float) -> None:
        super().__init__()
        inner, narrow = plan.inner, ConvStyle(norm_eps=style.norm_eps, norm_momentum=style.norm_momentum)
        self.expand = ConvNorm(plan.inputs, inner, 1, style) if inner != plan.inputs else None
        self.depthwise = ConvNorm(inner, inner, plan.kernel, style, stride=plan.stride, groups=inner)
        squeezed = max(1, int(plan.inputs * squeeze_ratio))
        self.squeeze_excite = SqueezeExcite(inner, squeezed, style.activation) if squeeze_ratio else None
        self.project = ConvNorm(inner, plan.outputs, 1, narrow, activated=False)
        self.residual, self.path_dropout = plan.residual, path_dropout

    def forward(self, x: Grid) -> NewGrid:
        y = x if self.expand is None else self.expand(x)  # (batch, inner, height, width)  # eq: expand
        y = self.depthwise(y)  # (batch, inner, new height, new width)  # eq: depthwise
        y = y if self.squeeze_excite is None else self.squeeze_excite(y)
        y = self.project(y)  # (batch, outputs, new height, new width)  # eq: project
        return x + self.skipped(y) if self.residual else y  # eq: project

    def skipped(self, y: Grid) -> Grid:
        """In training, zeros for some pictures of the batch, and the others larger by as much."""
        if not (self.training and self.path_dropout):
            return y
        kept = 1 - self.path_dropout
        return y * y.new_empty(len(y), 1, 1, 1).bernoulli_(kept) / kept


class EfficientNet(ConvEncoder):
    Config = EfficientNetConfig

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__(config)
        c, plan = config, config.plan
        style = ConvStyle(
            norm_eps=c.norm_eps,
            norm_momentum=c.norm_momentum,
            activation=c.activation,
            margins=same if c.padding == "same" else behind,
        )
        even = replace(style, margins=halves)
        self.stem = ConvNorm(c.num_channels, c.stem_size, 3, style, stride=2)
        self.encoder = ConvStack(
            [
                InvertedBottleneck(
                    block, even if block.symmetric else style, c.squeeze_ratio, c.path_dropout * number / len(plan)
                )
                for number, block in enumerate(plan)
            ]
        )
        self.top = ConvNorm(plan[-1].outputs, c.top_size, 1, style) if c.top_size else nn.Identity()
