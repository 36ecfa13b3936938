"""Parts that serve more than one model. They know nothing of any model."""

from zoo.layers.attention import Attention, AttentionArgs, AttentionCore
from zoo.layers.blocks import CoAttentionBlock, DecoderBlock, EncoderBlock, Side, bert_block, bert_block_of
from zoo.layers.embeddings import RegionEmbeddings, TextEmbeddings, text_embeddings_of
from zoo.layers.feed_forward import ACTIVATIONS, FeedForward, activation
from zoo.layers.masks import Mask, Pattern, causal, cross_mask, prefix, window
from zoo.layers.outputs import Encoded
from zoo.layers.padding import Padding, packing, packing_enabled
from zoo.layers.pooler import FirstTokenPooler, Pooler, ReluPooler, pool
from zoo.layers.residual import Residual, post_norm, pre_norm
from zoo.layers.run import Run, Runs
from zoo.layers.schedule import Schedule, Step, draw, interleaved
from zoo.layers.stack import Stack
from zoo.layers.trace import Trace, Wanted

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "AttentionArgs",
    "AttentionCore",
    "CoAttentionBlock",
    "DecoderBlock",
    "Encoded",
    "EncoderBlock",
    "FeedForward",
    "FirstTokenPooler",
    "Mask",
    "Padding",
    "Pattern",
    "Pooler",
    "RegionEmbeddings",
    "ReluPooler",
    "Residual",
    "Run",
    "Runs",
    "Schedule",
    "Side",
    "Stack",
    "Step",
    "TextEmbeddings",
    "Trace",
    "Wanted",
    "activation",
    "bert_block",
    "bert_block_of",
    "causal",
    "cross_mask",
    "draw",
    "interleaved",
    "packing",
    "packing_enabled",
    "pool",
    "post_norm",
    "pre_norm",
    "prefix",
    "text_embeddings_of",
    "window",
]
