"""Tasks of models that know: types of mentions, and the links that are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.candidates import Candidates
from zoo.errors import TaskError
from zoo.models.base.model import Model, need_pooler
from zoo.models.base.outputs import TaskOutput
from zoo.tasks.base import TaskModel
from zoo.tasks.losses import binary_loss, label_tensor


def linked_entities(scores: Tensor, candidates: Candidates, threshold: float, null_id: int) -> Tensor:
    """The links that are made, (links, 4): row of the batch, first and last token, entity; a span
    whose best score is not above the threshold, or belongs to the null entity, makes none.
    """
    best, place = scores.max(2)  # (batch, spans)
    entity = candidates.ids.gather(2, place.unsqueeze(2)).squeeze(2)
    made = (best > threshold) & (entity != null_id)
    rows = torch.arange(len(scores), device=scores.device)[:, None].expand_as(entity)
    return torch.stack([rows, candidates.spans[:, :, 0], candidates.spans[:, :, 1], entity], 2)[made]


class EntityTyping(TaskModel):
    """``W dropout(pooled)`` without a bias: all the types of a mention that is marked in the text,
    each yes or no.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        return cls(
            model, {"entity_typing": nn.Linear(model.config.hidden_size, options["num_labels"], bias=False)}, options
        )

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, types), 1 = it is one -> logits (batch, types)."""
        encoded = self.model(**self.given(inputs, named))
        logits = self.heads["entity_typing"](self.dropout(need_pooler(encoded)))
        loss = None
        if labels is not None:
            labels = label_tensor(labels)
            if labels.shape != logits.shape:
                raise TaskError(
                    f"labels must have shape {tuple(logits.shape)}, one number for each type, got {tuple(labels.shape)}"
                )
            loss = binary_loss(logits, labels, None)
        return TaskOutput(loss, logits, losses={} if loss is None else {"typing": loss}, encoded=encoded)
