"""ViLBERT: facebookresearch/vilbert-multi-task and jiasenlu/vilbert_beta; 12-in-1 shares the
adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load
from zoo.data.regions.regions import box_overlap
from zoo.data.vision_masking import mask_each_word, mask_regions, whole_image_feature
from zoo.layers import interleaved
from zoo.tasks.losses import negatives_from

MULTI_TASK, BETA = "vilbert-multi-task", "vilbert-beta"
TARGETS = {0: "classes", 1: "features", 2: "contrastive"}
RENAMED = {
    "input_ids": "input_ids",
    "input_txt": "input_ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "image_feat": "visual_features",
    "input_imgs": "visual_features",
    "image_loc": "visual_boxes",
    "image_attention_mask": "visual_mask",
    "task_ids": "task_type_ids",
}


def layout_of(case: Case) -> str:
    return BETA if "beta" in case.info["source"]["repository"] else MULTI_TASK


def model_inputs(case: Case) -> dict[str, Tensor]:
    return {RENAMED[name]: value for name, value in case.inputs.items() if name in RENAMED}


def reals(case: Case, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(batch, length) and (batch, regions) bool of both streams as they come out: with the task
    token, each text with each picture.
    """
    ids, features = given["input_ids"], given["visual_features"]
    text = given["attention_mask"].bool() if "attention_mask" in given else torch.ones_like(ids, dtype=torch.bool)
    image = given["visual_mask"].bool() if "visual_mask" in given else torch.ones(features.shape[:2], dtype=torch.bool)
    if case.config.get("task_specific_tokens"):
        text = torch.cat([torch.ones(len(text), 1, dtype=torch.bool), text], 1)
    if case.config.get("in_batch_pairs"):
        return text.repeat_interleave(len(image), 0), image.repeat(len(text), 1)
    return text.expand(len(image), -1), image


def options_of(case: Case) -> dict[str, Any]:
    return {"all_pairs": True} if case.config.get("in_batch_pairs") else {}


def rows_of(real: Tensor, count: int) -> Tensor:
    """The rows that a stream had before the streams met: each text once where all its copies stand
    together, else the first pictures.
    """
    together = len(real) // count
    apart = torch.equal(real, real[::together].repeat_interleave(together, 0))
    return real[::together] if apart else real[:count]


def map_at(maps: Tensor, real: Tensor) -> Output:
    return Output(maps, where=rows_of(real, len(maps))[:, None, :, None].expand_as(maps))


def state_at(state: Tensor, real: Tensor) -> Any:
    return at_real(state, rows_of(real, len(state)))


def encoder(case: Case) -> Mapping[str, Any]:
    model = load(case, None, layout_of(case))
    given = model_inputs(case)
    text, image = reals(case, given)
    with torch.no_grad():
        result = model(**given, **options_of(case), output_hidden_states=True, output_attentions=True)
        outputs: dict[str, Any] = {
            "last_hidden_text": state_at(result.text.last_hidden_state, text),
            "last_hidden_image": state_at(result.image.last_hidden_state, image),
            "pooled_text": result.text.pooler_output,
            "pooled_image": result.image.pooler_output,
            "embedding_text": state_at(result.text.hidden_states[0], text),
            "embedding_image": state_at(result.image.hidden_states[0], image),
        }
        ran = {"text": 0, "image": 0}
        pooler = {"text": model.text_pooler, "image": model.image_pooler}
        states = {"text": result.text.hidden_states, "image": result.image.hidden_states}
        c = model.config
        streams = {"text": (c.num_layers, c.text_connections), "image": (c.image_num_layers, c.image_connections)}
        for step in interleaved(streams):
            if (
                step.part != "both" or c.co_attention
            ):  # the reference lists states at its connections, whether they run or not
                for name in step.writes:
                    ran[name] += 1
            if step.part == "both":
                for name, real in (("text", text), ("image", image)):
                    state = states[name][ran[name]]
                    outputs[f"after_connection_{step.index}_{name}"] = state_at(state, real)
                    outputs[f"all_layers_mode_pooled_{name}"] = pooler[name].transform(state[:, 0])
    for i, maps in enumerate(result.text.attentions):
        outputs[f"attn_text_{i}"] = map_at(maps, text)
    for i, maps in enumerate(result.image.attentions):
        outputs[f"attn_image_{i}"] = map_at(maps, image)
    for i, (to_image, to_text) in enumerate(result.cross_attentions):
        outputs[f"attn_co_{i}_text_to_image"] = map_at(to_image, text)
        outputs[f"attn_co_{i}_image_to_text"] = map_at(to_text, image)
    return outputs


