"""XLM-R XL and XXL (Goyal et al., 2021): XLM-R with its norms before the sublayers, so that it can
be deep and wide.

    h_0 = token + position[p] + segment_0                         no norm
    a   = h + MHA(norm(h)),   h' = a + W_2 gelu(W_1 norm(a))        pre-norm, eps 1e-5
    result = norm(h_L)

Differs from XLM-R in this alone.

Trap: the hidden states between blocks are not normalized, the last one is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.layers import FirstTokenPooler, Stack, bert_block_of, pre_norm
from zoo.models.base.text_encoder import TextEncoder
from zoo.models.roberta import Roberta, RobertaConfig, RobertaEmbeddings


@dataclass(frozen=True, kw_only=True)
class XlmRobertaXlConfig(RobertaConfig):
    vocab_size: int = 250_880
    hidden_size: int = 2560
    num_layers: int = 36
    num_heads: int = 32
    intermediate_size: int = 10_240


class XlmRobertaXl(TextEncoder):
    Config = XlmRobertaXlConfig
    heads, pretraining, task_heads = Roberta.heads, Roberta.pretraining, Roberta.task_heads
    reads_first, exceptions = Roberta.reads_first, Roberta.exceptions

    def __init__(self, config: XlmRobertaXlConfig) -> None:
        super().__init__(config)
        self.embeddings = RobertaEmbeddings(config, nn.Identity())  # eq: embedding
        self.encoder = Stack(  # eq: block
            [bert_block_of(config, pre_norm) for _ in range(config.num_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)  # eq: norm
        self.pooler = FirstTokenPooler(config.hidden_size) if config.pooler else None
