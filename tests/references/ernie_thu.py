"""ERNIE (Tsinghua): pre-training, fine-tuned heads, alignment and the denoising batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.text_models import at_real, load
from zoo.data.knowledge.alignment import Mention, first_pieces
from zoo.data.knowledge_batches import EntityDenoising
from zoo.data.masking import IGNORED
from zoo.tokenization.wordpiece import wordpiece

HEADS = {
    "ForPreTraining": "pretraining",
    "ForMaskedLM": "masked-lm",
    "ForNextSentencePrediction": "next-sentence",
    "ForEntityTyping": "entity-typing",
    "ForSequenceClassification": "sequence-classification",
    "ForSTSB": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}


def run(case: Case, **labels: Tensor) -> tuple[Any, Tensor]:
    inputs = case.inputs
    task = next((task for ending, task in HEADS.items() if ending in case.object), None)
    model = load(case, task, "ernie-thu")
    mask = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    given = {
        ours: inputs[theirs]
        for theirs, ours in (("input_ent", "entity_embeds"), ("ent_mask", "entity_mask"))
        if theirs in inputs
    }
    if "entity_mask" in given:
        given["entity_mask"] = given["entity_mask"].long()
    with torch.no_grad():
        result = model(
            inputs["input_ids"], real, inputs.get("token_type_ids"), **given, **labels, output_hidden_states=True
        )
    return result, real


def streams(encoded: Any, real: Tensor) -> dict[str, Any]:
    outputs = {f"hidden.{i}": at_real(state, real) for i, state in enumerate(encoded.hidden_states)}
    outputs |= {f"entity_hidden.{i}": at_real(state, real) for i, state in enumerate(encoded.entity.hidden_states)}
    outputs |= {"last_hidden": at_real(encoded.last_hidden_state, real), "pooled": encoded.pooler_output}
    return outputs | {"last_entity_hidden": at_real(encoded.entity.last_hidden_state, real)}


def pretraining(case: Case) -> dict[str, Any]:
    inputs = case.inputs
    labels = {
        ours: inputs[theirs].masked_fill(inputs[theirs] == -1, IGNORED)
        for theirs, ours in (("masked_lm_labels", "labels"), ("ent_labels", "entity_labels"))
        if theirs in inputs
    }
    if "next_sentence_label" in inputs:
        labels["next_sentence_label"] = inputs["next_sentence_label"].flatten()
    candidates = inputs["candidate"]
    result, real = run(case, entity_candidates=candidates.squeeze(0) if candidates.dim() == 3 else candidates, **labels)
    losses = result.losses
    words = losses.get("masked_lm", torch.tensor(0.0)) + losses.get("next_sentence", torch.tensor(0.0))
    return streams(result.encoded, real) | {
        "mlm_logits": at_real(result.prediction_logits, real),
        "nsp_logits": result.seq_relationship_logits,
        "ent_logits": at_real(result.scores["masked_entity"], real),
        "loss_total": result.loss,
        "loss_mlm_nsp": words,
        "loss_ent": losses.get("masked_entity"),
    }


LABELS = {  # of a class whose labels have names of their own
    "BertModel": (),
    "STSB": (),
    "QuestionAnswering": ("start_positions", "end_positions"),
    "MaskedLM": ("masked_lm_labels",),
    "NextSentence": ("next_sentence_label",),
}


def classification(case: Case) -> dict[str, Any]:
    """Entity typing, relations and other labels, and the bare model; STS-B gives its two labels
    soft targets.
    """
    names = next((names for part, names in LABELS.items() if part in case.object), ("labels",))
    labels = {"labels" if "label" in name else name: case.inputs[name] for name in names if name in case.inputs}
    if "EntityTyping" not in case.object:
        labels = {name: given.masked_fill(given == -1, IGNORED) for name, given in labels.items()}
    result, real = run(case, **labels)
    if not hasattr(result, "encoded"):
        return streams(result, real)
    logits = result.logits
    outputs = streams(result.encoded, real) | {"logits": logits, "loss": result.loss}
    if "STSB" in case.object:
        outputs |= {"probabilities": logits.softmax(-1), "probs": logits.softmax(-1)}
        outputs["loss"] = -(case.inputs["labels"] * logits.log_softmax(-1)).sum(-1).mean()
    if any(name in case.object for name in ("TokenClassification", "MaskedLM")):
        outputs["logits"] = outputs["mlm_logits"] = at_real(logits, real)
    if "QuestionAnswering" in case.object:
        outputs |= {"start_logits": at_real(result.start_logits, real), "end_logits": at_real(result.end_logits, real)}
    if "NextSentence" in case.object:
        outputs["nsp_logits"] = logits
    return outputs


class Replayed:
    """The recorded draws, each kind in its own order."""

    def __init__(self, uniform: list[float], whole: list[int]):
        self.uniform, self.whole = iter(uniform), iter(whole)

    def random(self) -> float:
        return next(self.uniform)

    def randint(self, a: int, b: int) -> int:
        return next(self.whole)


def denoising(case: Case) -> dict[str, Any]:
    """A row holds seven parts side by side; the vectors' first row is the zero vector."""
    given = case.given
    length = given["max_seq_length"]
    parts = torch.tensor(given["rows"]).split(length, dim=1)
    corrupt = EntityDenoising(vectors=torch.tensor(given["entity_vectors"])[1:])
    made = corrupt(parts[4], rng=Replayed(given["uniform_draws"], given["randint_draws"]))
    return {
        **dict(zip(("input_ids", "input_mask", "segment_ids", "masked_lm_labels"), parts, strict=False)),
        "input_ent": made["entity_embeds"],
        "ent_mask": made["entity_mask"],
        "next_sentence_label": parts[6],
        "candidate": made["entity_candidates"],
        "ent_labels": made["entity_labels"].masked_fill(made["entity_labels"] == IGNORED, -1),
    }


def alignment(case: Case) -> dict[str, Any]:
    """The reference splits Chinese no further than its spaces, and writes UNK where there is no
    entity.
    """
    given = case.given
    vocabulary = {token: number for number, token in enumerate(given["vocab"])}
    tokenizer = wordpiece(
        vocabulary, lower_case=given["do_lower_case"], strip_accents=given["do_lower_case"], chinese=False
    )
    aligned = []
    for example in given["examples"]:
        text = example["text"]
        mentions = [Mention(e[0], e[1], min(e[2], len(text)), *e[3:4]) for e in example["entities"]]
        tokens, entities = first_pieces(
            text, mentions, lambda word: tokenizer.backend.encode(word, add_special_tokens=False).tokens
        )
        aligned.append({"tokens": tokens, "entities": ["UNK" if entity is None else entity for entity in entities]})
    return {"aligned": aligned}


ADAPTERS: dict[str, Adapter] = {
    "knowledge_bert.modeling.BertForPreTraining": pretraining,
    "knowledge_bert.modeling.BertFor": classification,
    "knowledge_bert.modeling.BertModel": classification,
    "collate_fn": denoising,
    "BertTokenizer.tokenize": alignment,
}
