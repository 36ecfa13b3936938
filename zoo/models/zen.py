"""ZEN (Diao et al., 2020): a Chinese BERT over characters, beside it an encoder over the n-grams
that occur in the text.

    g_0 = norm(ngram + segment)                       the n-grams are a set: no positions
    h   = block_i(h);   g = ngram_block_i(g) while there is one (6 of 12 layers);   h_{i+1} = h + M g

M[t, j] = 1 where n-gram j covers character t. The sum is not divided, no norm follows it, and past
the n-gram encoder's last layer its states are added again in every layer.
`zoo.data.knowledge.ngrams.NGramLexicon` finds the n-grams, `zoo.data.knowledge_batches.NGramCollator`
makes the batch.

Traps: the scripts that fine-tuned the released models handed over neither masks nor segments:
padding, of characters and of n-grams, was seen. Leave the masks out to have that. Their tagger with
38 labels moves the first pieces of words to the front: `valid_first`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.layers import (
    Encoded,
    EncoderBlock,
    FirstTokenPooler,
    Run,
    Stack,
    Wanted,
    bert_block_of,
    text_embeddings_of,
)
from zoo.layers.embeddings import check_ids, same_shape
from zoo.layers.heads import masked_lm_of
from zoo.layers.padding import carried
from zoo.models.base.config import check_positive
from zoo.models.base.outputs import WithEntities
from zoo.models.base.text_encoder import TextEncoder
from zoo.models.bert import BertConfig
from zoo.registry.terms import MASKED_LM, NEXT_SENTENCE
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class ZenConfig(BertConfig):
    vocab_size: int = 21_128
    num_ngrams: int = 104_089  # rows of the n-gram table; row 0 is padding
    num_ngram_layers: int | None = None  # None: as many as half the layers

    def check(self) -> None:
        super().check()
        if self.num_ngram_layers is None:
            object.__setattr__(self, "num_ngram_layers", self.num_layers // 2)
        assert self.num_ngram_layers is not None
        check_positive(self, "num_ngrams")
        if not 0 <= self.num_ngram_layers <= self.num_layers:
            raise ConfigError(
                f"num_ngram_layers={self.num_ngram_layers} must lie between 0 and num_layers={self.num_layers}"
            )


class NGramEmbeddings(nn.Module):
    """``dropout(norm(ngram[j] + segment[s]))``."""

    def __init__(self, c: ZenConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(c.num_ngrams, c.hidden_size)
        self.segment = nn.Embedding(c.num_segments, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, ngram_ids: Int[Tensor, "batch ngrams"], ngram_token_type_ids: Int[Tensor, "batch ngrams"] | None
    ) -> Float[Tensor, "batch ngrams hidden"]:
        """Segments default to 0."""
        grams = self.token(check_ids(ngram_ids, self.token.num_embeddings, "ngram_ids"))  # (batch, n-grams, hidden)
        if ngram_token_type_ids is None:
            return self.dropout(self.norm(grams + self.segment.weight[0]))
        same_shape(ngram_token_type_ids, grams, "ngram_token_type_ids")
        segments = check_ids(ngram_token_type_ids, self.segment.num_embeddings, "ngram_token_type_ids")
        return self.dropout(self.norm(grams + self.segment(segments)))  # eq: ngrams


class ZenStack(Stack):
    """The character encoder, to each of whose layers n-grams are added."""

    def beside(
        self, words: Run, ngrams: Run, ngram_encoder: Stack | None, cover: Float[Tensor, "batch length ngrams"]
    ) -> tuple[Float[Tensor, "batch length hidden"], Float[Tensor, "batch ngrams hidden"]]:
        """What it makes of text and n-grams. ``cover``: 1 where an n-gram covers a character."""
        x, grams = words.enter(), ngrams.enter()
        plan = () if ngram_encoder is None else ngram_encoder.plan
        for layer, index in enumerate(self.plan):  # eq: layers
            x = self.blocks[index](x, words.mask, None, words.trace)
            if ngram_encoder is not None and layer < len(plan):
                grams = ngram_encoder.blocks[plan[layer]](grams, ngrams.mask, None, ngrams.trace)
                ngrams.trace.hidden(grams)
            added = torch.einsum("btn,bnh->bth", cover, carried(grams, ngrams.padding, None))
            x = x + carried(added, None, words.padding)  # (batch, length, hidden), or its real tokens
            words.trace.hidden(x)
        return words.leave(x), ngrams.leave(grams)


class Zen(TextEncoder):
    Config = ZenConfig
    heads = {
        "masked_lm": masked_lm_of,
        "next_sentence": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining = (MASKED_LM, NEXT_SENTENCE)
    inputs = (*TEXT_INPUTS, "ngram_ids", "ngram_positions", "ngram_mask", "ngram_token_type_ids")
    exceptions = {"gradients": "a text in which no n-gram was found teaches nothing to the n-gram encoder"}
    encoder: ZenStack

    def __init__(self, config: ZenConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        self.encoder = ZenStack([self._block(c) for _ in range(c.num_layers)])
        self.ngram_embeddings = NGramEmbeddings(c)
        self.ngram_encoder = Stack([self._block(c) for _ in range(c.num_ngram_layers)]) if c.num_ngram_layers else None
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    @staticmethod
    def _block(c: ZenConfig) -> EncoderBlock:
        return bert_block_of(c)

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        ngram_ids: Int[Tensor, "batch ngrams"] | None = None,
        ngram_positions: Tensor | None = None,
        ngram_mask: Tensor | None = None,
        ngram_token_type_ids: Int[Tensor, "batch ngrams"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """As `TextEncoder`, and the n-grams of each text: ``ngram_positions`` (batch, length,
        n-grams), 1/True where one covers a character, ``ngram_mask`` (batch, n-grams), 1/True = real.
        The result's ``entity`` is the n-grams' stream; without n-grams the model is a BERT.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        kept = output_hidden_states, output_attentions
        words = Run(x, attention_mask, lengths, *kept)
        if ngram_ids is None:
            if ngram_positions is not None or ngram_mask is not None or ngram_token_type_ids is not None:
                raise InputError(
                    "ngram_positions, ngram_mask and ngram_token_type_ids speak of ngram_ids, which were not given"
                )
            return words.encoded(words.through(self.encoder), self.pooler)
        grams = self.ngram_embeddings(ngram_ids, ngram_token_type_ids)  # (batch, n-grams, hidden)
        cover = covered(ngram_positions, (*words.padding.grid, grams.shape[1])).to(grams.dtype)
        ngrams = Run(grams, ngram_mask, None, *kept, name="ngram_mask")
        x, grams = self.encoder.beside(words, ngrams, self.ngram_encoder, cover)
        return WithEntities(**vars(words.encoded(x, self.pooler)), entity=ngrams.encoded(grams))


def covered(ngram_positions: Tensor | None, shape: tuple[int, int, int]) -> Bool[Tensor, "batch length ngrams"]:
    """The matrix of who covers whom, checked."""
    if ngram_positions is None or tuple(ngram_positions.shape) != shape:
        got = None if ngram_positions is None else tuple(ngram_positions.shape)
        raise InputError(
            f"ngram_positions must be (batch, length, n-grams) = {shape}, 1/True where an n-gram covers a character, "
            f"got {got}"
        )
    return ngram_positions != 0  # eq: cover


def valid_first(hidden: Float[Tensor, "batch length hidden"], valid: Tensor) -> Float[Tensor, "batch length hidden"]:
    """The states of ``valid`` tokens moved to the front of their row, in their order, zeros behind
    them.
    """
    order = (~valid.bool()).to(torch.int8).argsort(dim=1, stable=True)
    moved = hidden.gather(1, order.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
    there = torch.arange(valid.shape[1], device=valid.device) < valid.bool().sum(1, keepdim=True)
    return moved.masked_fill(~there.unsqueeze(2), 0)
