"""Which writer serves a model."""

from __future__ import annotations

from typing import Any

from zoo.errors import TaskError
from zoo.inference.search.joint_writers import JointWriter, MaskWriter
from zoo.inference.search.writers import CausalWriter, EncoderDecoderWriter

WRITERS: dict[str, Any] = {
    "encoder-decoder": EncoderDecoderWriter,
    "causal": CausalWriter,
    "joint": JointWriter,
    "masked": MaskWriter,
}


def writer_of(task: Any) -> Any:
    """The writer for a model with its task, or a TaskError that says what it needs."""
    kind = getattr(type(getattr(task, "model", None)), "writes", "")
    if kind not in WRITERS or not hasattr(task, "predict"):
        raise TaskError(
            f"{type(task).__name__} does not write; create an encoder-decoder with task='conditional-generation', a "
            "causal model with task='causal-lm', or a writer of captions (VLP) with task='masked-lm'"
        )
    return WRITERS[kind]
