"""A model that reads one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.masks import Pattern
from zoo.layers.outputs import Encoded
from zoo.layers.run import Run
from zoo.layers.stack import Stack
from zoo.layers.trace import Wanted
from zoo.models.base.model import Model, Reading, need_pooler


class TextEncoder(Model):
    """A model that reads one text: embeddings, a stack, a pooler where the config has one."""

    offers = {**Model.offers, "pooled": Reading(need_pooler, pooled=True)}
    pattern: ClassVar[Pattern | None] = None  # who looks at whom, besides padding: `causal()` for GPT-2
    embeddings: TextEmbeddings
    encoder: Stack
    norm: nn.Module | None  # that the stack ends in, where its blocks leave their states unnormalized
    pooler: nn.Module | None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.norm = None

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
    ) -> Encoded:
        """Encode a batch of texts.

        attention_mask: (batch, length), 1/True = a real token, or (batch, query, key), 1/True =
        query may look at key. inputs_embeds: in place of input_ids. lengths: real tokens per row,
        where each row is real tokens first and padding after. Raises InputError for float masks,
        wrong shapes, ids outside their table, too long a text.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        x = run.through(self.encoder, self.pattern, norm=self.norm)  # zeros at padding  # eq: encoder
        return run.encoded(x, self.pooler)
