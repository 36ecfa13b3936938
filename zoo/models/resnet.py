"""ResNet (He et al., 2016), as torchvision builds it and as SimCLR does (Chen et al., 2020).

    block   : x' = act(shortcut(x) + BN(conv1x1(act(BN(conv3x3(act(BN(conv1x1(x)))))))))     50 layers and more
              x' = act(shortcut(x) + BN(conv3x3(act(BN(conv3x3(x))))))                       18 and 34 layers
    shortcut: x itself, or BN(conv1x1(x)) where the shapes differ
    picture = mean over the cells of the last grid

SimCLR multiplies all channels by 1 to 4. Its selective kernels (Li et al., 2019) take the place of the 3x3 convolution:

    [a; b] = act(BN(conv3x3(x)))                     twice the channels, in two halves
    (p, q) = softmax over the two of W_2 act(BN(W_1 mean(a + b)))
    y      = p a + q b

and bring two changes (He et al., 2019, ResNet-D): the stem is three 3x3 convolutions in place of one of 7x7, and a
shortcut averages windows of 2x2 before its convolution.

Traps: the stride is in the 3x3 convolution, not in the first 1x1. TensorFlow pads the stem's max pooling at the end
alone (SAME), torch on both sides; the convolutions pad alike in both. Without a stride the 2x2 average counts no
padding, with one it counts its zeros. The middle of selective kernels is at least 32 wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.layers.convolution import ConvNorm, ConvStack, ConvStyle, Grid, Margins, NewGrid, halves, padded, same
from zoo.layers.feed_forward import activation, check_activation
from zoo.models.base.config import MAX_PARTS, check_positive, free
from zoo.models.base.conv_encoder import ConvConfig, ConvEncoder

LEAST_MIDDLE = 32  # channels between the two maps of selective kernels


class ResidualPlan(NamedTuple):
    """One block: channels in, inside and out, stride, has its shortcut a convolution."""

    inputs: int
    inner: int
    outputs: int
    stride: int
    projected: bool


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ConvConfig):
    width_multiplier: int = 1  # factor on all channels
    stem_channels: int = 64  # behind the stem, before the factor
    stage_channels: tuple[int, ...] = (64, 128, 256, 512)  # inside the blocks of each stage, before the factor
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)  # of each stage
    bottleneck: bool = True  # blocks of three convolutions, whose result is four times as wide, not of two
    selective_ratio: float = 0.0  # of selective kernels: their middle to a block's inner channels; 0: none
    pool_padding: Literal["even", "same"] = "even"  # of the stem's max pooling: torch's, or TensorFlow's
    activation: str = "relu"  # one of zoo.layers.ACTIVATIONS
    norm_eps: float = 1e-5
    norm_momentum: float = free(0.1)  # share of a batch in batch norm's running statistics
    dropout: float = free(0.0)  # on the pooled vector, before a classifier
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(self, "num_channels", "image_size", "width_multiplier", "stem_channels")
        check_activation(self.activation)
        if len(self.stage_channels) != len(self.stage_blocks) or not self.stage_blocks:
            raise ConfigError(
                f"every stage needs its channels and blocks; stage_channels has {len(self.stage_channels)}, "
                f"stage_blocks {len(self.stage_blocks)}"
            )
        for name in ("stage_channels", "stage_blocks"):
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must all be at least 1")
        if sum(self.stage_blocks) > MAX_PARTS:
            raise ConfigError(f"stage_blocks={self.stage_blocks} are more than the {MAX_PARTS:,} that a model may have")
        if self.selective_ratio < 0 or (self.selective_ratio and not self.bottleneck):
            raise ConfigError(
                f"selective_ratio={self.selective_ratio} must be at least 0, and 0 unless bottleneck=True: selective "
                "kernels stand in blocks of three convolutions"
            )
        if self.selective_ratio and self.stem_size < 2:
            raise ConfigError(f"stem_channels={self.stem_channels} must be at least 2 with selective kernels")

    @property
    def stem_size(self) -> int:
        """Channels behind the stem."""
        return self.stem_channels * self.width_multiplier

    @property
    def hidden_size(self) -> int:
        """Width of the states and of the pooled vector."""
        return self.plan[-1].outputs

    @property
    def plan(self) -> tuple[ResidualPlan, ...]:
        """Every block, in order."""
        return tuple(self._blocks())

    def _blocks(self) -> Iterator[ResidualPlan]:
        inputs = self.stem_size
        for stage, (channels, depth) in enumerate(zip(self.stage_channels, self.stage_blocks, strict=True)):
            inner = channels * self.width_multiplier
            outputs = 4 * inner if self.bottleneck else inner
            for block in range(depth):
                stride = 2 if stage and not block else 1
                yield ResidualPlan(inputs, inner, outputs, stride, stride > 1 or inputs != outputs)
                inputs = outputs


class Stem(nn.Module):
    """A convolution of 7x7, or three of 3x3, and a max pooling of 3x3, each of the two with stride 2."""

    def __init__(self, c: ResNetConfig, style: ConvStyle) -> None:
        super().__init__()
        size, channels = c.stem_size, c.num_channels
        if c.selective_ratio:
            layers = [
                ConvNorm(channels, size // 2, 3, style, stride=2),
                ConvNorm(size // 2, size // 2, 3, style),
                ConvNorm(size // 2, size, 3, style),
            ]
        else:
            layers = [ConvNorm(channels, size, 7, style, stride=2)]
        self.layers = nn.Sequential(*layers)
        self.margins: Margins = same if c.pool_padding == "same" else halves

    def forward(self, x: Grid) -> NewGrid:
        y = self.layers(x)  # (batch, channels, height / 2, width / 2)  # eq: stem
        if self.margins is halves:
            return F.max_pool2d(y, 3, 2, padding=1)  # (batch, channels, height / 4, width / 4)
        return F.max_pool2d(padded(y, 3, 2, self.margins, value=-torch.inf), 3, 2)  # eq: stem


class SelectiveKernels(ConvNorm):
    """Two convolutions of 3x3 and a choice between them for each channel, from the whole picture."""

    def __init__(self, inputs: int, outputs: int, style: ConvStyle, stride: int, ratio: float) -> None:
        super().__init__(inputs, 2 * outputs, 3, style, stride=stride)
        middle = max(int(outputs * ratio), LEAST_MIDDLE)
        self.reduce = ConvNorm(outputs, middle, 1, style)
        self.choose = nn.Conv2d(middle, 2 * outputs, 1, bias=False)

    def forward(self, x: Grid) -> NewGrid:
        halved = super().forward(x).unflatten(1, (2, -1))  # (batch, 2, channels, height, width)
        mean = halved.sum(1).mean((2, 3), keepdim=True)  # (batch, channels, 1, 1)  # eq: selective
        shares = self.choose(self.reduce(mean)).unflatten(1, (2, -1)).softmax(1)  # eq: selective
        return (halved * shares).sum(1)  # eq: selective


class Shortcut(ConvNorm):
    """``BN(conv1x1(x))``, with the block's stride."""

    def __init__(self, plan: ResidualPlan, style: ConvStyle) -> None:
        super().__init__(plan.inputs, plan.outputs, 1, style, stride=plan.stride, activated=False)


