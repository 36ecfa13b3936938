"""CLIP's two towers, each a model of its own: a causal transformer over a text and a Vision Transformer over a picture.
The equations and the traps stand in `zoo.models.clip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.layers import (
    Encoded,
    EncoderBlock,
    Mask,
    Padding,
    Pooler,
    Run,
    Stack,
    TextEmbeddings,
    Trace,
    Wanted,
    bert_block_of,
    causal,
    pre_norm,
)
from zoo.layers.blocks import BlockSizes
from zoo.layers.feed_forward import check_activation
from zoo.layers.shapes import Bias, Rows
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.image_encoder import PatchConfig, PatchEncoder, PatchTokens
from zoo.models.base.text_encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(Config):
    vocab_size: int = 49_408
    hidden_size: int = 512
    num_layers: int = 12
    num_heads: int = 8
    intermediate_size: int = 2048
    max_positions: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    eos_token_id: int | None = None  # a text's vector stands at the first such token; None: at the largest id
    layer_scale: bool = False  # a learned factor for each dimension of a sublayer's result
    projection_size: int | None = None  # width of a projection of the pooled vector; None: it has none
    pooler: bool = True
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)

    def check(self) -> None:
        _check_transformer(self)
        check_positive(self, "vocab_size", "max_positions")


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(PatchConfig):
    patch_size: int = 32  # height and width of a patch, in pixels
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    layer_scale: bool = False  # a learned factor for each dimension of a sublayer's result
    projection_size: int | None = None  # width of a projection of the pooled vector; None: it has none
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        _check_transformer(self)
        self.check_patches()


def _check_transformer(c: ClipTextConfig | ClipVisionConfig) -> None:
    check_positive(c, "hidden_size", "num_layers", "num_heads", "intermediate_size")
    check_heads(c.hidden_size, c.num_heads)
    check_activation(c.activation)


class LayerScale(nn.Module):
    """A learned factor for each dimension (open_clip's ``ls_1``, ``ls_2``)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """One, as if it were not there."""
        nn.init.ones_(self.weight)

    def forward(self, x: Rows) -> Rows:
        return x * self.weight


class ScaledBlock(EncoderBlock):
    """``x + scale · op(norm(x))``."""

    def __init__(self, block: EncoderBlock, hidden_size: int) -> None:
        parts = block.attention, block.feed_forward, block.attention_norm, block.feed_forward_norm
        super().__init__(*parts, dropout=block.dropout.p, residual=block.residual)
        self.attention_scale, self.feed_forward_scale = LayerScale(hidden_size), LayerScale(hidden_size)

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:
        def attend(y: Tensor) -> Tensor:
            return self.attention_scale(self.attention(y, y, y, mask, bias, trace))

        def feed(y: Tensor) -> Tensor:
            return self.feed_forward_scale(self.feed_forward(y))

        x = self.residual(x, attend, self.attention_norm, self.dropout)
        return self.residual(x, feed, self.feed_forward_norm, self.dropout)


def transformer(c: ClipTextConfig | ClipVisionConfig) -> Stack:
    """The blocks of either tower."""
    sizes: BlockSizes = c
    blocks = [bert_block_of(sizes, pre_norm) for _ in range(c.num_layers)]  # eq: block
    return Stack([ScaledBlock(block, c.hidden_size) for block in blocks] if c.layer_scale else blocks)


def draw_transformer(stack: Stack, width: int, generator: torch.Generator | None) -> None:
    """Random weights as the authors draw them: the more blocks, the smaller what each adds to the states."""
    small = (2 * len(stack.blocks)) ** -0.5
    for name, weight in stack.named_parameters():
        part = name.rpartition(".")[0].rpartition(".")[2]
        if not name.endswith("weight") or weight.dim() != 2:
            continue
        std = {"output": small, "down": small, "up": 2**-0.5}.get(part, 1.0) * width**-0.5
        nn.init.normal_(weight, std=std, generator=generator)


class ClipPooler(Pooler):
    """The state of one token through a norm, and through a projection where the tower has one."""

    def __init__(self, norm: nn.Module, hidden_size: int, projection_size: int | None) -> None:
        super().__init__()
        self.norm = norm
        self.projection = None if projection_size is None else nn.Linear(hidden_size, projection_size, bias=False)

    def transform(self, state: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch output_size"]:
        pooled = self.norm(state)  # eq: pooled
        return pooled if self.projection is None else self.projection(pooled)


class ClipText(TextEncoder):
    Config = ClipTextConfig
    inputs = ("input_ids", "attention_mask", "position_ids")
    norm: nn.Module
    pooler: ClipPooler | None

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = TextEmbeddings(c.vocab_size, c.hidden_size, c.max_positions, 0, nn.Identity())
        self.encoder = transformer(c)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.pooler = ClipPooler(nn.Identity(), c.hidden_size, c.projection_size) if c.pooler else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode a batch of texts. What follows the end token counts as padding, unless ``attention_mask`` or
        ``lengths`` say what is real.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        if input_ids is not None and attention_mask is None and lengths is None:
            places = torch.arange(x.shape[1], device=x.device)
            attention_mask = places <= self.ends(input_ids)[:, None]
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        x = run.through(self.encoder, causal(), norm=self.norm)  # zeros at padding  # eq: causal
        return run.encoded(x, None if self.pooler is None else partial(self.pooled, self.pooler, input_ids))

    def ends(
        self, input_ids: Int[Tensor, "batch length"], real: Bool[Tensor, "batch length"] | None = None
    ) -> Int[Tensor, "batch"]:
        """Where each text's end token stands, among its real tokens; the last of them where it has none."""
        input_ids = input_ids.long()
        if self.config.eos_token_id is None:
            return (input_ids if real is None else input_ids.masked_fill(~real, -1)).argmax(1)  # eq: end-token
        found = input_ids == self.config.eos_token_id
        found = found if real is None else found & real
        return torch.where(found.any(1), found.int().argmax(1), last_real(input_ids, real))

    def pooled(
        self,
        pooler: ClipPooler,
        input_ids: Tensor | None,
        hidden: Float[Tensor, "batch length hidden"],
        padding: Padding,
    ) -> Float[Tensor, "batch pooled"]:
        """The end token's state, or what a projection makes of it."""
        where = last_real(hidden, padding.real) if input_ids is None else self.ends(input_ids, padding.real)
        state = hidden.gather(1, where[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        return pooler.transform(state)

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read."""
        return {"text": config.hidden_size, "pooled": config.projection_size or config.hidden_size}

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As the authors draw them."""
        super().init_weights(generator)
        draw_transformer(self.encoder, self.config.hidden_size, generator)
        nn.init.normal_(self.embeddings.position.weight, std=0.01, generator=generator)


def last_real(x: Tensor, real: Bool[Tensor, "batch length"] | None) -> Int[Tensor, "batch"]:
    """The place of the last real token of each row."""
    if real is None:
        return torch.full(x.shape[:1], x.shape[1] - 1, device=x.device)
    return x.shape[1] - 1 - real.int().flip(1).argmax(1)


class PatchEmbeddings(PatchTokens):
    """``norm([class; W patch_1; ...; W patch_n] + position)``, the patches row by row."""

    roles = {"position": "position-embedding", "norm": "embedding-norm"}

    def __init__(self, c: ClipVisionConfig) -> None:
        super().__init__(c, c.hidden_size, bias=False)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """The class token, at the scale of a state."""
        nn.init.normal_(self.class_token, std=len(self.class_token) ** -0.5, generator=generator)

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch positions hidden"]:
        return self.norm(self.placed(pixel_values))  # eq: patches


class ClipVision(PatchEncoder):
    Config = ClipVisionConfig
    embeddings: PatchEmbeddings

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = PatchEmbeddings(c)
        self.encoder = transformer(c)
        self.pooler = ClipPooler(nn.LayerNorm(c.hidden_size, c.norm_eps), c.hidden_size, c.projection_size)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode pictures: (batch, 3, image_size, image_size), resized and normalized."""
        x = self.embeddings(pixel_values)  # (batch, 1 + patches, hidden)
        run = Run(x, None, None, output_hidden_states, output_attentions)
        return run.encoded(run.through(self.encoder), self.pooler)

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read."""
        return dict.fromkeys(("image", "pooled"), config.projection_size or config.hidden_size)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As the authors draw them."""
        super().init_weights(generator)
        width = self.config.hidden_size
        draw_transformer(self.encoder, width, generator)
        nn.init.normal_(self.embeddings.patch.weight, std=self.config.initializer_range, generator=generator)
        nn.init.normal_(self.embeddings.position.weight, std=width**-0.5, generator=generator)
