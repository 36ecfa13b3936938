"""mBART (Liu et al., 2020): BART for many languages, with the norms before the sublayers.

    h_0 = norm(sqrt(d) · token + position[t + 2])           each side with its own positions and norm, one token table E
    encoder:  a = h + MHA(norm(h)),            h' = a + W_2 gelu(W_1 norm(a))          pre-norm, eps 1e-5
    decoder:  a = h + MHA(norm(h); causal),  c = a + MHA(norm(a), m),   h' = c + W_2 gelu(W_1 norm(c))
    m = norm(encoder),   scores = E norm(decoder) + b        a final norm on both sides; b is constant, zero in releases

Differs from BART: the final norms, the norms before the sublayers, the scaled tokens, and that the
language is a token: mBART-cc25 reads ``X </s> [source]`` and writes ``[target] X </s>``; mBART-50
reads ``[source] X </s>`` and writes ``</s> [target] X``.

Traps: the labels' own last token, not a fixed one, is what the decoder begins with
(`shift_right`): the language code for mBART-cc25, </s> for mBART-50. Positions count columns,
padding too, as in the Hugging Face library; fairseq counts tokens, which is the same where padding
stands on the right. The table has two rows that are never read. The padding token's vector is
initialized like any other here; fairseq's is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from zoo.layers import Residual, pre_norm
from zoo.models.bart import Bart, BartConfig
from zoo.models.base.config import free
from zoo.models.base.encoder_decoder import shift_right


@dataclass(frozen=True, kw_only=True)
class MbartConfig(BartConfig):
    vocab_size: int = 250_027
    hidden_size: int = 1024
    num_layers: int = 12  # of the encoder
    num_heads: int = 16
    intermediate_size: int = 4096
    decoder_num_layers: int = 12  # depth of the decoder
    decoder_num_heads: int = 16  # heads of its attention
    decoder_intermediate_size: int = 4096  # inner width of its feed-forward
    scale_embeddings: bool = True  # tokens times sqrt(hidden_size)
    start_token_id: int | None = free(
        None
    )  # what a text begins with where nobody says; None: its language must be said


class Mbart(Bart):
    Config = MbartConfig

    def __init__(self, config: MbartConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)  # eq: final-norms
        self.decoder.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)  # eq: final-norms

    @staticmethod
    def residual() -> Residual:
        return pre_norm  # eq: placement

    def decoder_inputs(self, labels: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """What the decoder reads where the labels are to follow: their last token, then all but the
        last place.
        """
        return shift_right(labels, self.config.pad_token_id)
