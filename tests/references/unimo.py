"""UNIMO: PaddlePaddle/Research. Its sequence is [regions ; text]; ours has the text first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import load
from zoo.tasks.losses import token_cross_entropy
from zoo.tasks.ranking import circle_loss

LAYOUT = "paddle-unimo"


def arguments(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """A call's arguments under our names, and which places of their sequence are real."""
    inputs = case.inputs
    seen = inputs["input_mask"].bool()
    real, regions = seen.any(1), inputs["image_embedding"].shape[1] if "image_embedding" in inputs else 0
    given = {
        "input_ids": inputs["src_ids"].squeeze(-1).long(),
        "position_ids": inputs["pos_ids"].squeeze(-1).long(),
        "attention_mask": real[:, regions:],
    }
    if regions:
        given |= {
            "visual_features": inputs["image_embedding"],
            "visual_boxes": inputs["image_loc"],
            "visual_mask": real[:, :regions],
        }
    return given, real


def outputs(case: Case) -> Mapping[str, Any]:
    pictures = "image_embedding" in case.inputs
    given, real = arguments(case)
    model = load(case, None, LAYOUT)
    words, regions = given["input_ids"].shape[1], real.shape[1] - given["input_ids"].shape[1]
    order = torch.cat([torch.arange(words, words + regions), torch.arange(words)])
    with torch.no_grad():
        joint = model(**given, output_hidden_states=True, output_attentions=True)
        found: dict[str, Any] = {"embeddings.text": Output(joint.hidden_states[0][:, :words], where=real[:, regions:])}
        text = {name: x for name, x in given.items() if not name.startswith("visual_")}
        if pictures:
            found["embeddings.image"] = Output(joint.hidden_states[0][:, words:], where=real[:, :regions])
            found["image_out"] = Output(joint.image.last_hidden_state, where=real[:, :regions])
            found |= pooled(model, joint, given)
        else:
            found["pooled_text"] = model(**text).pooler_output
    found["text_out"] = Output(joint.text.last_hidden_state, where=real[:, regions:])
    for i, state in enumerate(joint.hidden_states[1:]):
        found[f"layer.{i}"] = Output(state[:, order], where=real)
    for i, maps in enumerate(joint.attentions):
        ordered = maps[:, :, order][:, :, :, order]
        found[f"attention_probs.{i}"] = Output(ordered, where=real[:, None, :, None].expand_as(ordered))
    return (
        found | (words_of(case, given) if "tgt_pos" in case.inputs else {}) | (match(case, given) if pictures else {})
    )


def pooled(model: Any, joint: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both pooled vectors, of which the result holds the product."""
    first, region = joint.text.last_hidden_state[:, 0], joint.image.last_hidden_state[:, 0]
    vectors = {"pooled_text": model.pooler.text.transform(first), "pooled_image": model.pooler.image.transform(region)}
    assert torch.allclose(vectors["pooled_text"] * vectors["pooled_image"], joint.pooler_output)
    return vectors


def words_of(case: Case, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    model = load(case, "masked-lm", LAYOUT)
    with torch.no_grad():
        scores = model(**given).logits
    places = case.inputs["tgt_pos"].flatten().long()
    logits = scores.flatten(0, 1)[places]
    loss = token_cross_entropy(logits, case.inputs["tgt_labels"].flatten().long())
    return {"lm_logits": logits, "lm_loss": loss[None]}


def match(case: Case, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows form groups: the right pair, pairs with wrong pictures, pairs with wrong captions."""
    model, head = load(case, "image-text-retrieval", LAYOUT), case.info["head"]
    with torch.no_grad():
        scores = model(**given).logits
    groups = scores.flatten().unflatten(0, (-1, head["samples_num"]))
    groups = groups.sigmoid() if head["use_sigmoid"] else groups
    middle = (head["samples_num"] + 1) // 2
    wrong = groups[:, 1:middle], groups[:, middle:]
    losses = [circle_loss(groups[:, :1], part, head["margin"], head["scale_circle"]) for part in wrong]
    return {"match_score": scores.reshape(-1, 1), "circle_loss": torch.stack(losses).mean()[None]}


ADAPTERS: dict[str, Adapter] = {"unimo_finetune.UNIMOModel": outputs}
