"""CLIP with a ResNet (Radford et al., 2021): the text tower of `zoo.models.clip`, and an image tower of convolutions
that ends in an attention.

    stem    : three convolutions of 3x3, the first with stride 2, then the mean of 2x2
    block   : x' = relu(shortcut(x) + BN(conv1x1(pool(relu(BN(conv3x3(relu(BN(conv1x1(x)))))))))
    shortcut: x itself, or BN(conv1x1(pool(x)));   pool: the mean of 2x2 where the grid is halved
    tokens  = [mean of the cells; cell_1; ...; cell_n] + position
    image   = W_o MHA(q = the first token, kv = tokens)                        already as wide as the text's vector

Differs from ResNet: the stem, no convolution has a stride behind it (means of 2x2 do that work), and the pooling.

Traps: the pooling fixes the size of a picture, since its position table has a row for each cell; the row of the mean
comes first. Training starts with the last batch norm of each block at zero, so weights that were just drawn hide the
blocks. The pooled vector needs no projection: the attention's output is as wide as the vectors that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.layers import Attention, Encoded, Mask, Trace, Wanted
from zoo.layers.convolution import ConvNorm, ConvStack, ConvStyle, Grid, NewGrid, rows_of
from zoo.layers.trace import chosen
from zoo.models.base.config import check_heads, check_positive, free
from zoo.models.base.image_encoder import ImageEncoder, PictureConfig, check_pixels, resized_positions
from zoo.models.base.two_towers import TwoTowers
from zoo.models.clip_towers import ClipText, ClipTextConfig

SHRINKS = 32  # a picture is as many times as high and wide as the last grid


@dataclass(frozen=True, kw_only=True)
class ClipResNetVisionConfig(PictureConfig):
    stem_channels: int = 64  # behind the stem; the last grid has 32 times as many
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)  # of each of the four stages
    num_heads: int = 32  # of the pooling's attention
    projection_size: int = 1024  # width of the pooled vector
    initializer_range: float = free(0.02)

    @property
    def hidden_size(self) -> int:
        """Channels of the last grid."""
        return SHRINKS * self.stem_channels

    def check(self) -> None:
        check_positive(self, "image_size", "stem_channels", "projection_size")
        check_heads(self.hidden_size, self.num_heads)
        if len(self.stage_blocks) != 4 or min(self.stage_blocks) < 1:
            raise ConfigError(f"there are four stages of one block at least, got {self.stage_blocks}")
        if self.image_size < SHRINKS or self.stem_channels % 2:
            raise ConfigError(
                f"image_size={self.image_size} must be at least {SHRINKS}, and stem_channels={self.stem_channels} even"
            )


class MeanShortcut(ConvNorm):
    """``BN(conv1x1(mean of stride x stride))``."""

    def __init__(self, inputs: int, outputs: int, style: ConvStyle, stride: int) -> None:
        super().__init__(inputs, outputs, 1, style, activated=False)
        self.stride = stride

    def forward(self, x: Grid) -> NewGrid:
        return super().forward(x if self.stride == 1 else F.avg_pool2d(x, self.stride))


class PooledBottleneck(nn.Module):
    """``relu(shortcut(x) + last(pool(middle(first(x)))))``."""

    def __init__(self, inputs: int, inner: int, stride: int, style: ConvStyle) -> None:
        super().__init__()
        outputs = 4 * inner
        self.first = ConvNorm(inputs, inner, 1, style)
        self.middle = ConvNorm(inner, inner, 3, style)
        self.last = ConvNorm(inner, outputs, 1, style, activated=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else MeanShortcut(inputs, outputs, style, stride)
        self.stride = stride

    def forward(self, x: Grid) -> NewGrid:
        y = self.middle(self.first(x))  # eq: residual
        y = self.last(y if self.stride == 1 else F.avg_pool2d(y, self.stride))  # eq: residual
        return F.relu(self.shortcut(x) + y)  # eq: residual


class AttentionPool(nn.Module):
    """The mean of all cells attends to itself and to each cell."""

    roles = {"position": "position-embedding", "attention": "self-attention"}

    def __init__(self, c: ClipResNetVisionConfig) -> None:
        super().__init__()
        self.position = nn.Embedding((c.image_size // SHRINKS) ** 2 + 1, c.hidden_size)
        self.attention = Attention(c.hidden_size, c.num_heads, output_size=c.projection_size)

    def forward(self, cells: Float[Tensor, "batch cells hidden"]) -> Float[Tensor, "batch projection"]:
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], 1) + self.position.weight  # eq: pool
        return self.attention(tokens[:, :1], tokens, tokens, Mask()).squeeze(1)  # eq: pool


class ClipResNetVision(ImageEncoder):
    """The image tower."""

    Config = ClipResNetVisionConfig
    resizable = frozenset(["image_size"])
    pooler: AttentionPool

    def __init__(self, config: ClipResNetVisionConfig) -> None:
        super().__init__(config)
        c, width, style = config, config.stem_channels, ConvStyle()
        self.stem = nn.Sequential(  # eq: stem
            ConvNorm(c.channels, width // 2, 3, style, stride=2),
            ConvNorm(width // 2, width // 2, 3, style),
            ConvNorm(width // 2, width, 3, style),
            nn.AvgPool2d(2),
        )
        stages, inputs = [], width
        for stage, depth in enumerate(c.stage_blocks):
            inner, blocks = width * 2**stage, []
            for block in range(depth):
                blocks.append(PooledBottleneck(inputs, inner, 2 if stage and not block else 1, style))
                inputs = 4 * inner
            stages.append(nn.Sequential(*blocks))
        self.encoder = ConvStack(stages)
        self.pooler = AttentionPool(c)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode pictures: (batch, 3, image_size, image_size), resized and normalized. Hidden states are those of the
        four stages, their cells row by row.
        """
        c = self.config
        trace = Trace(output_hidden_states, output_attentions)
        x = self.stem(check_pixels(pixel_values, c.channels, c.image_size, self.dtype))
        cells = rows_of(self.encoder(x, trace))  # (batch, cells, hidden)
        kept = trace.hidden_states
        states = (
            None if kept is None else tuple(map(rows_of, chosen(kept, output_hidden_states, "output_hidden_states")))
        )
        return Encoded(cells, self.pooler(cells), states, None if trace.attentions is None else ())

    def resize_image_size(self, size: int) -> None:
        """Interpolate the pooling's positions for pictures of another size."""
        self.config.replace(image_size=size)  # refuses what no picture can have
        self.pooler.position = resized_positions(self.pooler.position, size // SHRINKS)

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The width of the pooled vector."""
        return dict.fromkeys(("image", "pooled"), config.projection_size)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As the authors draw them."""
        super().init_weights(generator)
        for block in self.modules():
            if isinstance(block, PooledBottleneck):
                nn.init.zeros_(block.last.norm.weight)
        for weight in self.pooler.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=self.config.hidden_size**-0.5, generator=generator)


