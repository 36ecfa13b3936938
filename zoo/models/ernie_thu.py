"""ERNIE (Zhang et al., 2019; Tsinghua): BERT whose upper layers carry a second stream, a vector for
each entity that is mentioned.

    text     a = norm(h + MHA(h))                                  as in BERT
    entity   ẽ = m · norm_e(e + MHA_e(e))   in a "norm" layer      keys of MHA_e are the entities alone
             ẽ = m · e                      in a "mix" layer       m = 1 at the first word piece of a mention
    fusion   u = gelu(W a + b + W_e ẽ + b_e)
             h' = norm(W_1 u + b_1 + a),    e' = norm_e(W_2 u + b_2 + ẽ)
    a "sim" layer is BERT's and leaves e alone

The released model has five "sim" layers, one "mix", six "norm". Entity vectors (TransE, 100 wide,
frozen) are an input, no parameter: `zoo.data.knowledge_batches.EntityDenoising` makes the batches.
Heads: BERT's two, and ``transform(h) · candidates`` for the entity behind a mention.

Traps: [CLS] counts as an entity with a zero vector. Where there is no entity the fusion still adds
b_e. The entities that leave the last layer are never read, so two of its parts get no gradient.
ERNIE of Baidu is another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.layers import (
    Attention,
    EncoderBlock,
    FeedForward,
    FirstTokenPooler,
    Run,
    Stack,
    Wanted,
    activation,
    bert_block_of,
    post_norm,
    text_embeddings_of,
)
from zoo.layers.feed_forward import check_choice
from zoo.layers.heads import masked_lm_of
from zoo.layers.padding import as_bool, carried
from zoo.models.base.config import check_heads
from zoo.models.base.model import Reading
from zoo.models.base.outputs import WithEntities
from zoo.models.base.text_encoder import TextEncoder
from zoo.models.bert import BertConfig
from zoo.registry.terms import MASKED_ENTITY, MASKED_LM, NEXT_SENTENCE
from zoo.registry.variants import TEXT_INPUTS

KINDS = ("sim", "mix", "norm")


@dataclass(frozen=True, kw_only=True)
class ErnieThuConfig(BertConfig):
    entity_size: int = 100  # width of the entity stream
    entity_heads: int = 4  # heads of its attention
    layer_types: tuple[
        str, ...
    ] = ()  # "sim", "mix" or "norm" for each layer, "sim" where it ends early; empty: as the released model

    def check(self) -> None:
        super().check()
        check_heads(self.entity_size, self.entity_heads, "entity_size", "entity_heads")
        for kind in self.layer_types:
            check_choice("layer type", kind, KINDS)
        if len(self.layer_types) > self.num_layers:
            raise ConfigError(
                f"layer_types names {len(self.layer_types)} layers, num_layers={self.num_layers}; leave some out"
            )
        if not self.layer_types:  # five of twelve layers read the text alone, the next mixes
            plain = self.num_layers * 5 // 12
            kinds = ("sim",) * plain + ("mix",) + ("norm",) * (self.num_layers - plain - 1)
            object.__setattr__(self, "layer_types", kinds)


class FusionFeedForward(FeedForward):
    """``u = act(W a + b + W_e ẽ + b_e)``, then each stream's own way down."""

    def __init__(self, hidden_size: int, entity_size: int, intermediate_size: int, activation_name: str) -> None:
        super().__init__(hidden_size, intermediate_size, activation_name)
        self.entity_up = nn.Linear(entity_size, intermediate_size)
        self.entity_down = nn.Linear(intermediate_size, entity_size)

    def forward(  # type: ignore[override]
        self, text: Float[Tensor, "*rows hidden"], entity: Float[Tensor, "*rows entity_size"]
    ) -> tuple[Float[Tensor, "*rows hidden"], Float[Tensor, "*rows entity_size"]]:
        inner = self.activation(self.up(text) + self.entity_up(entity))  # (..., intermediate)  # eq: fusion
        return self.down(inner), self.entity_down(inner)  # eq: fusion


