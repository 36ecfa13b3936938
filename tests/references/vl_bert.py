"""VL-BERT: jackroos/VL-BERT. Its code packs each sample: real words, real regions and the end stand in a row, padding
behind them. Ours has padding where the user has it; the adapter puts our states into the reference's places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load
from zoo.data.regions.regions import Regions

LAYOUT = "vl-bert"
COORDINATES = 2048


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """NETWORK and its VLBERT as one table, as the layout reads them."""
    network = dict(config.get("NETWORK", {}))
    inner = network.pop("VLBERT", {}) if network else config
    return {**network, **inner, **config.get("DATASET", {})}


def prepared(case: Case) -> Case:
    """The case with a flat config; where it holds the transformer alone, with zeros for what makes vectors of
    regions, which it does not read.
    """
    config, weights = flat(case.config), dict(case.weights)
    if "image_feature_extractor.obj_downsample.1.weight" not in weights:
        size, hidden = config["visual_size"], config["hidden_size"]
        weights["image_feature_extractor.obj_downsample.1.weight"] = torch.zeros(size, COORDINATES + 1)
        weights["image_feature_extractor.obj_downsample.1.bias"] = torch.zeros(size)
        weights["object_linguistic_embeddings.weight"] = torch.zeros(1, hidden)
    return replace(case, info={**case.info, "config": config}, weights=weights)


def packed_places(words: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """For each place of the packed sequence that of ours (0 at padding), and which are real."""
    joint = torch.cat([words, regions, words.new_ones(len(words), 1)], 1)
    longest = int(joint.sum(1).max())
    index, real = torch.zeros(len(joint), longest, dtype=torch.int64), torch.zeros(len(joint), longest).bool()
    for row, there in enumerate(joint):
        found = there.nonzero().flatten()
        index[row, : len(found)], real[row, : len(found)] = found, True
    return index, real


def encoder(case: Case) -> Mapping[str, Any]:
    case = prepared(case)
    model = load(case, None, LAYOUT)
    inputs = case.inputs
    words, regions = inputs["text_mask"].bool(), inputs["object_mask"].bool()
    size = model.config.region_size
    elements = inputs["object_vl_embeddings"]
    counts = words.sum(1)
    with torch.no_grad():
        tokens = model.embeddings.tokens(inputs["text_input_ids"].long(), None)
        text = model.words(tokens, inputs["text_token_type_ids"].long(), None, inputs["text_visual_embeddings"])
        objects = model.objects(elements[..., :size], elements[..., size:], counts)
        result = model.encode(text, objects, (words, regions, None, None), (True, True), behind=model.closing(counts))
    index, real = packed_places(words, regions)

    def states(joint: Tensor) -> Output:
        return Output(joint.gather(1, index.unsqueeze(2).expand(-1, -1, joint.shape[2])), where=real)

    first, *layers = result.hidden_states
    last, length = states(layers[-1]), words.shape[1]
    outputs: dict[str, Any] = {
        "embedding_output": states(first),
        "attention_mask": real,
        "text_positions": real & (index < length),
        "object_positions": real & (index >= length) & (index < length + regions.shape[1]),
        "text_out": Output(last.value[:, :length], where=real[:, :length]),
        "object_out": at_real(result.image.last_hidden_state, regions),
    }
    if result.pooler_output is not None:
        outputs["pooled_output"] = result.pooler_output
    for i, state in enumerate(layers):
        outputs[f"layer_{i}"] = states(state)
    for i, maps in enumerate(result.attentions):
        heads, place = maps.shape[1], maps.shape[2]
        rows = maps.gather(2, index[:, None, :, None].expand(-1, heads, -1, place))
        found = rows.gather(3, index[:, None, None, :].expand(-1, heads, rows.shape[2], -1))
        found = found.masked_fill(~real[:, None, None, :], 0)
        outputs[f"attention_{i}"] = Output(found, where=real[:, None, :, None].expand_as(found))
    return outputs


def regions_of(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Boxes in pixels and features as our model reads them."""
    boxes, sizes = inputs["boxes"], inputs["im_info"][:, :2]
    real = boxes[..., 0] > -1.5
    corners = torch.where(real.unsqueeze(2), boxes[..., :4], 0)
    code = Regions(boxes[..., 4:], corners, sizes, real).vl_bert()
    return {"visual_features": boxes[..., 4:], "visual_boxes": code, "visual_mask": real}


