"""Single-stream text models: from a reference's class name and arguments to our task models, and
our results to its output names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Case, Output
from zoo.tasks.losses import token_cross_entropy

TASK_OF_CLASS = {
    "ForPreTraining": "pretraining",
    "ForMaskedLM": "masked-lm",
    "LMHeadModel": "masked-lm",
    "ForNextSentencePrediction": "next-sentence",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "language_ids")
LABELS = ("labels", "next_sentence_label", "sentence_order_label", "start_positions", "end_positions")


def task_of(case: Case) -> str | None:
    """The task that a Hugging Face class name stands for; None for a bare encoder."""
    return next((task for ending, task in TASK_OF_CLASS.items() if ending in case.object), None)


def load(case: Case, task: str | None, layout: str | None = None, **options: Any) -> Any:
    """Ours with the case's weights, through the layout's map."""
    return zoo.load(case.weights, config=case.config, task=task, layout=layout, **options).eval()


def real_of(case: Case, name: str = "attention_mask") -> Tensor | None:
    """(batch, length) bool, True = a real token; None where all are."""
    mask = case.inputs.get(name)
    return None if mask is None else mask.bool() if mask.dim() == 2 else mask.bool().any(2)


def real_of_lengths(lengths: Tensor, longest: int) -> Tensor:
    """(batch, longest) bool, True where a token stands."""
    return torch.arange(longest) < lengths[:, None]


def at_real(value: Tensor, real: Tensor | None) -> Any:
    """A (batch, length, ...) result that counts at real tokens only."""
    return value if real is None else Output(value, where=real)


def encoded_outputs(encoded: Any, real: Tensor | None) -> dict[str, Any]:
    """An `Encoded` under Hugging Face's output names."""
    outputs: dict[str, Any] = {"last_hidden_state": at_real(encoded.last_hidden_state, real)}
    if encoded.pooler_output is not None:
        outputs["pooler_output"] = encoded.pooler_output
    for i, state in enumerate(encoded.hidden_states or ()):
        outputs[f"hidden_states.{i}"] = at_real(state, real)
    for i, probabilities in enumerate(encoded.attentions or ()):
        outputs[f"attentions.{i}"] = (
            probabilities
            if real is None
            else Output(probabilities, where=real[:, None, :, None].expand_as(probabilities))
        )
    return outputs


def hugging_face(case: Case, layout: str | None = None) -> Mapping[str, Any]:
    """Any of the Bert*/Albert* classes: encoder, heads and losses."""
    task = task_of(case)
    model = load(case, task, layout)
    given = {name: case.inputs[name] for name in (*INPUTS, *(LABELS if task else ())) if name in case.inputs}
    if task == "next-sentence" and "next_sentence_label" in given:
        given["labels"] = given.pop("next_sentence_label")
    if (
        task == "question-answering" and "attention_mask" in given
    ):  # the reference lets padding compete for the answer: give it states too
        mask = given["attention_mask"]
        given["attention_mask"] = mask[:, None, :].expand(-1, mask.shape[1], -1)
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, output_attentions=True)
    real = real_of(case)
    if task == "multiple-choice" and "attention_mask" in case.inputs:  # (batch, choices, length): each choice is a row
        real = case.inputs["attention_mask"].bool().flatten(0, 1)
    if task is None:
        return encoded_outputs(result, real)
    outputs = encoded_outputs(result.encoded, real)
    for name, value in result.present():
        if name in ("prediction_logits", "start_logits", "end_logits"):
            outputs[name] = at_real(value, real)
        elif name == "logits":
            by_token = task in ("token-classification", "masked-lm")
            outputs[name] = at_real(value, real) if by_token else value
        elif name in ("loss", "seq_relationship_logits", "sop_logits"):
            outputs[name] = value
    return outputs


def tf_pretraining(layout: str, sentence_head: str, sentence_output: str) -> Callable[[Case], Mapping[str, Any]]:
    """google-research's run_pretraining: gathered positions, weighted masked-word loss, a sentence
    loss.
    """

    def adapter(case: Case) -> Mapping[str, Any]:
        model = load(case, "pretraining", layout)
        inputs = case.inputs
        ids, mask, segments = inputs["input_ids"].long(), inputs["input_mask"], inputs["segment_ids"].long()
        with torch.no_grad():
            result = model(ids, mask, segments, output_hidden_states=True)
            embedded = embedding_output(model.model, ids, segments)
        real = mask.bool()
        positions = inputs["masked_lm_positions"].long()
        words = result.prediction_logits.gather(
            1, positions[:, :, None].expand(-1, -1, result.prediction_logits.shape[2])
        )
        weights = inputs["masked_lm_weights"]
        labels = torch.where(weights > 0, inputs["masked_lm_ids"].long(), -100)
        word_loss = token_cross_entropy(words, labels, epsilon=1e-5)
        head = getattr(result, "seq_relationship_logits" if sentence_head == "next_sentence" else "sop_logits")
        label_name = next(name for name in ("next_sentence_labels", "sentence_order_labels") if name in inputs)
        sentence_loss = torch.nn.functional.cross_entropy(head, inputs[label_name].long().flatten())
        log_probs = words.log_softmax(-1).flatten(0, 1)
        seen = real.gather(1, positions).flatten()  # a padded slot may point at padding, whose state no one defines
        return {
            "embedding_output": at_real(embedded, real),
            **{
                f"all_encoder_layers.{i}": at_real(state, real)
                for i, state in enumerate(result.encoded.hidden_states[1:])
            },
            "pooled_output": result.encoded.pooler_output,
            "masked_lm_loss": word_loss,
            "masked_lm_log_probs": Output(log_probs, where=seen),
            f"{sentence_output}_loss": sentence_loss,
            f"{sentence_output}_log_probs": head.log_softmax(-1),
            "total_loss": word_loss + sentence_loss,
        }

    return adapter


def embedding_output(model: Any, ids: Tensor, segments: Tensor) -> Tensor:
    """What leaves the embedding norm, before any projection."""
    kept: list[Tensor] = []
    handle = model.embeddings.norm.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        model.embeddings(ids, segments)
    finally:
        handle.remove()
    return kept[0]
