"""Parts that serve more than one model. They know nothing of any model."""

from zoo.layers.attention import Attention, explicit_attention, fused_attention
from zoo.layers.blocks import CoAttentionBlock, DecoderBlock, EncoderBlock, Side, bert_block, bert_block_of
from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.feed_forward import ACTIVATIONS, FeedForward, activation
from zoo.layers.masks import Mask, Padding, Pattern, between, causal, packing, packing_enabled, prefix, together, window
from zoo.layers.pooler import FirstTokenPooler, ReluPooler, pool
from zoo.layers.residual import Residual, post_norm, pre_norm
from zoo.layers.schedule import Schedule, Step, draw, interleaved
from zoo.layers.stack import Stack
from zoo.layers.trace import Trace

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "CoAttentionBlock",
    "DecoderBlock",
    "EncoderBlock",
    "FeedForward",
    "FirstTokenPooler",
    "Mask",
    "Padding",
    "Pattern",
    "ReluPooler",
    "Residual",
    "Schedule",
    "Side",
    "Stack",
    "Step",
    "TextEmbeddings",
    "Trace",
    "activation",
    "bert_block",
    "bert_block_of",
    "between",
    "causal",
    "draw",
    "explicit_attention",
    "fused_attention",
    "interleaved",
    "packing",
    "packing_enabled",
    "pool",
    "post_norm",
    "pre_norm",
    "prefix",
    "together",
    "window",
]