def pretraining(case: Case) -> Mapping[str, Any]:
    case = prepared(case)
    averages = {"loss_average": "samples" if case.config.get("MLM_LOSS_NORM_IN_BATCH_FIRST") else "labels"}
    regional = "samples" if case.config.get("MVRC_LOSS_NORM_IN_BATCH_FIRST") else "labels"
    model = load(case, "pretraining", LAYOUT, **averages)
    inputs = {**case.inputs, "boxes": case.inputs["boxes"].clone().requires_grad_()}
    text, aux = inputs["text"].long(), inputs["aux_text"].long()
    targets = inputs["mvrc_labels"]
    counted = (targets.sum(2) - 1).abs() < 0.1
    labels, aux_labels = (torch.where(x < 0, -100, x.long()) for x in (inputs["mlm_labels"], inputs["aux_mlm_labels"]))
    result = model(
        text,
        text > 0,
        **regions_of(inputs),
        visual_masked=inputs["mvrc_ops"] == 1,
        labels=labels,
        region_labels=counted.long(),
        region_targets=targets,
    )
    losses = dict(result.losses)
    if regional != averages["loss_average"]:
        model.options["loss_average"] = regional
        losses["masked_region"] = model(
            text,
            text > 0,
            **regions_of(inputs),
            visual_masked=inputs["mvrc_ops"] == 1,
            region_labels=counted.long(),
            region_targets=targets,
        ).losses["masked_region"]
        model.options |= averages
    alone = model(aux, aux > 0, labels=aux_labels)
    total = losses["masked_lm"] + losses["masked_region"] + alone.losses["masked_lm"]
    (gradient,) = torch.autograd.grad(total, inputs["boxes"])
    longest, real = max(text.shape[1], aux.shape[1]), inputs["boxes"][..., 0] > -1.5
    return {
        "mlm_logits_wvc": words_of(result.prediction_logits, text, longest),
        "mlm_logits_aux": words_of(alone.prediction_logits, aux, longest),
        "mvrc_logits": at_real(result.region_logits, real),
        "mlm_loss_wvc": losses["masked_lm"],
        "mlm_loss_aux": alone.losses["masked_lm"],
        "mvrc_loss": losses["masked_region"],
        "loss": total,
        "grad_boxes": Output(gradient, where=real),
    }


def words_of(scores: Tensor, ids: Tensor, longest: int) -> Output:
    """Scores of words, of as many places as the reference has."""
    space = longest - ids.shape[1]
    values = torch.nn.functional.pad(scores[:, : ids.shape[1]], (0, 0, 0, space))
    return Output(values, where=torch.nn.functional.pad(ids > 0, (0, space), value=False))


def answers(case: Case) -> Mapping[str, Any]:
    """[CLS] question [SEP] [MASK] [SEP], of questions without special tokens."""
    named = case.config["token_ids"]
    case = prepared(case)
    model = load(case, "visual-question-answering", LAYOUT)
    rows, segments = [], []
    for question in case.inputs["question"].long():
        words = question[question > 0].tolist()
        rows.append([named["[CLS]"], *words, named["[SEP]"], named["[MASK]"], named["[SEP]"]])
        segments.append([0] * (len(words) + 2) + [1, 1])
    longest = max(map(len, rows))
    ids, types = (torch.tensor([x + [0] * (longest - len(x)) for x in table]) for table in (rows, segments))
    with torch.no_grad():
        result = model(ids, ids > 0, types, **regions_of(case.inputs), labels=case.inputs.get("label"))
    return {"label_logits": result.logits} | ({} if result.loss is None else {"loss": result.loss})


def coordinates(case: Case) -> Mapping[str, Any]:
    boxes = case.inputs["boxes"]
    dim = case.config["dim"]
    code = Regions(boxes.new_zeros(len(boxes), 1, 1), boxes[:, None, :4], boxes[:, 4:]).vl_bert(2 * dim)
    return {"embedding": code.view(len(boxes), 4, 2 * dim)}


ADAPTERS: dict[str, Adapter] = {
    "visual_linguistic_bert.VisualLinguisticBert": encoder,
    "ResNetVLBERTForPretraining": pretraining,
    "vqa.modules.ResNetVLBERT": answers,
    "coordinate_embeddings": coordinates,
}
