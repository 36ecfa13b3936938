"""DistilBERT (Sanh et al., 2019): BERT with every second layer left out, distilled; no segments, no
pooler.

    h_0 = norm(token + position)
    a   = norm(h + W_o MHA(h)),   h' = norm(a + dropout(W_2 gelu(W_1 a)))   dropout at the feed-forward alone, eps 1e-12
    pooled = relu(W_p h_first)            made when a task is fine-tuned, not in pre-training

Traps: BERT's segment table is dropped by the reference's conversion, its row 0 is not added to
anything; the student takes the teacher's layers 0, 2, 4, 7, 9, 11. Fine-tuning has its own dropout
(0.2) before the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers import Attention, EncoderBlock, FeedForward, ReluPooler, Stack, TextEmbeddings
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import masked_lm_of
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class DistilBertConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = False
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.2)  # None: as `dropout`
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self, "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions"
        )
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)


class DroppedFeedForward(FeedForward):
    """``dropout(W_down f(W_up x))``: the block itself has no dropout."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation_name: str, output_dropout: float) -> None:
        super().__init__(hidden_size, intermediate_size, activation_name)
        self.output_dropout = output_dropout

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return F.dropout(super().forward(x), self.output_dropout, self.training)  # eq: dropout


class DistilBert(TextEncoder):
    Config = DistilBertConfig
    heads = {
        "masked_lm": masked_lm_of,
    }
    inputs = ("input_ids", "attention_mask", "position_ids")

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        c = config
        norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.embeddings = TextEmbeddings(  # eq: embeddings
            c.vocab_size, c.hidden_size, c.max_positions, 0, norm, dropout=c.dropout
        )
        self.encoder = Stack([self._block(c) for _ in range(c.num_layers)])
        self.pooler = ReluPooler(c.hidden_size) if c.pooler else None

    @staticmethod
    def _block(c: DistilBertConfig) -> EncoderBlock:
        return EncoderBlock(  # eq: block
            Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
            DroppedFeedForward(c.hidden_size, c.intermediate_size, c.activation, c.dropout),
            nn.LayerNorm(c.hidden_size, c.norm_eps),
            nn.LayerNorm(c.hidden_size, c.norm_eps),
        )
