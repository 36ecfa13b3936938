"""ERNIE (Baidu): its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.ernie_baidu import ErnieConfig

LAYOUT = "hf-ernie"
CLASSES = {
    None: "ErnieModel",
    "masked-lm": "ErnieForMaskedLM",
    "pretraining": "ErnieForPreTraining",
    "next-sentence": "ErnieForNextSentencePrediction",
    "sequence-classification": "ErnieForSequenceClassification",
    "token-classification": "ErnieForTokenClassification",
    "question-answering": "ErnieForQuestionAnswering",
    "multiple-choice": "ErnieForMultipleChoice",
}


def tiny_config(draw: st.DrawFn) -> ErnieConfig:
    return ErnieConfig(**encoder_fields(draw), task_embeddings=draw(st.booleans()), num_tasks=draw(st.integers(1, 4)))


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    """Texts, with a task for each token where the model tells tasks apart."""
    batch: Batch = draw(text_batches(config, **options))
    first = batch.inputs.get("input_ids", batch.inputs.get("inputs_embeds"))
    if config.task_embeddings and options.get("embeds", True) and draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        batch = batch.with_(task_type_ids=torch.randint(config.num_tasks, first.shape[:2], generator=generator))
    return batch


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
