"""UNITER: ChenRocks/UNITER. Its code reads one compact sequence, each text's regions right behind
its last token; ours reads both streams padded, so masks are read from the index that makes the one
from the other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load, real_of_lengths
from zoo.data.regions.regions import number_confident
from zoo.data.vcr import answer_texts, rationale_texts
from zoo.data.vision_masking import choose_regions, mask_each_word
from zoo.models.base.joint_encoder import JointEncoder
from zoo.tasks.losses import region_class_loss, region_feature_loss, row_loss, soft_answer_loss, token_loss
from zoo.tasks.ranking import hard_negatives, hinge_loss, ranking_loss
from zoo.tasks.transport import transport

LAYOUT = "uniter"
RENAMED = {
    "input_ids": "input_ids",
    "position_ids": "position_ids",
    "txt_type_ids": "token_type_ids",
    "img_feat": "visual_features",
    "img_pos_feat": "visual_boxes",
    "img_type_ids": "visual_token_type_ids",
    "img_masks": "visual_masked",
}


@dataclass(frozen=True)
class Compact:
    """The compact sequence of a batch: ``index`` (batch, compact) into [text ; regions], ``real``
    (batch, compact).
    """

    index: Tensor
    real: Tensor
    length: int
    regions: int

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> Compact:
        real = inputs["attn_masks" if "attn_masks" in inputs else "attention_mask"].bool()
        return cls(inputs["gather_index"], real, inputs["input_ids"].shape[1], inputs["img_feat"].shape[1])

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which tokens and which regions are real."""
        words, regions = ((part & self.real).sum(1) for part in (self.index < self.length, self.index >= self.length))
        return {
            "attention_mask": real_of_lengths(words, self.length),
            "visual_mask": real_of_lengths(regions, self.regions),
        }

    def states(self, joint: Tensor) -> Output:
        """(batch, length + regions, size) of ours at the places of theirs."""
        return Output(joint.gather(1, self.index.unsqueeze(2).expand(-1, -1, joint.shape[2])), where=self.real)

    def maps(self, joint: Tensor) -> Output:
        """Attention maps at the places of theirs, zero where a key is padding."""
        rows = self.index[:, None, :, None].expand(-1, joint.shape[1], -1, joint.shape[3])
        columns = self.index[:, None, None, :].expand(-1, joint.shape[1], self.index.shape[1], -1)
        found = joint.gather(2, rows).gather(3, columns).masked_fill(~self.real[:, None, None, :], 0)
        return Output(found, where=self.real[:, None, :, None].expand_as(found))


def arguments(inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Compact]:
    """A call's arguments under our names, and the compact form."""
    compact = Compact.of(inputs)
    given = {RENAMED[name]: value for name, value in inputs.items() if name in RENAMED}
    given |= {name: given[name].expand(len(compact.real), *given[name].shape[1:]) for name in ("input_ids",)}
    return given | compact.masks, compact


