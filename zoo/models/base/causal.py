"""A model that reads a text from left to right, and so can go on writing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from zoo.layers.cache import KeyValueCache
from zoo.layers.masks import Pattern, causal
from zoo.layers.outputs import Encoded
from zoo.layers.run import Run
from zoo.layers.trace import Wanted
from zoo.models.base.encoder_decoder import following
from zoo.models.base.text_encoder import TextEncoder


class CausalModel(TextEncoder):
    """A text encoder whose tokens attend to themselves and to those before them."""

    writes = "causal"
    pattern: ClassVar[Pattern | None] = causal()  # eq: causal

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
        cache: KeyValueCache | None = None,
    ) -> Encoded:
        """As `TextEncoder`. cache: keys and values of the tokens before these; ids and mask are then of
        the new ones alone, whose positions go on behind those before where none are given.
        """
        positions = following(position_ids, input_ids, cache)
        x = self.embeddings(input_ids, token_type_ids, positions, inputs_embeds)  # (batch, length, hidden)
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions, cache=cache)
        return run.encoded(run.through(self.encoder, self.pattern, norm=self.norm), self.pooler)
