"""Oscar and Oscar+: microsoft/Oscar. Its masks run over [padded text ; padded regions], as ours do, in one tensor."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load
from zoo.data.tags import TaggedCaptionCollator
from zoo.tasks.losses import soft_answer_loss


def layout_of(case: Case) -> str:
    return "oscar-vinvl" if case.config.get("use_img_layernorm") else "oscar"


def arguments(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """A call's arguments under our names, and which places of both are real. A matrix says who attends to whom: to
    everything (a mask), or a caption that is written beside tags and regions.
    """
    inputs = case.inputs
    ids = inputs["input_ids"].long()
    length = ids.shape[1]
    given = {"input_ids": ids, "visual_features": inputs["img_feats"]}
    given |= {name: inputs[name].long() for name in ("token_type_ids", "position_ids") if name in inputs}
    seen = inputs["attention_mask"].bool()
    real = seen if seen.dim() == 2 else seen.any(1)  # someone attends to it
    if seen.dim() == 3 and not seen.eq(real[:, None, :] & real[:, :, None]).all():
        written = real & ~seen[:, length, :]  # the first region doesn't attend to what is written
        given["ranks"] = (written[:, :length].cumsum(1) * written[:, :length]).long()
        matrix = torch.where(written, written.cumsum(1), 0)
        allowed = (matrix[:, None, :] <= matrix[:, :, None]) & real[:, None, :] & real[:, :, None]
        assert allowed.eq(seen).all(), "a matrix that ranks can't say"
    return given | {"attention_mask": real[:, :length], "visual_mask": real[:, length:]}, real


def encoder(case: Case) -> Mapping[str, Any]:
    model = load(case, None, layout_of(case))
    given, real = arguments(case)
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, output_attentions=True)
    outputs = {"sequence": at_real(result.last_hidden_state, real), "pooled": result.pooler_output}
    for i, state in enumerate(result.hidden_states):
        outputs[f"hidden.{i}"] = at_real(state, real)
    for i, maps in enumerate(result.attentions):
        outputs[f"attention.{i}"] = Output(maps, where=real[:, None, :, None].expand_as(maps))
    return outputs


def pretraining(case: Case) -> Mapping[str, Any]:
    model = load(case, "pretraining", layout_of(case))
    given, real = arguments(case)
    words, pairs = case.inputs.get("masked_lm_labels"), case.inputs.get("next_sentence_label")
    labels = {} if words is None else {"labels": torch.where(words < 0, -100, words.long())}
    labels |= {} if pairs is None else {"match_labels": pairs.long()}
    with torch.no_grad():
        result = model(**given, **labels)
    return {
        "loss": result.loss,
        "masked_lm_loss": result.losses["masked_lm"],
        "contrastive_loss": result.losses["image_text_matching"],
        "prediction_scores": at_real(result.prediction_logits, real),
        "seq_relationship_score": result.seq_relationship_logits,
    }


def answers(case: Case) -> Mapping[str, Any]:
    """Questions and any other classifier of a pair."""
    model = load(case, "visual-question-answering", layout_of(case))
    given, _ = arguments(case)
    labels = case.inputs.get("labels")
    with torch.no_grad():
        labels = labels if labels is None else labels.float() if soft(case) else labels.flatten().long()
        result = model(**given, labels=labels)
    loss = result.loss
    if case.config.get("loss_type") == "kl":
        loss = soft_answer_loss(result.logits, labels, "kl")
    return {"logits": result.logits} | ({} if loss is None else {"loss": loss})


def soft(case: Case) -> bool:
    return case.config.get("loss_type") in ("bce", "kl")


def reasoning(case: Case) -> Mapping[str, Any]:
    """NLVR2: (batch, 2, ...), a pass over each picture."""
    model = load(case, "visual-reasoning", layout_of(case))
    inputs = case.inputs
    length = inputs["input_ids"].shape[-1]
    real = inputs["attention_mask"].bool()
    given = {
        "input_ids": inputs["input_ids"].long(),
        "attention_mask": real[..., :length],
        "visual_features": inputs["img_feats"],
        "visual_mask": real[..., length:],
    }
    given |= {name: inputs[name].long() for name in ("token_type_ids", "position_ids") if name in inputs}
    labels = inputs.get("labels")
    if labels is not None:
        labels = labels.view(len(real), -1).float() if soft(case) else labels.flatten().long()
    with torch.no_grad():
        result = model(**given)
    outputs = {"logits": result.logits}
    if labels is not None:
        with torch.no_grad():
            loss = soft_answer_loss(result.logits, labels, case.config["loss_type"]) if soft(case) else None
            outputs["loss"] = model(**given, labels=labels).loss if loss is None else loss
    return outputs


def captioning(case: Case) -> Mapping[str, Any]:
    config = case.config
    worst = config.get("drop_worst_ratio", 0) if config.get("drop_worst_after", 0) < 1 else 0
    options = {"label_smoothing": config.get("label_smoothing", 0.0), "drop_worst": worst}
    model = load(case, "masked-lm", layout_of(case), **options)
    given, _ = arguments(case)
    chosen = case.inputs["masked_pos"] == 1
    targets = case.inputs["masked_ids"].long()
    labels = torch.full(chosen.shape, -100)
    labels[chosen] = targets[targets != 0]
    with torch.no_grad():
        result = model(**given, labels=labels)
    return {"loss": result.loss, "class_logits": result.logits[:, : labels.shape[1]][chosen]}


def decoding(case: Case) -> Mapping[str, Any]:
    """Captions that are written, from the tags and regions that the tensorizer made for a caption of masks."""
    said = case.info["call"]["generate arguments"]
    given, _ = arguments(case)
    longest = said["max_length"]
    start = max(said.get("od_labels_start_posid", 0), longest)
    fields = {"start_token_id": said["bos_token_id"], "mask_token_id": said["mask_token_id"], "tag_position": start}
    model = load(case, "masked-lm", layout_of(case), **fields)
    caption = given.pop("ranks").gt(0).sum(1).max()
    words = {name: given.pop(name)[:, caption:] for name in ("input_ids", "attention_mask", "token_type_ids")}
    tags = {"input_ids": None, "attention_mask": None}
    if said.get("add_od_labels") and words["attention_mask"].any():
        tags = {**words, "position_ids": start + torch.arange(words["input_ids"].shape[1])[None]}
    beams, kept = said.get("num_beams", 1), said.get("num_keep_best", 1)
    search = {"num_beams": beams, "max_length": longest, "end_at_limit": True}
    if beams > 1:
        search |= {"num_return_sequences": kept, "late_endings": True, "early_stopping": "never"}
        search |= {"length_penalty": float(said.get("length_penalty", 1.0))}
    if said.get("repetition_penalty", 1.0) != 1:
        search["repetition_penalty"] = said["repetition_penalty"]
    ends = tuple(said["eos_token_ids"])
    found = zoo.generate(model, **tags, **given, **search, end_token_id=ends)
    rows = len(given["visual_features"])
    ids = torch.nn.functional.pad(found.sequences, (0, longest - found.sequences.shape[1]), value=said["pad_token_id"])
    scores = found.scores
    if beams == 1:
        scores = scores / (torch.tensor(found.lengths) - 1)
    return {"ids": ids.view(rows, kept, -1), "logprobs": scores.view(rows, kept)}


def captions(case: Case) -> Mapping[str, Any]:
    """Generation and training share a class."""
    return decoding(case) if "generate" in case.object else captioning(case)


def tensorizer(case: Case) -> Mapping[str, Any]:
    """What its loader makes of captions and tags, with captions of masks to write over, and without tags."""
    given = case.given
    vocabulary = 70
    collator = TaggedCaptionCollator(
        cls_id=1,
        sep_id=2,
        mask_id=3,
        random_ids=[*range(vocabulary), 4],  # the end of its range stands for no word
        probability=given["mask_prob"],
        most=given["max_masked_tokens"],
        caption_length=given["max_seq_a_length"],
        longest=given["max_seq_length"],
    )
    rng = random.Random(given["seed"])

    def numbers(text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    found: dict[str, dict[str, list[Any]]] = {"train": {}, "test": {}, "test_no_tags": {}}
    for kind, rows in found.items():
        for words, tags, regions in zip(given["captions"], given["tags"], given["num_regions"], strict=True):
            if kind == "train":
                caption = collator.caption(numbers(words))
                masked = collator.hidden(caption, rng)
                tokens, hidden = masked.tokens, masked.positions
                space = collator.most - len(hidden)
                own = {"masked_ids": masked.labels + [0] * space}
                own["masked_pos"] = [int(place in hidden) for place in range(collator.longest)]
            else:
                tokens = collator.caption([collator.mask_id] * collator.caption_length)
                own = {"masked_pos": [1] * collator.longest}
            named = [] if kind == "test_no_tags" else collator.tags(numbers(tags))
            for name, value in {**row(collator, tokens, named, given, regions), **own}.items():
                if kind != "test_no_tags" or name in ("input_ids", "attention_mask"):
                    rows.setdefault(name, []).append(value)
    return found


def row(
    collator: TaggedCaptionCollator, caption: list[int], tags: list[int], given: Mapping[str, Any], regions: int
) -> dict[str, Any]:
    """One example in the reference's places: the caption padded, tags padded, regions padded."""
    gap, rest = collator.caption_length - len(caption), collator.longest - collator.caption_length - len(tags)
    most = given["max_img_seq_length"]
    regions = min(regions, most)
    none = [-1]
    ranks = [*range(1, len(caption) + 1), *none * gap, *[0] * len(tags), *none * rest, *[0] * regions]
    ranks += none * (most - regions)
    matrix = ["".join(str(int(0 <= key <= query)) if query >= 0 else "0" for key in ranks) for query in ranks]
    return {
        "input_ids": caption + [0] * gap + tags + [0] * rest,
        "token_type_ids": [0] * collator.caption_length + [1] * len(tags) + [0] * rest,
        "attention_mask": matrix,
    }


ADAPTERS: dict[str, Adapter] = {
    "CaptionTensorizer.tensorize_example": tensorizer,
    "BertForImageCaptioning": captions,
    "BertImgModel": encoder,
    "BertImgForPreTraining": pretraining,
    "ImageBertForSequenceClassification": answers,
    "ImageBertForMultipleChoice": reasoning,
}
