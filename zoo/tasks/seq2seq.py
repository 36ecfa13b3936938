"""Tasks of encoder-decoders: the words of a target, given a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.layers.padding import Padding
from zoo.models.base.model import Model
from zoo.models.base.outputs import TaskOutput
from zoo.tasks.base import TaskModel, check_labels
from zoo.tasks.losses import token_cross_entropy


class ConditionalGeneration(TaskModel):
    """The next word of the target: ``prediction_logits`` (batch, target length, vocabulary), zeros
    at padding.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"language_model": model.heads["language_model"](model.config)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, target length): at each place the id that should follow it, -100 = left
        out. A family that makes the decoder's inputs from its labels (`decoder_inputs`) does so
        where none are given.
        """
        given = {**dict(zip(self.model.inputs, inputs, strict=False)), **named}
        if labels is not None and given.get("decoder_input_ids") is None and hasattr(self.model, "decoder_inputs"):
            given["decoder_input_ids"] = self.model.decoder_inputs(labels)  # type: ignore[operator]
        decoded = self.model(**given)
        logits = self.predict(decoded.last_hidden_state, given.get("decoder_attention_mask"))
        if labels is None:
            return TaskOutput(logits=logits, prediction_logits=logits, encoded=decoded)
        check_labels(labels, tuple(logits.shape[:2]), "labels", logits.shape[2])
        loss = token_cross_entropy(logits, labels)
        return TaskOutput(loss, {"language_model": loss}, logits, logits, encoded=decoded)

    def predict(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Word scores of decoder states (batch, length, hidden), computed at real tokens only."""
        padding = Padding.of(attention_mask, (hidden.shape[0], hidden.shape[1]), name="decoder_attention_mask")
        return padding.unpack(self.heads["language_model"](padding.pack(hidden), self.model.output_table))