class FusionBlock(nn.Module):
    """A "mix" layer: self-attention of the text, then the fusion of text and entities."""

    roles = EncoderBlock.roles  # the text's parts; the entities' attention has its inner ones

    def __init__(self, c: ErnieThuConfig) -> None:
        super().__init__()
        self.attention = Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout)
        self.attention_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.feed_forward = FusionFeedForward(c.hidden_size, c.entity_size, c.intermediate_size, c.activation)
        self.feed_forward_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.entity_feed_forward_norm = nn.LayerNorm(c.entity_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, text: Float[Tensor, "*rows hidden"], entity: Float[Tensor, "*rows entity_size"], words: Run, mentions: Run
    ) -> tuple[Float[Tensor, "*rows hidden"], Float[Tensor, "*rows entity_size"]]:
        """text and entity: rows of one grid, as ``words`` packs them -> the same."""
        text = post_norm(  # eq: text
            text, lambda y: self.attention(y, y, y, words.mask, None, words.trace), self.attention_norm, self.dropout
        )
        known = self.known(carried(entity, words.padding, mentions.padding), mentions)  # eq: mask
        entity = carried(known, mentions.padding, words.padding)  # zeros between mentions  # eq: mask
        new_text, new_entity = self.feed_forward(text, entity)  # eq: down
        new_text = post_norm(text, lambda _: new_text, self.feed_forward_norm, self.dropout)  # eq: down
        return new_text, self.entity_feed_forward_norm(entity + self.dropout(new_entity))  # eq: down

    def known(self, entity: Float[Tensor, "*rows entity_size"], mentions: Run) -> Float[Tensor, "*rows entity_size"]:
        """The entities as the fusion reads them, zeros where none is mentioned: as they come."""
        return entity  # eq: mix


class AggregatorBlock(FusionBlock):
    """A "norm" layer: the entities attend to each other before the fusion."""

    def __init__(self, c: ErnieThuConfig) -> None:
        super().__init__(c)
        self.entity_attention = Attention(c.entity_size, c.entity_heads, dropout=c.attention_dropout)
        self.entity_attention_norm = nn.LayerNorm(c.entity_size, c.norm_eps)

    def known(self, entity: Float[Tensor, "*rows entity_size"], mentions: Run) -> Float[Tensor, "*rows entity_size"]:
        return post_norm(  # eq: norm
            entity,
            lambda y: self.entity_attention(y, y, y, mentions.mask, None, mentions.trace),
            self.entity_attention_norm,
            self.dropout,
        )


class EntityStack(Stack):
    """A stack through which entities travel beside the text; BERT's own blocks let them pass."""

    def beside(
        self, words: Run, entities: Run, mentions: Run
    ) -> tuple[Float[Tensor, "batch length hidden"], Float[Tensor, "batch length entity_size"]]:
        """What it makes of text and entities."""
        text, entity = words.enter(), entities.enter()  # rows of one grid, packed alike
        for index in self.plan:
            block = self.blocks[index]
            if isinstance(block, EncoderBlock):
                text = block(text, words.mask, None, words.trace)
            else:
                text, entity = block(text, entity, words, mentions)
            words.trace.hidden(text)
            entities.trace.hidden(entity)
        return words.leave(text), entities.leave(entity)


class MaskedEntityHead(nn.Module):
    """``norm(act(W h + b)) · candidate`` for each candidate vector; the zero vector, "no entity",
    scores zero.
    """

    def __init__(self, c: ErnieThuConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.entity_size)
        self.norm = nn.LayerNorm(c.entity_size, c.norm_eps)
        self.activation = activation(c.activation)

    def forward(
        self, hidden: Float[Tensor, "*rows hidden"], candidates: Float[Tensor, "candidates entity_size"]
    ) -> Float[Tensor, "*rows candidates"]:
        if candidates.dim() != 2 or candidates.shape[1] != self.dense.out_features:
            raise InputError(
                f"entity_candidates must be (candidates, {self.dense.out_features}), got {tuple(candidates.shape)}"
            )
        return self.norm(self.activation(self.dense(hidden))) @ candidates.to(hidden.dtype).T  # eq: candidates


