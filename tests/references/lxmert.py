"""LXMERT: the Hugging Face port, whose names are the original code's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load

RENAMED = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "inputs_embeds": "inputs_embeds",
    "visual_feats": "visual_features",
    "visual_pos": "visual_boxes",
    "visual_attention_mask": "visual_mask",
}
LABELS = {
    "labels": "labels",
    "matched_label": "match_labels",
    "ans": "answer_labels",
    "obj_labels": "object_labels",
    "obj_conf": "object_confidence",
    "attr_labels": "attribute_labels",
    "attr_conf": "attribute_confidence",
    "feat_labels": "region_targets",
    "feat_conf": "region_labels",
}
LOSSES = {"loss_lm": "masked_lm", "loss_matched": "image_text_matching", "loss_answer": "image_question_answering"}
SCORES = {"obj": "masked_objects", "attr": "masked_attributes", "feat": "masked_features"}


def model_inputs(case: Case) -> dict[str, Tensor]:
    return {RENAMED[name]: value for name, value in case.inputs.items() if name in RENAMED}


def reals(case: Case) -> tuple[Tensor, Tensor]:
    """(batch, length) and (batch, regions) bool."""
    given = model_inputs(case)
    text = given["input_ids"] if "input_ids" in given else given["inputs_embeds"][:, :, 0]
    words = given.get("attention_mask", torch.ones(text.shape)).bool()
    regions = given.get("visual_mask", torch.ones(given["visual_features"].shape[:2])).bool()
    return words, regions


def states(model: Any, encoded: Any, text: Tensor, image: Tensor) -> dict[str, Any]:
    """States and maps as the port lists them: no embeddings, and one state for a whole cross layer."""
    c = model.config
    named: dict[str, Any] = {
        "language_output": at_real(encoded.text.last_hidden_state, text),
        "vision_output": at_real(encoded.image.last_hidden_state, image),
        "pooled_output": encoded.pooler_output,
    }
    streams = (
        ("language", encoded.text, c.num_layers, text, "embedding_output"),
        ("vision", encoded.image, c.image_num_layers, image, "visual_embedding_output"),
    )
    for name, stream, alone, real, first in streams:
        named[first] = at_real(stream.hidden_states[0], real)
        kept = [*range(1, alone + 1), *(alone + 2 * (k + 1) for k in range(c.cross_num_layers))]
        for i, depth in enumerate(kept):
            named[f"{name}_hidden_state_{i}"] = at_real(stream.hidden_states[depth], real)
        for i, maps in enumerate(stream.attentions[:alone]):
            named[f"{name}_attention_{i}"] = Output(maps, where=real[:, None, :, None].expand_as(maps))
    for i, (maps, _) in enumerate(encoded.cross_attentions):
        named[f"cross_attention_{i}"] = Output(maps, where=text[:, None, :, None].expand_as(maps))
    return named


def encoder(case: Case) -> Mapping[str, Any]:
    model = load(case, None, "hf-lxmert")
    with torch.no_grad():
        encoded = model(**model_inputs(case), output_hidden_states=True, output_attentions=True)
    return states(model, encoded, *reals(case))


def with_extras(case: Case, model: Any, given: dict[str, Any], labels: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A task model's result, the gradient to the features, and what the encoder below gave."""
    given["visual_features"] = given["visual_features"].clone().requires_grad_()
    result = model(**given, **labels, output_hidden_states=True, output_attentions=True)
    outputs = states(model, result.encoded, *reals(case))
    if result.loss is not None:
        outputs["loss"] = result.loss
        (outputs["grad_visual_feats"],) = torch.autograd.grad(result.loss, given["visual_features"])
    return result, outputs


def pretraining(case: Case) -> Mapping[str, Any]:
    text, image = reals(case)
    # the reference divides by all slots, padding included, ours by the real ones: published data has no padding
    weight = case.config.get("visual_loss_normalizer", 6.67) * float(image.sum()) / image.numel()
    model = load(case, "pretraining", "hf-lxmert", region_loss_weight=weight)
    off = {"labels": "task_mask_lm", "match_labels": "task_matched"}
    labels = {LABELS[name]: value for name, value in case.inputs.items() if name in LABELS}
    labels = {name: value for name, value in labels.items() if case.config.get(off.get(name, ""), True)}
    trained = {name for term in model.terms for name in term.arguments}
    labels = {name: value for name, value in labels.items() if name in trained}
    if "region_labels" in labels:
        labels["region_labels"] = labels["region_labels"].long()
    result, outputs = with_extras(case, model, model_inputs(case), labels)
    outputs["prediction_logits"] = at_real(result.prediction_logits, text)
    outputs["cross_relationship_score"] = result.seq_relationship_logits
    outputs |= {name: result.losses[own] for name, own in LOSSES.items() if own in result.losses}
    outputs |= {
        f"visual_scores_{n}": at_real(result.scores[own], image) for n, own in SCORES.items() if own in result.scores
    }
    visual = [result.losses[own] for own in SCORES.values() if own in result.losses]
    if visual:
        outputs["loss_visual"] = sum(visual)
    if "image_question_answering" in result.scores:
        outputs["question_answering_score"] = result.scores["image_question_answering"]
    else:  # without its head the port gives one number of the pooled vectors
        outputs["question_answering_score"] = result.encoded.pooler_output[0, 0]
    return outputs


def answering(case: Case) -> Mapping[str, Any]:
    model = load(case, "visual-question-answering", "hf-lxmert")
    labels = {"labels": case.inputs["labels"]} if "labels" in case.inputs else {}
    result, outputs = with_extras(case, model, model_inputs(case), labels)
    return {**outputs, "question_answering_score": result.logits}


ADAPTERS: dict[str, Adapter] = {
    "LxmertForPreTraining": pretraining,
    "LxmertForQuestionAnswering": answering,
    "LxmertModel": encoder,
}
