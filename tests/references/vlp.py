"""VLP: LuoweiZhou/VLP. Its sequence is [CLS] regions [SEP] sentence [SEP]; ours has the words first and the regions
behind them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case, Output
from tests.references.text_models import load
from zoo.data.captions import WRITING, CaptionCollator, hidden_regions
from zoo.data.regions.regions import Regions

LAYOUT = "vlp"


def arguments(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """A call's arguments under our names, and which places of their sequence are real."""
    inputs, regions = case.inputs, case.inputs["vis_feats"].shape[1]
    ids = inputs["input_ids"].long()
    batch, length = ids.shape
    seen = inputs["attention_mask"][:, :length, :length].bool()
    real, words = seen.any(1), without_regions(torch.arange(length), regions)
    given = {
        "input_ids": ids[:, words],
        "attention_mask": real[:, words],
        "visual_features": inputs["vis_feats"],
        "visual_boxes": inputs["vis_pe"],
        "token_type_ids": inputs["token_type_ids"][:, words].long(),
        "visual_token_type_ids": inputs["token_type_ids"][:, 1 : regions + 1].long(),
    }
    if not seen[:, 0].eq(real).all():  # [CLS] does not see the sentence: it is written
        ranks = torch.arange(-1, len(words) - 1).clamp(min=0)
        given["ranks"] = ranks.expand(batch, -1)
    return given, real


def without_regions(x: Tensor, regions: int) -> Tensor:
    return torch.cat([x[:1], x[regions + 1 :]])


def in_their_order(joint: Tensor, words: int, axis: int = 1) -> Tensor:
    """[words ; regions] as [CLS] regions [SEP] ..."""
    count = joint.shape[axis]
    order = torch.cat([torch.arange(1), torch.arange(words, count), torch.arange(1, words)])
    return joint.index_select(axis, order)


def joint_outputs(model: Any, given: Mapping[str, Tensor], encoded: Any, real: Tensor) -> dict[str, Any]:
    """States of the layers, maps, and what stands for a region's word and position."""
    words = given["input_ids"].shape[1]
    v, g = model.image_embeddings(given["visual_features"], given["visual_boxes"])
    outputs: dict[str, Any] = {"vis_embed": v, "vis_pe_embed": g, "pooled": encoded.pooler_output}
    for i, state in enumerate(encoded.hidden_states[1:]):
        outputs[f"layer.{i}"] = Output(in_their_order(state, words), where=real)
    for i, maps in enumerate(encoded.attentions):
        found = in_their_order(in_their_order(maps, words, 2), words, 3)
        outputs[f"attention_probs.{i}"] = Output(found, where=real[:, None, :, None].expand_as(found))
    return outputs


def pretraining(case: Case) -> Mapping[str, Any]:
    if case.config.get("tasks") == "vqa2":
        return answers(case)
    options = {
        "drop_worst": case.config.get("drop_worst_ratio", 0.2),
        "label_smoothing": case.config.get("label_smoothing") or 0.0,
    }
    model = load(case, "masked-lm", LAYOUT, **options)
    given, real = arguments(case)
    regions, words = given["visual_features"].shape[1], given["input_ids"].shape
    places = case.inputs["masked_pos"].long()
    ours = torch.where(places > regions, places - regions, 0)
    weights = case.inputs["masked_weights"].bool()
    labels = torch.full(words, -100)
    for row, (at, ids, counts) in enumerate(zip(ours, case.inputs["masked_lm_labels"].long(), weights, strict=True)):
        labels[row, at[counts]] = ids[counts]
    pooler = load(case, None, LAYOUT)  # which hidden words don't read
    with torch.no_grad():
        result = model(**given, labels=labels, output_hidden_states=True, output_attentions=True)
        scores = result.logits[:, : words[1]].gather(1, ours[:, :, None].expand(-1, -1, result.logits.shape[2]))
        outputs = joint_outputs(model.model, given, result.encoded, real)
        outputs["pooled"] = pooler(**given).pooler_output
    return outputs | {"masked_lm_loss": result.loss, "prediction_scores_masked": scores}


def answers(case: Case) -> Mapping[str, Any]:
    model = load(case, "visual-question-answering", LAYOUT)
    given, real = arguments(case)
    with torch.no_grad():
        result = model(**given, labels=case.inputs["ans_labels"], output_hidden_states=True, output_attentions=True)
        outputs = joint_outputs(model.model, given, result.encoded, real)
    return outputs | {
        "vqa2_pred": result.logits,
        "vqa2_loss": result.loss,
        "answer_index": result.logits[:, 1:].argmax(1) + 1,  # 0 stands for an unknown answer
    }


