"""VECO (Luo et al., 2021): blocks with a cross-attention that is plugged in to generate and left out
to understand; here the model that generates.

    h_0 = norm(sqrt(d) · token + position[t + 2])           BART's, with the tokens scaled
    encoder, decoder and scores: BART's                     post-norm, eps 1e-5, no final norm

Differs from BART: the scale, 24 blocks on either side, XLM-R's vocabulary with codes of languages,
and that the language is a token: a source is ``X </s> [source]``, and a target's last token, its
language, is what the decoder begins with (`shift_right`). Fine-tuning for translation keeps the last
6 blocks of the decoder.

The model for understanding leaves the cross-attention out. It is XLM-R large, in XLM-R's layouts
(`zoo.models.roberta`), and its tokens are not scaled.

Traps: a text ends with the code of its language, so a search needs ``end_token_id``. Positions count
columns; fairseq counts tokens and pads sources on the left: pass ``position_ids`` there. The code of
pre-training (CA-MLM) was not published, and is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.models.bart import Bart, BartConfig
from zoo.models.base.config import free


@dataclass(frozen=True, kw_only=True)
class VecoConfig(BartConfig):
    vocab_size: int = 250_002
    hidden_size: int = 1024
    num_layers: int = 24  # of the encoder
    num_heads: int = 16
    intermediate_size: int = 4096
    decoder_num_layers: int = 24  # depth of the decoder
    decoder_num_heads: int = 16  # heads of its attention
    decoder_intermediate_size: int = 4096  # inner width of its feed-forward
    max_positions: int = 512  # places of a text on either side
    scale_embeddings: bool = True  # tokens times sqrt(hidden_size)  # eq: scale
    start_token_id: int | None = free(None)  # what the decoder begins with; None: its language must be said


class Veco(Bart):
    Config = VecoConfig