@dataclass(frozen=True, kw_only=True)
class ClipResNetConfig(PictureConfig):
    vocab_size: int = 49_408
    hidden_size: int = 512  # of the text tower, as all that does not begin with image_
    num_layers: int = 12
    num_heads: int = 8
    intermediate_size: int = 2048
    max_positions: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    eos_token_id: int | None = None  # a text's vector stands at the first such token; None: at the largest id
    layer_scale: bool = False  # a learned factor for each dimension of a sublayer's result
    image_stem_channels: int = 64  # behind the image tower's stem; its last grid has 32 times as many
    image_stage_blocks: tuple[int, ...] = (3, 4, 6, 3)  # of each of the image tower's four stages
    image_num_heads: int = 32  # of the pooling's attention
    projection_size: int = 1024  # width of the vectors that are compared
    logit_bias: bool = False  # a learned number is added to the logits, as the sigmoid loss wants
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        self.text, self.image  # noqa: B018  each is checked when it is made

    @property
    def text(self) -> ClipTextConfig:
        """The text tower's config."""
        names = set(ClipTextConfig.field_names()) & set(self.field_names()) - {"projection_size"}
        return ClipTextConfig(**{name: getattr(self, name) for name in names})

    @property
    def image(self) -> ClipResNetVisionConfig:
        """The image tower's config."""
        return ClipResNetVisionConfig(
            image_size=self.image_size,
            stem_channels=self.image_stem_channels,
            stage_blocks=self.image_stage_blocks,
            num_heads=self.image_num_heads,
            projection_size=self.projection_size,
            initializer_range=self.initializer_range,
        )


class ClipResNet(TwoTowers):
    Config = ClipResNetConfig
    resizable = frozenset(["image_size"])

    def __init__(self, config: ClipResNetConfig) -> None:
        c = config
        super().__init__(
            c,
            ClipText(c.text),
            ClipResNetVision(c.image),
            text_projection=nn.Linear(c.hidden_size, c.projection_size, bias=False),
            logit_bias=c.logit_bias,
        )

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read; a picture's vector is pooled at that of the comparison."""
        return {"text": config.hidden_size, **dict.fromkeys(("image", "pooled"), config.projection_size)}

    def resize_image_size(self, size: int) -> None:
        """Interpolate the image tower's positions for pictures of another size."""
        self.image.resize(image_size=size)
