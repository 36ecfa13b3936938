"""Tasks of models that know: spans from their boundaries (SpanBERT), entities behind mentions
(ERNIE of Tsinghua), types of mentions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.candidates import Candidates
from zoo.errors import InputError, TaskError
from zoo.models.base.model import Model, need_pooler
from zoo.models.base.outputs import TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks.base import TaskModel, check_labels
from zoo.tasks.losses import token_cross_entropy, widened
from zoo.tasks.text import MaskedLM, Pretraining, padding_of


class SpanPretraining(MaskedLM):
    """SpanBERT's: the words of masked spans, and, for ``pairs`` of boundaries, the same words from
    the boundaries alone.

    ``loss = masked_lm + span_loss_weight · sum over the spans' words / (their number + 1)``; the
    scores from the boundaries stand in ``scores["span_boundary"]`` (batch, spans, places,
    vocabulary). A config with a pooler adds the next sentence.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        names = ["masked_lm", "span_boundary"] + (["next_sentence"] if model.config.pooler else [])
        return cls(model, {name: model.heads[name](model.config) for name in names}, options)

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return (*spec.heads, "next_sentence")

    def forward(
        self,
        *inputs: Tensor,
        pairs: Tensor | None = None,
        labels: Tensor | None = None,
        pair_labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **named: Any,
    ) -> TaskOutput:
        """pairs (batch, spans, 2): the places of the left and the right boundary; labels (batch,
        length), pair_labels (batch, spans, places), -100 = left out; next_sentence_label (batch,).
        """
        layer = self.config.span_layer % self.config.num_layers
        last = layer == self.config.num_layers - 1
        wanted = named.pop("output_hidden_states", False)
        encoded = self.model(*inputs, output_hidden_states=wanted or not last, **named)
        hidden = encoded.last_hidden_state
        words = self.predict(hidden, padding_of(hidden, inputs, named))
        losses: dict[str, Tensor] = {}
        if labels is not None:
            check_labels(labels, tuple(words.shape[:2]), "labels", words.shape[2])
            losses["masked_lm"] = token_cross_entropy(words, labels)
        scores = {}
        if pairs is not None:
            read = hidden if last else encoded.hidden_states[layer + 1]
            scores["span_boundary"] = self.heads["span_boundary"](read, pairs, self.token_table)
        if pair_labels is not None:
            if pairs is None:
                raise InputError("pair_labels were given without pairs, the places of the spans' boundaries")
            check_labels(pair_labels, tuple(scores["span_boundary"].shape[:3]), "pair_labels", words.shape[2])
            losses["span_boundary"] = self.options["span_loss_weight"] * span_boundary_loss(
                scores["span_boundary"], pair_labels
            )
        follows = None
        if "next_sentence" in self.heads:
            follows = self.heads["next_sentence"](need_pooler(encoded))
            if next_sentence_label is not None:
                check_labels(next_sentence_label.flatten(), (follows.shape[0],), "next_sentence_label", 2)
                losses["next_sentence"] = F.cross_entropy(widened(follows), next_sentence_label.flatten())
        elif next_sentence_label is not None:
            raise InputError("next_sentence_label was given, but this model reads one text: its config has no pooler")
        loss = sum(losses.values()) if losses else None
        return TaskOutput(loss, losses, None, words, follows, encoded=encoded, scores=scores)  # type: ignore[arg-type]


def span_boundary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The sum over the labels that are not -100, divided by their number plus one."""
    total = F.cross_entropy(widened(scores).flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() + 1)


class EntityPretraining(Pretraining):
    """ERNIE's (Tsinghua): masked words, next sentence, and for each mention which of the batch's
    entities it means.

    The entities' scores stand in ``scores["masked_entity"]`` (batch, length, candidates).
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(
            model,
            {name: model.heads[name](model.config) for name in ("masked_lm", "next_sentence", "masked_entity")},
            options,
        )

    def forward(  # type: ignore[override]
        self,
        *inputs: Tensor,
        entity_candidates: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        entity_labels: Tensor | None = None,
        **named: Any,
    ) -> TaskOutput:
        """entity_candidates (candidates, entity size): the vectors to choose from, the first one
        zero, "no entity"; entity_labels (batch, length): their numbers, -100 = no mention here.
        """
        told = super().forward(*inputs, labels=labels, next_sentence_label=next_sentence_label, **named)
        if entity_candidates is None:
            if entity_labels is not None:
                raise InputError("entity_labels were given without entity_candidates, the vectors that they number")
            return told
        hidden = told.encoded.last_hidden_state
        padding = padding_of(hidden, inputs, named)
        scores = padding.unpack(
            self.heads["masked_entity"](padding.pack(hidden), entity_candidates)
        )  # (batch, length, candidates)
        losses = dict(told.losses)
        if entity_labels is not None:
            check_labels(entity_labels, tuple(scores.shape[:2]), "entity_labels", scores.shape[2])
            losses["masked_entity"] = token_cross_entropy(scores, entity_labels)
        loss = sum(losses.values()) if losses else None
        return TaskOutput(
            loss,  # type: ignore[arg-type]
            losses,
            None,
            told.prediction_logits,
            told.seq_relationship_logits,
            encoded=told.encoded,
            scores={"masked_entity": scores},
        )