def part_of(inputs: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{task}."): x for name, x in inputs.items() if name.startswith(f"{task}.")}


def encoder(case: Case) -> Mapping[str, Any]:
    model = load(case, None, LAYOUT)
    given, compact = arguments(case.inputs)
    plain = {n: x for n, x in given.items() if n not in ("visual_masked", "token_type_ids", "visual_token_type_ids")}
    text = {n: x for n, x in plain.items() if not n.startswith("visual")}
    image = {n: x for n, x in plain.items() if n.startswith("visual")}
    if "txt_only_mask" in case.inputs:
        text["attention_mask"] = case.inputs["txt_only_mask"]
    if "img_only_mask" in case.inputs:
        image["visual_mask"] = case.inputs["img_only_mask"]
    with torch.no_grad():
        result = model(**plain, output_hidden_states=True, output_attentions=True)
        typed, words, regions = (model(**x).last_hidden_state for x in (given, text, image))
    first, *states = result.hidden_states
    return {
        "embeddings": compact.states(first),
        **{f"layer.{i}": compact.states(state) for i, state in enumerate(states)},
        **{f"attention_probs.{i}": compact.maps(maps) for i, maps in enumerate(result.attentions)},
        "pooled": result.pooler_output,
        "masked_typed.last": compact.states(typed),
        "text_only.last": at_real(words, text["attention_mask"].bool()),
        "image_only.last": at_real(regions, image["visual_mask"].bool()),
    }


def pretraining(case: Case) -> Mapping[str, Any]:
    model = load(case, "pretraining", LAYOUT)
    outputs: dict[str, Any] = {}
    tasks = {name.partition(".")[0] for name in case.inputs}
    with torch.no_grad():
        if "mlm" in tasks:
            outputs |= masked_words(model, part_of(case.inputs, "mlm"))
        if "mrfr" in tasks:
            outputs |= masked_features(model, part_of(case.inputs, "mrfr"))
        for task in {"mrc", "mrckl", "mrc-kl"} & tasks:
            outputs |= masked_classes(model, part_of(case.inputs, task))
        if "itm" in tasks:
            outputs |= matching(model, part_of(case.inputs, "itm"))
    return outputs


def masked_words(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    given, _ = arguments(inputs)
    labels = torch.where(inputs["txt_labels"] < 0, -100, inputs["txt_labels"].long())
    result = model(**given, labels=labels)
    chosen = labels != -100
    logits = result.prediction_logits[:, : labels.shape[1]][chosen]
    each = torch.stack(
        [
            token_loss(row[None, None], label[None, None], None)
            for row, label in zip(logits, labels[chosen], strict=True)
        ]
    )
    agree(each.mean(), result.losses["masked_lm"])
    return {"mlm.logits": logits, "mlm.loss": each}


def at_regions(values: Tensor, chosen: Tensor) -> Tensor:
    """(chosen regions, size) of theirs as (batch, regions, size), zeros elsewhere."""
    out = values.new_zeros(*chosen.shape, values.shape[1])
    out[chosen] = values
    return out


def masked_features(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    given, _ = arguments(inputs)
    chosen = inputs["img_masks"].bool()
    targets = at_regions(inputs["feat_targets"], chosen)
    result = model(**given, feature_targets=targets, region_labels=chosen)
    predicted = result.scores["region_feature"]
    one = torch.ones(1, 1, dtype=torch.long)
    each = torch.stack(
        [
            torch.stack(
                [region_feature_loss(p[None, None, None], t[None, None, None], one) for p, t in zip(*pair, strict=True)]
            )
            for pair in zip(predicted[chosen], targets[chosen], strict=True)
        ]
    )
    agree(each.mean(), result.losses["region_feature"])
    return {"mrfr.pred": predicted[chosen], "mrfr.loss": each}


def masked_classes(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    given, _ = arguments(inputs)
    chosen = inputs["img_masks"].bool()
    targets = at_regions(inputs["label_targets"], chosen)
    result = model(**given, class_targets=targets, region_labels=chosen)
    logits, wanted, one = result.region_logits[chosen], targets[chosen], torch.ones(1, 1, dtype=torch.long)
    hard = [
        region_class_loss(x[None, None], t[None, None], one, "likeliest") for x, t in zip(logits, wanted, strict=True)
    ]
    elements = torch.special.xlogy(wanted, wanted) - wanted * logits.log_softmax(-1)
    agree(elements.mean(), result.losses["region_class"])
    return {"mrc.logits": logits, "mrc.loss": torch.stack(hard), "mrckl.logits": logits, "mrckl.loss": elements}


def matching(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    given, _ = arguments(inputs)
    targets = inputs["targets"].long()
    result = model(**given, match_labels=targets)
    logits, apart = result.seq_relationship_logits, result.scores["word_region_alignment"]
    each = torch.stack([row_loss(logits[i : i + 1], targets[i : i + 1]) for i in range(len(targets))])
    found = {"logits": logits, "loss": each, "ot_pos": apart[targets == 1], "ot_neg": apart[targets == 0]}
    return {f"itm.{name}": value for name, value in (found | {"total": result.loss}).items()}


def agree(mine: Tensor, other: Tensor) -> None:
    """What a model trains on is the mean of the elements that the reference lists."""
    assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6), (mine, other)


def answers(case: Case) -> Mapping[str, Any]:
    """VQA, and visual entailment, which is the same with three answers."""
    task = "visual-entailment" if "ve.Uniter" in case.object else "visual-question-answering"
    model = load(case, task, LAYOUT)
    given, _ = arguments(case.inputs)
    with torch.no_grad():
        logits = model(**given).logits
    outputs = {"logits": logits}
    if "targets" in case.inputs:
        targets = case.inputs["targets"]
        cells = [
            [soft_answer_loss(x[None, None], t[None, None]) for x, t in zip(*pair, strict=True)]
            for pair in zip(logits, targets, strict=True)
        ]
        outputs |= {"loss": torch.tensor(cells), "train_loss": soft_answer_loss(logits, targets)}
        if task == "visual-question-answering":
            agree(model(**given, labels=targets).loss, outputs["train_loss"])
    return outputs


def commonsense(case: Case) -> Mapping[str, Any]:
    """VCR: the rows are the choices of one question."""
    model = load(case, "multiple-choice", LAYOUT)
    given, _ = arguments(case.inputs)
    shaped = {name: x if name == "position_ids" else x[None] for name, x in given.items()}
    labels = case.inputs["targets"].long().view(1, -1) if "targets" in case.inputs else None
    with torch.no_grad():
        result = model(**shaped, labels=labels)
    outputs = {"scores": result.logits.view(-1, 1)}
    return outputs if result.loss is None else outputs | {"loss": result.loss}


def reasoning(case: Case) -> Mapping[str, Any]:
    model = load(case, "visual-reasoning", LAYOUT)
    given, _ = arguments(case.inputs)
    if model.options["pairs"]:
        given = {name: x if name == "position_ids" else x.unflatten(0, (-1, 2)) for name, x in given.items()}
    with torch.no_grad():
        logits = model(**given).logits
    targets = case.inputs["targets"].long()
    each = [row_loss(logits[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
    return {"logits": logits, "scores": logits, "loss": torch.stack(each)}


def retrieval(case: Case) -> Mapping[str, Any]:
    """Groups of a right pair and wrong ones."""
    model = load(case, "image-text-retrieval", LAYOUT)
    inputs = dict(case.inputs)
    given, _ = arguments(inputs)
    for name in ("visual_features", "visual_boxes"):
        given[name] = given[name].expand(len(given["input_ids"]), -1, -1)
    size = int((case.info.get("non_tensor_inputs") or {}).get("sample_size", len(given["input_ids"])))
    hard, margin = case.config.get("hard_size"), case.config.get("margin", 0.2)
    with torch.no_grad():
        scores = model(**given).logits
        groups = scores.view(-1, size)
        if "HardNeg" in case.object and hard is not None:
            shaped = {name: x if name == "position_ids" else x[None] for name, x in given.items()}
            shaped, _ = hard_negatives(model, shaped, torch.zeros(1, dtype=torch.long), int(hard))
            groups = model(**shaped).logits
        right = torch.zeros(1, dtype=torch.long)
        each = [[hinge_loss(row[[0, j]][None], right, margin) for j in range(1, len(row))] for row in groups]
        whole = hinge_loss(groups, torch.zeros(len(groups), dtype=torch.long), margin)
    agree(torch.tensor(each).mean(), whole)
    return {"scores": scores.unsqueeze(1), "loss": torch.tensor(each)}


def expressions(case: Case) -> Mapping[str, Any]:
    """The loss by ranking draws wrong regions; where all are the hardest ones nothing is drawn."""
    ranking = "hardest" if case.config.get("loss") == "rank" else "softmax"
    model = load(case, "grounding", LAYOUT, ranking=ranking, margin=case.config.get("margin", 0.2))
    given, compact = arguments(case.inputs)
    targets = case.inputs["targets"].long().flatten()
    with torch.no_grad():
        logits = model(**given).logits
        each = [
            ranking_loss(ranking, logits[i : i + 1], targets[i : i + 1], model.options["margin"])
            for i in range(len(targets))
        ]
        agree(torch.stack(each).mean(), model(**given, labels=targets).loss)
    return {"scores": at_real(logits, compact.masks["visual_mask"]), "loss": torch.stack(each)}


def optimal_transport(case: Case) -> Mapping[str, Any]:
    words, regions = (case.inputs[name].clone().requires_grad_() for name in ("txt_emb", "img_emb"))
    real = [~case.inputs[name].bool() for name in ("txt_pad", "img_pad")]
    options = {"beta": case.config.get("beta", 0.5), "iterations": case.config.get("iteration", 50)}
    apart, cost, plan = transport(words, regions, *real, **options)
    gradients = torch.autograd.grad(apart.sum(), [words, regions])
    return {"distance": apart, "cost": cost, "plan": plan, "grad_txt": gradients[0], "grad_img": gradients[1]}


def data(case: Case) -> Mapping[str, Any]:
    """Places of the compact sequence, masks, numbers of boxes, and VCR's texts."""
    given = case.given
    outputs: dict[str, Any] = {}
    if "txt_lens" in given:
        outputs |= places(given["txt_lens"], given["num_bbs"])
    if "random_word" in given:
        outputs["random_word"] = [masked_text(one) for one in given["random_word"]]
    if "img_mask" in given:
        outputs["img_mask"] = []
        for one in given["img_mask"]:
            chosen = choose_regions(one["num_bb"], random.Random(one["seed"]), probability=one["mask_prob"])
            outputs["img_mask"].append(
                {"mask": [int(c) for c in chosen], "target_mask_with_text_len_4": [0] * 4 + [int(c) for c in chosen]}
            )
    if "num_bb" in given:
        outputs["num_bb"] = [
            number_confident(torch.tensor(one["confidences"]), one["conf_th"], one["min_bb"], one["max_bb"])
            for one in given["num_bb"]
        ]
    if "vcr_example" in given:
        outputs["vcr"] = commonsense_texts(given["vcr_example"])
    return outputs


def places(lengths: list[int], counts: list[int]) -> dict[str, Any]:
    """Where each place of the compact sequence comes from: the real places of ours in order."""
    longest, most = max(lengths), max(counts)
    real = JointEncoder.joint_mask(len(lengths), longest, most, (None, None, lengths, counts))
    if real is None:
        real = torch.ones(len(lengths), longest + most, dtype=torch.bool)
    size = int(real.sum(1).max())
    gather, scatter = [], []
    for row, words in zip(real, lengths, strict=True):
        found = row.nonzero().flatten().tolist()
        gather.append(found + list(range(len(found), size)))
        scatter.append(found[:words] + list(range(longest, longest + size - words)))
    return {
        "gather_index": gather,
        "attn_masks": [[int(place < int(row.sum())) for place in range(size)] for row in real],
        "ot_scatter": scatter,
        "txt_pad": (~real[:, :longest]).long().tolist(),
        "img_pad": (~real[:, longest:]).long().tolist(),
    }


def masked_text(one: Mapping[str, Any]) -> dict[str, Any]:
    rng, tokens = random.Random(one["seed"]), one["tokens"]
    masked, labels = mask_each_word(
        tokens,
        (rng.random() for _ in tokens),
        lambda: rng.choice(list(range(*one["vocab_range"]))),
        one["mask"],
        ignore=-1,
        at_least_one=True,
    )
    return {"masked": masked, "labels": labels}


def commonsense_texts(example: Mapping[str, Any], cls_id: int = 1, sep_id: int = 2) -> dict[str, Any]:
    question, answers_, rationales = (example[name] for name in ("input_ids", "input_ids_as", "input_ids_rs"))
    right = example["qa_target"]
    to_answers = answer_texts(question, answers_, cls_id, sep_id)
    to_rationales = [rationale_texts(question, answer, rationales, cls_id, sep_id) for answer in answers_]
    forms = {
        "eval_val": to_answers + to_rationales[right],
        "eval_test": to_answers + [text for texts in to_rationales for text in texts],
        "train_qa": to_answers,
        "train_qar": to_rationales[right],
    }
    return {
        name: {"input_ids": [ids for ids, _ in texts], "txt_type_ids": [types for _, types in texts]}
        for name, texts in forms.items()
    }


ADAPTERS: dict[str, Adapter] = {
    "model.model.UniterModel": encoder,
    "model.pretrain": pretraining,
    "model.vqa": answers,
    "model.ve.": answers,
    "model.vcr": commonsense,
    "model.nlvr2": reasoning,
    "model.itm": retrieval,
    "model.re.": expressions,
    "model.ot": optimal_transport,
    "data.": data,
}
