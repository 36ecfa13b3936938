"""Wirings: a block says which operation reads what; the operations, norms and the residual
placement are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from zoo.layers.attention import Attention
from zoo.layers.feed_forward import FeedForward
from zoo.layers.masks import Mask
from zoo.layers.residual import Residual, post_norm
from zoo.layers.run import Run
from zoo.layers.shapes import Bias, Rows, SourceRows
from zoo.layers.trace import Trace


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward, each in its residual."""

    roles = {
        "attention": "self-attention",
        "attention_norm": "attention-norm",
        "feed_forward": "feed-forward",
        "feed_forward_norm": "feed-forward-norm",
    }

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        *,
        dropout: float = 0.0,
        residual: Residual = post_norm,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm
        self.dropout = nn.Dropout(dropout)
        self.residual = residual

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:  # eq: encoder
        x = self.residual(x, lambda y: self.attention(y, y, y, mask, bias, trace), self.attention_norm, self.dropout)
        return self.residual(x, self.feed_forward, self.feed_forward_norm, self.dropout)


class DecoderBlock(nn.Module):
    """Self-attention (causal by its mask), cross-attention over an encoder's result, then
    feed-forward, each in its residual.
    """

    roles = {
        **EncoderBlock.roles,
        "cross_attention": "cross-attention",
        "cross_attention_norm": "cross-attention-norm",
    }

    def __init__(
        self,
        attention: nn.Module,
        cross_attention: nn.Module,
        feed_forward: nn.Module,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        *,
        dropout: float = 0.0,
        residual: Residual = post_norm,
    ) -> None:
        super().__init__()
        self.attention, self.cross_attention, self.feed_forward = attention, cross_attention, feed_forward
        self.attention_norm, self.cross_attention_norm, self.feed_forward_norm = norms
        self.dropout = nn.Dropout(dropout)
        self.residual = residual

    def forward(  # eq: decoder
        self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace | None = None
    ) -> Rows:
        across = None if trace is None else trace.across()
        x = self.residual(x, lambda y: self.attention(y, y, y, mask, None, trace), self.attention_norm, self.dropout)
        x = self.residual(
            x,
            lambda y: self.cross_attention(y, memory, memory, memory_mask, None, across),
            self.cross_attention_norm,
            self.dropout,
        )
        return self.residual(x, self.feed_forward, self.feed_forward_norm, self.dropout)


def bert_block(
    hidden_size: int,
    num_heads: int,
    intermediate_size: int,
    *,
    activation: str = "gelu",
    norm_eps: float = 1e-12,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    residual: Residual = post_norm,
) -> EncoderBlock:
    """BERT's block: LayerNorm, dropout on probabilities and on both sublayers' results; post-norm unless
    ``residual`` says otherwise.
    """
    return EncoderBlock(
        Attention(hidden_size, num_heads, dropout=attention_dropout),
        FeedForward(hidden_size, intermediate_size, activation),
        nn.LayerNorm(hidden_size, norm_eps),
        nn.LayerNorm(hidden_size, norm_eps),
        dropout=dropout,
        residual=residual,
    )


class BlockSizes(Protocol):
    """What `bert_block_of` reads from a config; most text models' configs have these fields."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...


def bert_block_of(config: BlockSizes, residual: Residual = post_norm) -> EncoderBlock:
    """`bert_block` at the sizes of a config."""
    return bert_block(
        config.hidden_size,
        config.num_heads,
        config.intermediate_size,
        activation=config.activation,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        residual=residual,
    )


class Side(nn.Module):
    """One stream's half of a co-attention block: attention to the other stream, then feed-forward,
    each in its residual.
    """

    roles = {**EncoderBlock.roles, "attention": "cross-attention", "attention_norm": "cross-attention-norm"}

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention, attention_norm
        self.feed_forward, self.feed_forward_norm = feed_forward, feed_forward_norm
        self.dropout = nn.Dropout(dropout)

    def attend(self, x: Rows, other: SourceRows, residual: Residual, run: Run, other_run: Run) -> Rows:
        """Look at the other stream; the maps are kept among the cross-attentions of this one."""
        mask, trace = run.looking_at(other_run), run.trace.across()  # eq: co-attention
        return residual(  # eq: co-attention
            x, lambda y: self.attention(y, other, other, mask, None, trace), self.attention_norm, self.dropout
        )

    def feed(self, x: Rows, residual: Residual) -> Rows:
        return residual(x, self.feed_forward, self.feed_forward_norm, self.dropout)


class CoAttentionBlock(nn.Module):
    """ViLBERT's connection layer: each of two streams attends to the other, then its own
    feed-forward. Widths may differ.

    Both look at the streams as they came in; letting the second see the first's result is another
    model.
    """

    def __init__(self, sides: Mapping[str, Side], residual: Residual = post_norm) -> None:
        super().__init__()
        for name, side in sides.items():
            self.add_module(name, side)
        (self.one, self.other), self.residual = sides, residual

    def forward(self, x: Rows, y: SourceRows, x_run: Run, y_run: Run) -> tuple[Rows, SourceRows]:
        one, other = self.get_submodule(self.one), self.get_submodule(self.other)
        new_x = one.attend(x, y, self.residual, x_run, y_run)  # type: ignore[operator]  # eq: co-attention
        new_y = other.attend(y, x, self.residual, y_run, x_run)  # type: ignore[operator]  # eq: co-attention
        return one.feed(new_x, self.residual), other.feed(new_y, self.residual)  # type: ignore[operator]  # eq: co-attention