def target_of(case: Case) -> str:
    if case.config.get("predict_feature"):
        return "features"
    return TARGETS[case.config.get("visual_target", 0)]


def drawn(inputs: Mapping[str, Tensor]) -> Tensor:
    """The wrong regions that the reference drew."""
    return negatives_from(*(inputs[f"draw_{name}"].long() for name in ("row_across", "col_across", "col_inside")))


def pretraining(case: Case) -> Mapping[str, Any]:
    model = load(
        case,
        "pretraining",
        layout_of(case),
        region_target=target_of(case),
        num_negatives=case.config.get("num_negative", 128),
    )
    inputs, given = case.inputs, model_inputs(case)
    text, image = reals(case, given)
    given["visual_features"] = given["visual_features"].clone().requires_grad_()
    labels: dict[str, Tensor] = {}
    if "masked_lm_labels" in inputs:
        labels["labels"] = torch.where(inputs["masked_lm_labels"] < 0, -100, inputs["masked_lm_labels"].long())
        labels["match_labels"] = inputs["next_sentence_label"].long()
        labels["region_labels"], labels["region_targets"] = inputs["image_label"], inputs["image_target"]
    if "draw_row_across" in inputs:
        labels["negatives"] = drawn(inputs)
    result = model(**given, **labels, **options_of(case))
    outputs: dict[str, Any] = {
        "prediction_scores_t": state_at(result.prediction_logits, text),
        "prediction_scores_v": state_at(result.region_logits, image),
        "seq_relationship_score": result.seq_relationship_logits,
    }
    if result.loss is not None:
        names = {
            "loss_masked_lm": "masked_lm",
            "loss_masked_img": "masked_region",
            "loss_next_sentence": "image_text_matching",
        }
        outputs |= {theirs: result.losses[ours].reshape(1) for theirs, ours in names.items()}
        (outputs["grad_image_feat"],) = torch.autograd.grad(result.loss, given["visual_features"])
    return outputs


def task_outputs(result: Any, text: Tensor, image: Tensor) -> dict[str, Any]:
    """All heads' scores under the reference's names; its binary head stays the matching head where
    rows are odd.
    """
    scores = result.scores
    outputs = {
        "vil_prediction": scores["visual_question_answering"],
        "vil_prediction_gqa": scores.get("gqa"),
        "vil_logit": scores["image_text_retrieval"].unsqueeze(1),
        "vil_binary_prediction": scores.get("visual_reasoning", result.seq_relationship_logits),
        "vil_tri_prediction": scores.get("visual_entailment"),
        "vision_prediction": state_at(result.region_logits, image),
        "vision_logit": state_at(scores["grounding"].unsqueeze(2), image),
        "linguisic_prediction": state_at(result.prediction_logits, text),
        "linguisic_logit": state_at(scores["token_score"].unsqueeze(2), text),
    }
    return {name: value for name, value in outputs.items() if value is not None}


def task_heads(case: Case) -> Mapping[str, Any]:
    model = load(case, "multi-task", layout_of(case))
    given = model_inputs(case)
    with torch.no_grad():
        result = model(**given, **options_of(case))
    return task_outputs(result, *reals(case, given))


def masking(case: Case) -> Mapping[str, Any]:
    given, config = case.given, case.config
    boxes, features = (
        torch.tensor(given["boxes"], dtype=torch.float64),
        torch.tensor(given["features"], dtype=torch.float64),
    )
    regions = mask_regions(
        features,
        boxes,
        given["region_draws"],
        probability=config["region_probability"],
        zero_share=config["zero_share"],
        overlap=config["iou_threshold"],
    )
    stream = iter(given["random_word_ids"])
    tokens, labels = mask_each_word(
        given["tokens"],
        given["word_draws"],
        lambda: next(stream),
        config["mask_token_id"],
        probability=config["word_probability"],
        ignore=-1,
    )
    return {
        "iou": box_overlap(boxes, boxes),
        "masked_features": regions.features,
        "region_label": regions.labels,
        "masked_label": regions.marked.long(),
        "global_feature": whole_image_feature(regions.features, regions.marked),
        "masked_tokens": tokens,
        "token_label": labels,
    }


ADAPTERS: dict[str, Adapter] = {
    "BertForMultiModalPreTraining": pretraining,
    "VILBertForVLTasks": task_heads,
    "vilbert.BertModel": encoder,
    "concept_cap_dataset": masking,
}
