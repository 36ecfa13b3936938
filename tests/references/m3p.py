"""M3P: microsoft/M3P. Its sequences are (length, batch), regions first; ours are (batch, length), the text first."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import zoo
from tests.references.case import Adapter, Case
from tests.references.text_models import load, real_of_lengths
from zoo.data.code_switching import CodeSwitcher
from zoo.data.vision_masking import mask_known_regions
from zoo.tasks.losses import token_cross_entropy


def rows(case: Case, name: str) -> Tensor | None:
    """An input with the batch first."""
    value = case.inputs.get(name)
    return None if value is None else value.transpose(0, 1)


def picture(case: Case) -> dict[str, Tensor | None]:
    """Regions under our names; class distributions have the batch first there too."""
    given = {"visual_features": rows(case, "x_img"), "visual_boxes": rows(case, "image_loc")}
    return given | {"visual_distributions": case.inputs.get("image_dist")}


def time_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def regions_of(model: Any, case: Case) -> tuple[Tensor, Tensor]:
    """Embedded regions as the reference has them, padding too, and which are real: a matrix says whom each sees."""
    given = picture(case)
    count = given["visual_features"].shape[1]
    real = real_of_lengths(case.inputs["lengths_img"], count)
    matrix = real[:, None, :].expand(-1, count, -1)
    x = model.regions(given["visual_features"], given["visual_boxes"], given["visual_distributions"], matrix)
    return x, real


def joint(case: Case) -> Mapping[str, Any]:
    """Its mask is a prefix of regions and words together, so that padded regions are seen and the text is cut."""
    task = load(case, "pretraining", "m3p")
    model, inputs = task.model, case.inputs
    ids = rows(case, "x")
    assert ids is not None
    with torch.no_grad():
        regions, _ = regions_of(model, case)
        count = regions.shape[1]
        total = count + ids.shape[1]
        real = real_of_lengths(inputs["lengths"] + inputs["lengths_img"], total)
        places = count + torch.arange(ids.shape[1])[None]
        text = model.embeddings.placed(model.embeddings.tokens(ids, None), places)
        seen = (real[:, count:], real[:, :count], None, None)
        encoded = model.encode(text, model.embeddings.placed(regions, None), seen, (False, False))
        encoded = model.pooled(encoded, True, seen)
        words, states = encoded.text.last_hidden_state, encoded.image.last_hidden_state
        heads = task.heads
        chosen = inputs["pred_mask"].bool()
        scores = heads["masked_lm"](words.transpose(0, 1)[chosen], model.embeddings.token.weight)
        objects = heads["region_class"](states).flatten(0, 1)
        outputs = {
            "hidden": time_first(torch.cat([states, words], 1)),
            "relation_scores": heads["image_text_matching"](encoded.pooler_output),
            "clcm_scores": heads["translation_matching"](encoded.first_state),
            "mlm_scores": scores,
            "mlm_loss": token_cross_entropy(scores, inputs["y"]),
            "obj_scores": objects,
            "mrfr": heads["region_feature"](states),
        }
        if "obj_labels" in inputs:
            labels = inputs["obj_labels"]
            outputs["obj_loss"] = token_cross_entropy(objects, labels.masked_fill(labels < 0, -100))
    return outputs


def cross(case: Case) -> Mapping[str, Any]:
    """Texts alone, pictures alone, and captions that look at the pictures' states."""
    task = load(case, "pretraining", "m3p")
    model, inputs = task.model, case.inputs
    ids = rows(case, "x")
    assert ids is not None
    real = real_of_lengths(inputs["lengths"], ids.shape[1])
    given = picture(case)
    there = real_of_lengths(inputs["lengths_img"], inputs["x_img"].shape[0])
    languages = {"language_ids": rows(case, "langs")} if "langs" in inputs else {}
    shown = {"language_ids": rows(case, "langs_img")} if "langs_img" in inputs else {}
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        outputs["text"] = time_first(model(ids, real, **languages).last_hidden_state)
        image = model(**given, visual_mask=there, **shown).last_hidden_state
        outputs["image"] = time_first(image)
        # its refiner runs over padding too, which is zero here
        embedded = model.image_embeddings(given["visual_features"], given["visual_boxes"])
        keys = there[:, None, :].expand(-1, there.shape[1], -1)
        outputs["image_embed_refined"] = model.refiner(embedded * there.unsqueeze(2), keys, None)
        if "x2" in inputs:
            target = rows(case, "x2")
            assert target is not None
            written = real_of_lengths(inputs["lengths2"], target.shape[1])
            more = {"language_ids": rows(case, "langs2")} if "langs2" in inputs else {}
            states = model.decode(target, image, there, written, **more).last_hidden_state.transpose(0, 1)
            scores = task.heads["masked_lm"](states[inputs["pred_mask2"].bool()], model.embeddings.token.weight)
            outputs |= {"decoder": states, "caption_scores": scores}
            outputs["caption_loss"] = token_cross_entropy(scores, inputs["y2"])
    return outputs


def code_switch(case: Case) -> Any:
    """Sentence k is drawn from a seed of its own."""
    given = case.given
    dictionaries = given["dictionary"]
    words: dict[str, Any] = {}
    for dictionary in dictionaries.values():
        words |= dictionary
    switcher = CodeSwitcher(
        dictionary=words, sentence_probability=given["sent_ratio"], word_probability=given["word_ratio"]
    )
    return {"items": [switcher(text, random.Random(given["seed"] + k)) for k, text in enumerate(given["sentences"])]}


def region_inputs(case: Case) -> Mapping[str, Any]:
    """Boxes in five numbers, and masked regions."""
    given = case.given
    features, boxes = torch.tensor(given["features"]), torch.tensor(given["boxes"])
    regions = zoo.Regions(features, boxes, image_size=(given["width"], given["height"]))
    masked = mask_known_regions(F.normalize(features, dim=-1), given["classes"], random.Random(given["seed"]))
    return {"image_loc": regions.unit(), "masked_features": masked.features, "labels": masked.labels}


ADAPTERS: dict[str, Adapter] = {
    "TransformerModel.jointfwd": joint,
    "TransformerModel.crossfwd": cross,
    "Clager.clag": code_switch,
    "norm_boxes": region_inputs,
}
