"""ALIGN (Jia et al., 2021): CLIP's objective on an EfficientNet and a BERT, with two billion noisy captions in place of
clean ones.

    image  = mean over the cells of EfficientNet's last block           no projection, no last convolution
    text   = W BERT(text)[first token] + b                              the state itself, not BERT's pooled vector
    logits = unit(image) unit(text)ᵀ / τ,   τ = 1 at first
    loss   = (CE(logits, own text) + CE(logitsᵀ, own picture)) / 2      labels smoothed by 0.1, both ways

Google never released ALIGN. The public file, and the sizes of ``align-base``, are those of Kakao Brain's reproduction:
EfficientNet-B7 and BERT base on COYO-700M, where the paper has EfficientNet-L2 and BERT large.

Traps: τ divides, and is itself the parameter, not its logarithm. The file holds BERT's pooler, which nothing reads.
The image tower pads as transformers does (see EfficientNet), with no block padded evenly: that is right for even grids.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers import Pooler
from zoo.models.base.config import free
from zoo.models.base.conv_encoder import ConvConfig
from zoo.models.base.two_towers import TwoTowers
from zoo.models.bert import Bert, BertConfig
from zoo.models.efficientnet import EfficientNet, EfficientNetConfig
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class AlignConfig(ConvConfig):
    vocab_size: int = 30_522
    hidden_size: int = 768  # of the text tower, as all down to num_segments
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu"  # of the text tower
    norm_eps: float = 1e-12  # of the text tower's norms
    pad_token_id: int | None = 0
    width_multiplier: float = 2.0  # factor on the channels of every stage of the image tower
    depth_multiplier: float = 3.1  # factor on the blocks of every stage
    channel_multiple: int = 8  # channels are a multiple of this
    stem_channels: int = 32  # behind the first convolution, before the factor
    stage_channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)  # of each stage, before the factor
    stage_blocks: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)  # of each stage, before the factor
    stage_kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)  # of each stage's depthwise convolutions
    stage_strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)  # of each stage's first block
    stage_expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)  # how many times wider a block is inside
    squeeze_ratio: float = 0.25  # of squeeze and excite, to what enters the block
    image_activation: str = "silu"  # of the image tower
    padding: Literal["same", "fixed"] = "fixed"  # of strides: TensorFlow's rule, or that for even sizes, always
    symmetric_blocks: tuple[int, ...] = ()  # with padding "fixed": blocks that pad evenly
    first_residual: bool = False  # a stage's first block has a residual where its shapes allow one
    image_norm_eps: float = 1e-3  # of the image tower's batch norms
    norm_momentum: float = free(0.01)  # share of a batch in batch norm's running statistics
    path_dropout: float = free(0.2)  # share of pictures whose last block is skipped in training; less before it
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    image_size: int = free(600)  # height and width of the pictures that it is trained on; it reads others too
    initializer_range: float = free(0.02)

    def check(self) -> None:
        self.text, self.image  # noqa: B018  each is checked when it is made

    @property
    def text(self) -> BertConfig:
        """The text tower's config."""
        named = {field.name for field in fields(BertConfig)} & set(self.field_names())
        return BertConfig(pooler=False, **{name: getattr(self, name) for name in named})

    @property
    def image(self) -> EfficientNetConfig:
        """The image tower's config."""
        named = {field.name for field in fields(EfficientNetConfig)} & set(self.field_names())
        own = {"activation": self.image_activation, "norm_eps": self.image_norm_eps, "dropout": 0.0}
        return EfficientNetConfig(**{"top_size": 0} | {name: getattr(self, name) for name in named} | own)

    @property
    def image_hidden_size(self) -> int:
        """Width of the image tower's states, and of the vectors that are compared."""
        return self.image.hidden_size


class Align(TwoTowers):
    Config = AlignConfig
    inputs = (*TEXT_INPUTS, "pixel_values")
    smoothing: ClassVar[float] = 0.1

    def __init__(self, config: AlignConfig) -> None:
        text = Bert(config.text)
        text.pooler = Pooler()  # the first token's state as it is
        projection = nn.Linear(config.hidden_size, config.image_hidden_size)  # eq: projection
        super().__init__(config, text, EfficientNet(config.image), text_projection=projection)
        del self.logit_scale
        self.temperature = nn.Parameter(torch.tensor(1.0))

    @property
    def scale(self) -> Float[Tensor, ""]:
        return 1 / self.temperature  # eq: temperature

    @torch.no_grad()
    def limit_scale(self, largest: float = 100.0) -> None:
        """Keep the temperature from falling below ``1 / largest``."""
        self.temperature.clamp_(min=1 / largest)

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """The temperature before training."""
        with torch.no_grad():
            self.temperature.fill_(1.0)