def decoding(case: Case) -> Mapping[str, Any]:
    """Captions that are written greedily, to the longest: the reference does not stop at [SEP]. Of each word its
    score, not its log-probability.
    """
    scores: list[Tensor] = []

    def keep(ids: Tensor, logits: Tensor) -> Tensor:
        scores.append(logits.amax(1))
        return logits

    config = case.config
    model = load(case, "masked-lm", LAYOUT, mask_token_id=config["mask_word_id"])
    regions, segments = config["len_vis_input"], case.inputs["token_type_ids"].long()
    written = zoo.generate(
        model,
        without_regions(case.inputs["input_ids"].long().T, regions).T,
        token_type_ids=without_regions(segments.T, regions).T[:, :2],
        visual_features=case.inputs["vis_feats"],
        visual_boxes=case.inputs["vis_pe"],
        visual_token_type_ids=segments[:, 1 : regions + 1],
        max_new_tokens=config["max_tgt_length"],
        end_token_id=(),
        processors=(keep,),
    )
    return {"ids": written.sequences, "max_scores": torch.stack(scores, 1)}


def loader(case: Case) -> Mapping[str, Any]:
    """Captions with hidden words in both ways of reading, and what the decoder begins with."""
    given = case.given
    regions, length = given["len_vis_input"], given["max_len"]
    collator = CaptionCollator(
        cls_id=1,
        sep_id=2,
        mask_id=3,
        random_ids=range(5, 60),
        regions=regions,
        probability=given["mask_prob"],
        most=given["max_pred"],
        longest=given["max_len_b"],
    )
    train = {}
    for way in ("s2s", "bi"):
        for name, share in ((way, 0.0), (f"{way}_regionmask", given["vis_mask_prob"])):
            rng, numbers = random.Random(given["seed"]), numpy.random.RandomState(given["seed"])
            rows: dict[str, list[Any]] = {}
            for sentence in given["sentences"]:
                row = example(collator, [int(word[1:]) for word in sentence.split()], way == "s2s", length, rng)
                if share:
                    choose = partial(numbers.choice, replace=False)
                    row["vis_masked_pos"] = [region + 1 for region in hidden_regions(regions, share, choose)]
                for key, value in row.items():
                    rows.setdefault(key, []).append(value)
            train[name] = rows
    written = given["decoder_max_tgt_length"]
    first = collator.beginning(1)
    segments = [int(first["token_type_ids"][0, 0])] * (regions + 2) + [WRITING[1]] * written
    decoder: dict[str, Any] = {
        "input_ids": with_regions(first["input_ids"][0].tolist(), regions, 4),
        "token_type_ids": segments,
        "position_ids": list(range(regions + 2 + written)),
        "attention_mask": seen_by([0] * (regions + 2) + list(range(1, written + 1)), regions + 2 + written),
    }
    for name, picture in given["regions"].items():
        boxes = torch.tensor(picture["bbox"])
        made = Regions(
            torch.zeros(regions, 1),
            boxes[:, :4],
            (boxes[:, [0, 2]].max() + 1, boxes[:, [1, 3]].max() + 1),
            confidence=boxes[:, 5],
            class_probabilities=torch.tensor(picture["cls"]),
        )
        decoder[name] = {"vis_pe": made.vlp()}
    return {"train": train, "decoder": decoder}


def example(collator: CaptionCollator, words: list[int], written: bool, length: int, rng: Any) -> dict[str, Any]:
    """One caption as the reference's loader returns it."""
    ids, segments = collator.framed(words, written)
    masked = collator.hidden(ids, rng)
    whole = with_regions(masked.tokens, collator.regions, 4)
    ranks = [0] * (collator.regions + 2) + list(range(1, len(ids) - 1)) if written else [0] * len(whole)
    space = collator.most - len(masked.positions)
    return {
        "input_ids": whole + [0] * (length - len(whole)),
        "token_type_ids": [segments[0]] * collator.regions + segments + [0] * (length - len(whole)),
        "masked_lm_labels": masked.labels + [0] * space,
        "masked_pos": [place + collator.regions for place in masked.positions] + [0] * space,
        "masked_weights": [1] * len(masked.positions) + [0] * space,
        "attention_mask": seen_by(ranks, length),
    }


def with_regions(ids: list[int], regions: int, stand_in: int) -> list[int]:
    return [*ids[:1], *[stand_in] * regions, *ids[1:]]


def seen_by(ranks: list[int], length: int) -> list[str]:
    """Whom each row sees, as a string; rows of padding see what rank 0 sees."""
    rows = ranks + [0] * (length - len(ranks))
    return ["".join("1" if at < len(ranks) and ranks[at] <= row else "0" for at in range(length)) for row in rows]


ADAPTERS: dict[str, Adapter] = {
    "BertForPreTrainingLossMask": pretraining,
    "BertForSeq2SeqDecoder": decoding,
    "seq2seq_loader.Preprocess4Seq2seq": loader,
}
