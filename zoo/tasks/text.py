"""Tasks over one text or a pair: what each head reads, its logits and its loss. Inputs are those of
the model below, plus labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, TaskError
from zoo.models.base.model import Model, need_pooler
from zoo.models.base.outputs import TaskOutput
from zoo.tasks.base import TaskModel, along
from zoo.tasks.losses import (
    FAR,
    check_labels,
    classification_loss,
    label_tensor,
    problem_of,
    row_loss,
    span_loss,
    token_loss,
)


class SequenceClassification(TaskModel):
    """``W dropout(pooled) + b``: a label for a text or a pair."""

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,) int for classes, (batch, classes) float for several at once, (batch,)
        float for one output -> logits (batch, classes).
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        if "sequence_classification" in self.model.reads_first:
            hidden = encoded.last_hidden_state
            vector = self.model.padding_of("text", given, encoded).first(hidden)
        else:
            vector = need_pooler(encoded)
        logits = self.heads["sequence_classification"](self.dropout(vector))  # (batch, classes)
        loss = None
        if labels is not None:
            labels = label_tensor(labels)
            kind = problem_of(logits, labels, self.options["problem_type"])
            wide = kind == "multi-label" or (kind == "regression" and logits.shape[1] > 1)
            shape = tuple(logits.shape) if wide else (logits.shape[0],)
            column = kind == "regression" and labels.dim() == 2 and not wide  # (batch, 1) does for one output
            check_labels(
                labels[:, 0] if column else labels, shape, "labels", logits.shape[1] if kind == "single-label" else None
            )
            loss = classification_loss(logits, labels, self.options["problem_type"])
        return TaskOutput(loss, logits, losses={} if loss is None else {"classification": loss}, encoded=encoded)


class TokenClassification(TaskModel):
    """``W dropout(h_t) + b``: a label for each token."""

    reads = "text"

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, length) int, -100 = left out -> logits (batch, length, classes), zeros at
        padding.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        padding = self.model.padding_of("text", given, encoded, pack=False)
        logits = padding.unpack(self.heads["token_classification"](self.dropout(encoded.last_hidden_state)))
        loss = None if labels is None else token_loss(logits, labels, padding.real)
        return TaskOutput(loss, logits, losses={} if loss is None else {"classification": loss}, encoded=encoded)


def places_of(positions: Tensor, name: str) -> Tensor:
    """Places in the text, (batch,) int64, from (batch,) or (batch, 1)."""
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        raise TaskError(f"{name} must hold integers, got {positions.dtype}")
    return label_tensor(positions, name).flatten()


class QuestionAnswering(TaskModel):
    """``W h_t + b`` with two outputs: is this the answer's first token, is it the last. Places compete,
    so padding scores `FAR` below the others and not zero: an argmax over a batch never lands there.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        return cls(model, {"question_answering": nn.Linear(model.config.hidden_size, 2)}, options)

    def forward(
        self, *inputs: Tensor, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **named: Any
    ) -> TaskOutput:
        """start_positions, end_positions (batch,) int; outside the text = left out -> start_logits,
        end_logits (batch, length), `FAR` at padding, which the loss does not count among the places
        of an answer.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        padding = self.model.padding_of("text", given, encoded, pack=False)
        scores = padding.unpack(self.heads["question_answering"](encoded.last_hidden_state))  # (batch, length, 2)
        if padding.real is not None:
            scores = scores.masked_fill(~padding.real.unsqueeze(2), FAR)
        start, end = scores.unbind(-1)
        loss = None
        if (start_positions is None) != (end_positions is None):
            raise InputError("give both start_positions and end_positions, or neither")
        if start_positions is not None and end_positions is not None:
            start_positions = places_of(start_positions, "start_positions")
            end_positions = places_of(end_positions, "end_positions")
            for name, places in (("start_positions", start_positions), ("end_positions", end_positions)):
                check_labels(places, (start.shape[0],), name, integers=True)
            loss = span_loss(start, end, start_positions, end_positions, padding.real)
        return TaskOutput(
            loss, losses={} if loss is None else {"span": loss}, start_logits=start, end_logits=end, encoded=encoded
        )


class MultipleChoice(TaskModel):
    """``w dropout(pooled) + b`` for each of several texts, or of several pairs of words and picture;
    the highest wins.

    Text inputs are (batch, choices, length); visual ones (batch, choices, regions, ...), or (batch,
    regions, ...) for one picture of all.
    """

    several: tuple[str, int] | None = ("length", 4)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,): the number of the right one -> logits (batch, choices)."""
        given, choices = along(self.model, self.given(inputs, named), "choices")
        encoded = self.model(**given)
        (head,) = self.heads.values()
        scores = head(self.dropout(need_pooler(encoded)))  # (batch · choices, 1)
        logits = scores.view(-1, choices)
        loss = None if labels is None else row_loss(logits, labels)
        return TaskOutput(loss, logits, losses={} if loss is None else {"choice": loss}, encoded=encoded)
