"""The task of causal models: the next token of a text."""

from __future__ import annotations

from zoo.tasks.objective import Objective


class CausalLM(Objective):
    """The next token at each token: ``prediction_logits`` (batch, length, vocabulary), zeros at
    padding.

    labels (batch, length): the text's own ids, -100 = left out. What is predicted at a token is
    compared with the label of the next real one.
    """