def linking_loss(kind: str, scores: Tensor, ids: Tensor, gold: Tensor, margin: float = 0.2) -> Tensor:
    """How well candidates are told apart; scores and ids (batch, spans, candidates), gold (batch,
    spans), the true entity's id.

    "margin": mean over all candidates of ``max(0, margin - score)`` for the true one, ``max(0,
    margin + score)`` for others. "softmax": negative log likelihood of the true one, over the spans
    that have candidates.
    """
    true = ids == gold.unsqueeze(2)
    if kind == "margin":
        signed = torch.where(true, -scores, scores)
        return (signed + margin).clamp(min=0)[ids > 0].mean()
    target = true.int().argmax(2).masked_fill(~(ids > 0).any(2), -100)
    return F.cross_entropy(widened(scores).flatten(0, 1), target.flatten())


def linked_entities(scores: Tensor, candidates: Candidates, threshold: float, null_id: int) -> Tensor:
    """The links that are made, (links, 4): row of the batch, first and last token, entity; a span
    whose best score is not above the threshold, or belongs to the null entity, makes none.
    """
    best, place = scores.max(2)  # (batch, spans)
    entity = candidates.ids.gather(2, place.unsqueeze(2)).squeeze(2)
    made = (best > threshold) & (entity != null_id)
    rows = torch.arange(len(scores), device=scores.device)[:, None].expand_as(entity)
    return torch.stack([rows, candidates.spans[:, :, 0], candidates.spans[:, :, 1], entity], 2)[made]


def linking_losses(
    model: Model, encoded: Any, named: Mapping[str, Any], gold: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The loss of each source for which the true entities are given."""
    losses = {}
    for name, entities in gold.items():
        candidates = (named.get("entity_candidates") or {}).get(name)
        if candidates is None:
            raise InputError(f"gold_entities were given for {name!r} without its entity_candidates")
        check_labels(entities, tuple(candidates.spans.shape[:2]), "gold_entities")
        source = model.config.knowledge[name]
        losses[f"{name}_linking"] = linking_loss(
            source.loss, encoded.links[name].scores, candidates.ids, entities, source.margin
        )
    return losses


class LinkedPretraining(Pretraining):
    """KnowBert's: masked words, next sentence, and, for each source with ``gold_entities``, the
    linking of its candidates.
    """

    def forward(  # type: ignore[override]
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        gold_entities: Mapping[str, Tensor] | None = None,
        **named: Any,
    ) -> TaskOutput:
        """gold_entities: by source the true entity of each span, (batch, spans) int."""
        told = super().forward(*inputs, labels=labels, next_sentence_label=next_sentence_label, **named)
        losses = {**told.losses, **linking_losses(self.model, told.encoded, named, gold_entities or {})}
        loss = sum(losses.values()) if losses else None
        return dataclasses.replace(told, loss=loss, losses=losses)  # type: ignore[arg-type]


class EntityLinking(TaskModel):
    """KnowBert's first stage: the linkers alone. ``scores`` by source (batch, spans,
    candidates).
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {}, options)

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return ()

    def forward(self, *inputs: Tensor, gold_entities: Mapping[str, Tensor] | None = None, **named: Any) -> TaskOutput:
        """gold_entities: by source the true entity of each span, (batch, spans) int."""
        encoded = self.model(*inputs, **named)
        losses = linking_losses(self.model, encoded, named, gold_entities or {})
        loss = sum(losses.values()) if losses else None
        scores = {name: links.scores for name, links in encoded.links.items()}
        return TaskOutput(loss, losses, encoded=encoded, scores=scores)  # type: ignore[arg-type]


class EntityTyping(TaskModel):
    """``W dropout(pooled)`` without a bias: all the types of a mention that is marked in the text,
    each yes or no.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(
            model, {"entity_typing": nn.Linear(model.config.hidden_size, options["num_labels"], bias=False)}, options
        )

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, types), 1 = it is one -> logits (batch, types)."""
        encoded = self.model(*inputs, **named)
        logits = self.heads["entity_typing"](self.dropout(need_pooler(encoded)))
        loss = None
        if labels is not None:
            if labels.shape != logits.shape:
                raise TaskError(
                    f"labels must have shape {tuple(logits.shape)}, one number for each type, got {tuple(labels.shape)}"
                )
            loss = F.binary_cross_entropy_with_logits(widened(logits), labels.to(widened(logits).dtype))
        return TaskOutput(loss, {} if loss is None else {"typing": loss}, logits, encoded=encoded)