class ErnieThu(TextEncoder):
    Config = ErnieThuConfig
    heads = {
        "masked_lm": masked_lm_of,
        "next_sentence": lambda c: nn.Linear(c.hidden_size, 2),
        "masked_entity": MaskedEntityHead,
    }
    offers = {**TextEncoder.offers, "entities": Reading(lambda e: e.entity.last_hidden_state, "length")}
    pretraining = (MASKED_LM, NEXT_SENTENCE, MASKED_ENTITY)  # eq: loss
    inputs = (*TEXT_INPUTS, "entity_embeds", "entity_mask")
    exceptions = {
        "gradients": "the entities that leave the last layer are read by nothing, "
        "and a text without entities teaches no entity attention"
    }
    encoder: EntityStack

    def __init__(self, config: ErnieThuConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        kinds = c.layer_types + ("sim",) * (c.num_layers - len(c.layer_types))  # eq: layers
        self.encoder = EntityStack([self._block(kind, c) for kind in kinds])  # eq: layers
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    @staticmethod
    def _block(kind: str, c: ErnieThuConfig) -> nn.Module:
        if kind != "sim":
            return (FusionBlock if kind == "mix" else AggregatorBlock)(c)
        return bert_block_of(c)

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        entity_embeds: Float[Tensor, "batch length entity_size"] | None = None,
        entity_mask: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> WithEntities:
        """As `TextEncoder`, and ``entity_embeds``, zeros where no entity is mentioned; ``entity_mask``
        (batch, length), 1/True = one is. Left out: no entities; a mask is made from the vectors that
        are not zero and each row's first real token.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        kept = output_hidden_states, output_attentions
        words = Run(x, attention_mask, lengths, *kept)
        entity, mentioned = self.entities(entity_embeds, entity_mask, words)
        entities, mentions = words.beside(entity), Run(entity, mentioned, None, *kept, name="entity_mask")
        x, entity = self.encoder.beside(words, entities, mentions)
        text, beside = words.encoded(x, self.pooler), entities.encoded(entity)
        return WithEntities(**vars(text), entity=replace(beside, attentions=mentions.attentions))

    def entities(
        self, entity_embeds: Float[Tensor, "batch length entity_size"] | None, entity_mask: Tensor | None, words: Run
    ) -> tuple[Float[Tensor, "batch length entity_size"], Bool[Tensor, "batch length"]]:
        """The entities' vectors, zeros at padding, and where they stand."""
        x, padding = words.x, words.padding
        shape = (*padding.grid, self.config.entity_size)
        if entity_embeds is None:
            if entity_mask is not None:
                raise InputError("entity_mask was given without entity_embeds, the entities' vectors")
            entity_embeds = x.new_zeros(shape)
        elif tuple(entity_embeds.shape) != shape:
            raise InputError(
                f"entity_embeds must be (batch, length, entity size) = {shape}, got {tuple(entity_embeds.shape)}"
            )
        real = padding.real if padding.real is not None else torch.ones(padding.grid, dtype=torch.bool, device=x.device)
        if entity_mask is None:
            first = torch.arange(real.shape[1], device=x.device) == real.int().argmax(1, keepdim=True)
            mentioned = (entity_embeds != 0).any(2) | first
        else:
            mentioned = as_bool(entity_mask, "entity_mask")
            if tuple(mentioned.shape) != padding.grid:
                raise InputError(
                    f"entity_mask must be (batch, length) = {padding.grid}, 1/True = an entity stands here, got "
                    f"{tuple(mentioned.shape)}"
                )
        return entity_embeds.to(x.dtype).masked_fill(~real.unsqueeze(2), 0), mentioned & real
