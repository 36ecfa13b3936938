"""ERNIE 1.0 and 2.0 (Sun et al., 2019, 2020; Baidu): BERT taught by masking whole phrases and
entities, then by many tasks in turn.

    h_0 = norm(token + segment + position + task)      the task's vector from 2.0 on: one task id for a
                                                       whole text, 0 by default
    the rest is BERT

Version 1.0 differs from BERT in what is masked (see `zoo.data.knowledge_masking`): every token of a
chosen phrase or entity is predicted. Version 2.0 adds tasks one by one, training the old ones
along, and each has its task vector.

Traps: 1.0 is a ReLU model, in the blocks and in the masked-word head; 2.0 has GELU. The norm's eps
is 1e-5, paddle's default. 1.0 has 513 positions. A config may promise task vectors that a
checkpoint lacks: that is refused. ERNIE of Tsinghua is another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.layers import (
    Encoded,
    FirstTokenPooler,
    Run,
    Stack,
    TextEmbeddings,
    Wanted,
    bert_block_of,
)
from zoo.layers.embeddings import check_ids, same_shape
from zoo.layers.heads import masked_lm_of
from zoo.models.base.config import check_positive
from zoo.models.base.text_encoder import TextEncoder
from zoo.models.bert import BertConfig
from zoo.registry.terms import MASKED_LM, NEXT_SENTENCE
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class ErnieConfig(BertConfig):
    vocab_size: int = 30_522
    num_segments: int = 4
    norm_eps: float = 1e-5
    task_embeddings: bool = True  # from 2.0 on
    num_tasks: int = 16  # rows of the task table

    def check(self) -> None:
        super().check()
        check_positive(self, "num_tasks")


class ErnieEmbeddings(TextEmbeddings):
    """BERT's embeddings and a vector for the task."""

    def __init__(self, c: ErnieConfig) -> None:
        norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        super().__init__(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)
        self.task = nn.Embedding(c.num_tasks, c.hidden_size) if c.task_embeddings else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        task_type_ids: Int[Tensor, "batch *length"] | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """As `TextEmbeddings`, and ``task_type_ids``, one for each token or for each text."""
        tokens = self.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
        x = (  # eq: embeddings
            tokens
            + self.segments(token_type_ids, tokens)
            + self.positions(position_ids, tokens)
            + self.tasks(task_type_ids, tokens)
        )
        return self.dropout(self.norm(x))  # eq: embeddings

    def tasks(
        self, task_type_ids: Int[Tensor, "batch *length"] | None, tokens: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "*grid hidden"] | float:
        """The task's part, of each token or of all."""
        if self.task is None:
            if task_type_ids is not None:
                raise InputError(
                    "this model has no task embeddings (they came with version 2.0); leave task_type_ids out"
                )
            return 0.0
        if task_type_ids is None:
            return self.task.weight[0]
        if task_type_ids.dim() == 1:
            task_type_ids = task_type_ids[:, None].expand(-1, tokens.shape[1])
        same_shape(task_type_ids, tokens, "task_type_ids")
        return self.task(check_ids(task_type_ids, self.task.num_embeddings, "task_type_ids"))


class Ernie(TextEncoder):
    Config = ErnieConfig
    heads = {
        "masked_lm": masked_lm_of,
        "next_sentence": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining = (MASKED_LM, NEXT_SENTENCE)
    inputs = (*TEXT_INPUTS, "task_type_ids")
    embeddings: ErnieEmbeddings

    def __init__(self, config: ErnieConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = ErnieEmbeddings(c)
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        task_type_ids: Int[Tensor, "batch *length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """As `TextEncoder`, and ``task_type_ids``, one for each token or for each text, 0 where left
        out; a 1.0 model refuses them.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, task_type_ids)
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        return run.encoded(run.through(self.encoder), self.pooler)
