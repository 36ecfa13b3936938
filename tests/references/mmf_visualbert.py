"""VisualBERT in facebookresearch/mmf: its own names for inputs, one form of task head, heads read
by ``pooler_strategy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.text_models import at_real, load
from tests.references.visualbert import embedding_of, joint_real, states
from zoo.models.base.model import before_last

LAYOUT = "mmf-visualbert"


def counted(features: Tensor, counts: Tensor | None) -> Tensor:
    """(batch, regions) bool from the number of stored regions."""
    if counts is None:
        return torch.ones(features.shape[:2], dtype=torch.bool)
    return torch.arange(features.shape[1])[None] < counts.reshape(-1, 1)


def text_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["input_mask"],
        "token_type_ids": inputs["segment_ids"],
    }


def picture(inputs: Mapping[str, Tensor], prefix: str = "") -> tuple[Tensor, Tensor]:
    """Features and mask of a picture; of two of NLVR2 the one with this prefix."""
    features = inputs[f"{prefix}image_feature_0"]
    counts = inputs.get(f"{prefix}max_features", inputs.get(f"{prefix}image_info_0.max_features"))
    return features, counted(features, counts)


def second_prefix(inputs: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """How the two pictures of NLVR2 are named, where there are two."""
    found = [
        name.removesuffix("image_feature_0")
        for name in inputs
        if name.endswith("image_feature_0") and name != "image_feature_0"
    ]
    return (sorted(found)[0], sorted(found)[1]) if len(found) == 2 else None


def mmf(case: Case) -> Mapping[str, Any]:
    inputs, config = case.inputs, case.config
    given = text_inputs(inputs)
    pair = second_prefix(inputs)
    kind = config["training_head_type"]
    if pair is None:
        given["visual_features"], given["visual_mask"] = picture(inputs)
    else:  # the reference stacks all first pictures on all second ones
        (first, first_mask), (second, second_mask) = (picture(inputs, prefix) for prefix in pair)
        given = {name: torch.cat([value, value]) for name, value in given.items()}
        given["visual_features"], given["visual_mask"] = (
            torch.cat([first, second]),
            torch.cat([first_mask, second_mask]),
        )
    if "image_text_alignment" in inputs:
        given["image_text_alignment"] = inputs["image_text_alignment"]
    real = joint_real(given)
    assert real is not None
    text_real = given["attention_mask"].bool()
    bare = load(case, None, LAYOUT)
    with torch.no_grad():
        encoded = bare(**given, output_hidden_states=True, output_attentions=True)
    outputs = states(encoded, real, text_real)
    outputs["embedding_output"] = at_real(embedding_of(bare, given), real)
    outputs["attention_mask"] = real
    if kind == "pretraining":
        model = load(case, "pretraining", LAYOUT)
        labels = inputs.get("lm_label_ids")
        with torch.no_grad():
            result = model(**given, labels=None if labels is None else torch.where(labels < 0, -100, labels.long()))
        outputs["prediction_scores"] = at_real(result.prediction_logits, real)
        outputs["seq_relationship_score"] = result.seq_relationship_logits
        if result.loss is not None:
            outputs["masked_lm_loss"] = result.losses["masked_lm"].reshape(1)
        return outputs
    by_word = config.get("pooler_strategy") == "vqa"
    task = (
        "visual-reasoning"
        if pair or kind == "nlvr2"
        else "visual-question-answering"
        if by_word
        else "sequence-classification"
    )
    model = load(case, task, LAYOUT)
    with torch.no_grad():
        if task == "visual-reasoning":
            result = model(**{name: paired(value) for name, value in given.items()})
            outputs["classifier_input"] = torch.cat(encoded.pooler_output.chunk(2), 1)
        else:
            result = model(**given)
            word = before_last(encoded.last_hidden_state[:, : text_real.shape[1]], given["attention_mask"].bool())
            outputs["classifier_input"] = word.unsqueeze(1) if by_word else encoded.pooler_output
    outputs["scores"] = result.logits
    return outputs


def paired(value: Tensor) -> Tensor:
    """(2 · batch, ...) with all first pictures before all second ones -> (batch, 2, ...)."""
    return torch.stack(value.chunk(2), 1)


ADAPTERS: dict[str, Adapter] = {"mmf.models.visual_bert": mmf}
