"""A model that reads a text from left to right, and so can go on writing it."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Int
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

    pattern: ClassVar[Pattern | None] = causal()  # eq: causal

    def decode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
        cache: KeyValueCache | None = None,
    ) -> Encoded:
        """The states of a text, or with a cache of what is new of it, at the positions behind the
        columns before where none are given.
        """
        x = self.embeddings(input_ids, None, following(position_ids, input_ids, cache))
        run = Run(x, attention_mask, None, output_hidden_states, output_attentions, cache=cache)
        return run.encoded(run.through(self.encoder, self.pattern, norm=self.norm))  # (batch, new length, hidden)