class AveragingShortcut(ConvNorm):
    """``BN(conv1x1(mean of 2x2(x)))``: the average has the block's stride."""

    def __init__(self, plan: ResidualPlan, style: ConvStyle) -> None:
        super().__init__(plan.inputs, plan.outputs, 1, style, activated=False)
        self.stride = plan.stride

    def forward(self, x: Grid) -> NewGrid:
        x = F.pad(x, (0, 1, 0, 1))
        mean = F.avg_pool2d(x, 2, self.stride)
        if self.stride == 1:  # what lies outside does not count
            inside = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1, 1:, 1:]), (0, 1, 0, 1)), 2, 1)
            mean = mean / inside
        return super().forward(mean)


class ResidualBlock(nn.Module):
    """``act(shortcut(x) + layers(x))``."""

    def __init__(self, plan: ResidualPlan, c: ResNetConfig, style: ConvStyle) -> None:
        super().__init__()
        inner, shortcut = plan.inner, AveragingShortcut if c.selective_ratio else Shortcut
        if c.selective_ratio:
            middle: ConvNorm = SelectiveKernels(inner, inner, style, plan.stride, c.selective_ratio)
        else:
            middle = ConvNorm(inner if c.bottleneck else plan.inputs, inner, 3, style, stride=plan.stride)
        if c.bottleneck:
            first, last = (
                ConvNorm(plan.inputs, inner, 1, style),
                ConvNorm(inner, plan.outputs, 1, style, activated=False),
            )
            layers = [first, middle, last]
        else:
            layers = [middle, ConvNorm(inner, plan.outputs, 3, style, activated=False)]
        self.shortcut = shortcut(plan, style) if plan.projected else nn.Identity()
        self.layers = nn.Sequential(*layers)
        self.activation = activation(c.activation)

    def forward(self, x: Grid) -> NewGrid:
        return self.activation(self.shortcut(x) + self.layers(x))  # eq: residual


class ResNet(ConvEncoder):
    Config = ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        c = config
        style = ConvStyle(norm_eps=c.norm_eps, norm_momentum=c.norm_momentum, activation=c.activation)
        self.stem = Stem(c, style)
        self.encoder = ConvStack([ResidualBlock(plan, c, style) for plan in c.plan])
        self.top = nn.Identity()
