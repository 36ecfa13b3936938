"""MASS for summaries (Song et al., 2019): BART's encoder-decoder, pre-trained to write the spans that
its source lacks.

    h_0 = norm(sqrt(d) · token + position[t + 1])   each side with its own positions and norm, one token table E
    encoder, decoder and scores: BART's             post-norm, eps 1e-5, no final norm
    source: half of each block of 64 tokens behind [MASK];   decoder: x_(t-1) at its place t - 1 for every masked t

Differs from BART: the tokens are scaled, the padding is id 0 and so positions begin at row 1 of
their table, and the words are BERT's, uncased. It is tuned to summarize on pairs, where targets
stand at places 0, 1, 2, ... The spans: `zoo.data.span_masking.block_places`. The model for
translation is another, `zoo.models.mass`.

Traps: unlike there, the decoder sees the [MASK] places of the source. The decoder begins with the
[SEP] that ends its texts. A published file holds tensors alone: its options are of the
architecture's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.models.bart import Bart, BartConfig
from zoo.models.base.config import free


@dataclass(frozen=True, kw_only=True)
class MassSummarizationConfig(BartConfig):
    vocab_size: int = 30_522
    max_positions: int = 512  # places of a text on either side
    scale_embeddings: bool = True  # tokens times sqrt(hidden_size)  # eq: scale
    pad_token_id: int = 0
    attention_dropout: float = free(0.1)
    activation_dropout: float = free(0.1)  # behind the activation
    start_token_id: int | None = free(102)  # [SEP], what the decoder begins with
    end_token_id: int = free(102)  # [SEP]

    @property
    def first_position(self) -> int:
        """Positions are counted from the row behind the padding's."""
        return self.pad_token_id + 1  # eq: position


class MassSummarization(Bart):
    Config = MassSummarizationConfig
