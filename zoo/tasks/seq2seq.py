"""Tasks of encoder-decoders: the words of a target, given a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.tasks.losses import label_tensor
from zoo.tasks.objective import Objective


class ConditionalGeneration(Objective):
    """The next word of the target: ``prediction_logits`` (batch, target length, vocabulary), zeros
    at padding.

    labels (batch, target length): at each place the id that should follow it, -100 = left out. A
    family that makes the decoder's inputs from its labels (`decoder_inputs`) does so where none are
    given.
    """

    def given(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        given = super().given(inputs, named)
        labels = given.get("labels")
        if labels is not None and given.get("decoder_input_ids") is None and hasattr(self.model, "decoder_inputs"):
            given["decoder_input_ids"] = self.model.decoder_inputs(label_tensor(labels))  # type: ignore[operator]
        return given

    def predict(self, hidden: Tensor) -> Tensor:
        """Word scores of decoder states (batch, length, hidden), all of them real."""
        return self.heads["language_model"](hidden, self.model.output_table)  # type: ignore[no-any-return]
