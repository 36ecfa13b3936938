"""VisualBERT: the Hugging Face port and the original code (uclanlp/visualbert)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load

RENAMED = {
    "visual_embeds": "visual_features",
    "visual_embeddings": "visual_features",
    "visual_attention_mask": "visual_mask",
    "image_mask": "visual_mask",
    "input_mask": "attention_mask",
    "visual_embeddings_type": "visual_token_type_ids",
    "sentence_image_labels": "match_labels",
    "is_random_next": "match_labels",
    "masked_lm_labels": "labels",
    "label": "labels",
    "flickr_position": "phrase_positions",
    "region_to_phrase_position": "phrase_positions",
}
MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "visual_features",
    "visual_mask",
    "visual_token_type_ids",
    "image_text_alignment",
)
TASK_OF_CLASS = {
    "ForPreTraining": "pretraining",
    "ForMultipleChoice": "multiple-choice",
    "ForQuestionAnswering": "visual-question-answering",
    "ForVisualReasoning": "visual-reasoning",
    "ForRegionToPhraseAlignment": "region-to-phrase",
}
TASK_OF_HEAD = {
    "pretraining": "pretraining",
    "vqa": "visual-question-answering",
    "vqa_advanced": "pretraining",
    "nlvr": "visual-reasoning",
    "multichoice": "multiple-choice",
    "flickr": "region-to-phrase",
}


def arguments(case: Case) -> dict[str, Tensor]:
    """A case's inputs under our names, -1 labels as -100."""
    given = {RENAMED.get(name, name): value for name, value in case.inputs.items()}
    for name in ("labels",):
        if name in given and not given[name].is_floating_point():
            given[name] = torch.where(given[name] < 0, -100, given[name].long())
    return given


def joint_real(given: Mapping[str, Tensor]) -> Tensor | None:
    """(batch, length + regions) bool; None where all is real."""
    if "visual_features" not in given:
        return given["attention_mask"].bool() if "attention_mask" in given else None
    text, features = given["input_ids"], given["visual_features"]
    words = given["attention_mask"].bool() if "attention_mask" in given else torch.ones_like(text, dtype=torch.bool)
    regions = (
        given["visual_mask"].bool() if "visual_mask" in given else torch.ones(features.shape[:-1], dtype=torch.bool)
    )
    return torch.cat([words, regions], -1).flatten(0, -2)


def states(encoded: Any, real: Tensor | None, text_real: Tensor | None = None) -> dict[str, Any]:
    """Hidden states and attentions under the names that the cases use."""
    named: dict[str, Any] = {"last_hidden_state": at_real(encoded.last_hidden_state, real), "sequence_output": None}
    named["sequence_output"] = named["last_hidden_state"]
    if encoded.pooler_output is not None:
        named["pooler_output"] = named["pooled_output"] = encoded.pooler_output
    for i, state in enumerate(encoded.hidden_states or ()):
        where = real if real is None or state.shape[1] == real.shape[1] else text_real
        for name in (f"hidden_state_{i}", f"hidden_states.{i}", f"layer_output.{i - 1}"):
            named[name] = at_real(state, where)
    for i, maps in enumerate(encoded.attentions or ()):
        where = real if real is None or maps.shape[2] == real.shape[1] else text_real
        value: Any = maps if where is None else Output(maps, where=where[:, None, :, None].expand_as(maps))
        for name in (f"attention_{i}", f"attentions.{i}", f"attention.{i}"):
            named[name] = value
    return named


def run(case: Case, layout: str, task: str | None, **options: Any) -> dict[str, Any]:
    """Our model or task model on a case, with the losses' gradient to the features where the case
    asks for it.
    """
    given = arguments(case)
    model = load(case, task, layout, **options)
    inputs = {name: given[name] for name in MODEL_INPUTS if name in given}
    labels = {name: given[name] for name in ("labels", "match_labels", "phrase_positions") if name in given and task}
    if task not in ("pretraining", None):
        labels.pop("match_labels", None)
    wants_gradient = any("grad" in name for name in case.info.get("outputs", {}))
    if wants_gradient:
        inputs["visual_features"] = inputs["visual_features"].clone().requires_grad_()
    with torch.set_grad_enabled(wants_gradient):
        result = model(**inputs, **labels, output_hidden_states=True, output_attentions=True)
    encoded = result if task is None else result.encoded
    real = joint_real(given)
    text_real = given["attention_mask"].bool().flatten(0, -2) if "attention_mask" in given else None
    outputs = states(encoded, real, text_real)
    if task is None:
        return outputs
    if wants_gradient and result.loss is not None:
        (gradient,) = torch.autograd.grad(result.loss, inputs["visual_features"])
        outputs["grad_visual_embeds"] = outputs["grad_visual_embeddings"] = gradient
    if result.loss is not None:
        outputs["loss"] = result.loss
    if task == "pretraining":
        outputs["prediction_logits"] = outputs["logits"] = at_real(result.prediction_logits, real)
        outputs["seq_relationship_logits"] = outputs["seq_relationship_score"] = result.seq_relationship_logits
        if "masked_lm" in result.losses:
            outputs["loss_without_sentence_labels"] = outputs["masked_lm_loss"] = result.losses["masked_lm"]
        if "image_text_matching" in result.losses:
            outputs["next_sentence_loss"] = result.losses["image_text_matching"]
    else:
        outputs["logits"] = outputs["reshaped_logits"] = result.logits
        outputs["logits_when_labels_given"] = result.logits.log_softmax(-1)
    return outputs


def hugging_face(case: Case) -> Mapping[str, Any]:
    task = next((task for ending, task in TASK_OF_CLASS.items() if ending in case.object), None)
    return run(case, "hf-visualbert", task)


def original(case: Case) -> Mapping[str, Any]:
    task = TASK_OF_HEAD[case.config.get("training_head_type", "pretraining")] if "Objective" in case.object else None
    outputs = run(case, "visualbert-original", task)
    given = arguments(case)
    if task == "visual-question-answering":
        logits, outputs["logits"] = outputs["logits"], outputs["logits"].unsqueeze(1)
        if "labels" in given:
            outputs["accuracy"] = given["labels"].gather(1, logits.argmax(1, keepdim=True)).sum() / len(logits)
    if task is not None:
        bare = load(case, None, "visualbert-original")  # with the pooler, which some tasks don't read
        flat = {
            name: given[name].flatten(0, 1) if given["input_ids"].dim() == 3 else given[name]
            for name in MODEL_INPUTS
            if name in given
        }
        outputs["embedding_output"] = at_real(embedding_of(bare, flat), joint_real(given))
        with torch.no_grad():
            outputs["pooled_output"] = bare(**flat).pooler_output
    return outputs


def embedding_of(model: Any, given: Mapping[str, Tensor]) -> Tensor:
    """What leaves the embedding norm, the text first."""
    kept: list[Tensor] = []
    handle = model.embeddings.norm.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        with torch.no_grad():
            model(**{name: given[name] for name in MODEL_INPUTS if name in given})
    finally:
        handle.remove()
    return torch.cat(kept, 1)


ADAPTERS: dict[str, Adapter] = {
    "transformers.models.visual_bert": hugging_face,
    "pytorch_pretrained_bert.modeling": original,
}
