"""ViLBERT in facebookresearch/mmf: region masks from counts, one form of task head, an untied word
decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.mmf_visualbert import counted, second_prefix, text_inputs
from tests.references.text_models import load
from tests.references.vilbert import TARGETS, drawn, map_at, state_at

LAYOUT = "mmf-vilbert"


def boxes_of(inputs: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    for name in ("bbox", "image_info_0.bbox", "image_location"):
        if f"{prefix}{name}" in inputs:
            return inputs[f"{prefix}{name}"]
    raise KeyError(f"no boxes among {sorted(inputs)}")


def one_picture(inputs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    features = inputs[f"{prefix}image_feature_0"]
    counts = inputs.get(f"{prefix}max_features", inputs.get(f"{prefix}image_info_0.max_features"))
    return {
        "visual_features": features,
        "visual_boxes": boxes_of(inputs, prefix),
        "visual_mask": counted(features, counts),
    }


def model_inputs(case: Case) -> dict[str, Tensor]:
    """All first pictures before all second ones where there are two."""
    given, pair = text_inputs(case.inputs), second_prefix(case.inputs)
    if pair is None:
        return given | one_picture(case.inputs)
    given = {name: torch.cat([value, value]) for name, value in given.items()}
    first, second = (one_picture(case.inputs, prefix) for prefix in pair)
    return given | {name: torch.cat([first[name], second[name]]) for name in first}


def encoded_outputs(model: Any, given: Mapping[str, Tensor]) -> dict[str, Any]:
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, output_attentions=True)
    text, image = given["attention_mask"].bool(), given["visual_mask"].bool()
    outputs: dict[str, Any] = {
        "text_embedding_output": state_at(result.text.hidden_states[0], text),
        "image_embedding_output": state_at(result.image.hidden_states[0], image),
        "sequence_output_t": state_at(result.text.last_hidden_state, text),
        "sequence_output_v": state_at(result.image.last_hidden_state, image),
        "pooled_output_t": result.text.pooler_output,
        "pooled_output_v": result.image.pooler_output,
    }
    ran = {"text": 0, "image": 0}
    states = {"text": result.text.hidden_states, "image": result.image.hidden_states}
    maps = {"text": result.text.attentions, "image": result.image.attentions}
    real = {"text": text, "image": image}
    for step in model.encoder.steps:
        for name in step.writes:
            ran[name] += 1
        if step.part == "both":
            for name in ("text", "image"):
                outputs[f"c_layer.{step.index}.{name}"] = state_at(states[name][ran[name]], real[name])
            to_image, to_text = result.cross_attentions[step.index]
            outputs[f"c_layer.{step.index}.attn_text_to_image"] = map_at(to_image, text)
            outputs[f"c_layer.{step.index}.attn_image_to_text"] = map_at(to_text, image)
        else:
            name = step.part
            layer = "layer" if name == "text" else "v_layer"
            outputs[f"{layer}.{step.index}"] = state_at(states[name][ran[name]], real[name])
            outputs[f"{layer}.{step.index}.attn"] = map_at(maps[name][step.index], real[name])
    return outputs


def mmf(case: Case) -> Mapping[str, Any]:
    inputs, config = case.inputs, case.config
    given = model_inputs(case)
    outputs = encoded_outputs(load(case, None, LAYOUT), given)
    text, image = given["attention_mask"].bool(), given["visual_mask"].bool()
    if config["training_head_type"] == "pretraining":
        target = TARGETS[config.get("visual_target", 0)]
        model = load(case, "pretraining", LAYOUT, region_target=target, num_negatives=config.get("num_negative", 128))
        labels: dict[str, Tensor] = {}
        if "lm_label_ids" in inputs:
            labels["labels"] = torch.where(inputs["lm_label_ids"] < 0, -100, inputs["lm_label_ids"].long())
        if "image_labels" in inputs:
            labels["region_labels"] = inputs["image_labels"]
            labels["region_targets"] = inputs.get("cls_prob", inputs.get("image_target"))  # type: ignore[assignment]
        if "draw_row_across" in inputs:
            labels["negatives"] = drawn(inputs)
        with torch.no_grad():
            result = model(**given, **labels)
        outputs["prediction_scores_t"] = state_at(result.prediction_logits, text)
        outputs["prediction_scores_v"] = state_at(result.region_logits, image)
        outputs["seq_relationship_score"] = result.seq_relationship_logits
        for theirs, ours in (("masked_lm_loss", "masked_lm"), ("masked_img_loss", "masked_region")):
            if ours in result.losses:
                outputs[theirs] = result.losses[ours].reshape(1)
        return outputs
    if second_prefix(inputs) or config["training_head_type"] == "nlvr2":
        model = load(case, "visual-reasoning", LAYOUT)
        with torch.no_grad():  # the reference joins neighboring rows, which belong together only in a batch of one
            outputs["scores"] = model(**{name: value.unflatten(0, (-1, 2)) for name, value in given.items()}).logits
        return outputs
    model = load(case, "sequence-classification", LAYOUT)
    with torch.no_grad():
        outputs["scores"] = model(**given).logits
    return outputs


ADAPTERS: dict[str, Adapter] = {"mmf.models.vilbert": mmf}
