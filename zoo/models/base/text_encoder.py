"""A model that reads one text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.masks import Padding
from zoo.layers.stack import Stack
from zoo.layers.trace import Trace
from zoo.models.base.model import Model, Reading, need_pooler
from zoo.models.base.outputs import Encoded


class TextEncoder(Model):
    """A model that reads one text: embeddings, a stack, a pooler where the config has one."""

    offers = {**Model.offers, "pooled": Reading(need_pooler, pooled=True)}
    embeddings: TextEmbeddings
    encoder: Stack
    pooler: nn.Module | None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoded:
        """Encode a batch of texts.

        input_ids, token_type_ids, position_ids: (batch, length) int. attention_mask: (batch,
        length), 1/True = a real token, or (batch, query, key), 1/True = query may look at key.
        inputs_embeds: (batch, length, embedding) in place of input_ids. lengths: real tokens per
        row, where each row is real tokens first and padding after. Raises InputError for float
        masks, wrong shapes, ids outside their table, too long a text.
        """
        trace = Trace(output_hidden_states, output_attentions)
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        padding = Padding.of(
            attention_mask, (x.shape[0], x.shape[1]), lengths=lengths, pack=not output_attentions, device=x.device
        )
        x = padding.pack(x)  # (tokens, hidden) where the batch has padding
        trace.hidden(x)
        x = padding.unpack(self.encoder(x, padding.mask, None, trace))  # (batch, length, hidden)
        pooled = None if self.pooler is None else self.pooler(padding.first(x))  # (batch, hidden)
        return Encoded(x, pooled, trace.states(padding.unpack), trace.maps(padding.real))
