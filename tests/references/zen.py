"""ZEN (sinovation/ZEN): pre-training, the heads as the scripts call them, and the matching of
n-grams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references import text_models
from tests.references.case import Adapter, Case
from tests.references.text_models import at_real, load, task_of
from zoo.data.knowledge.ngrams import NGramLexicon
from zoo.data.knowledge_batches import NGramCollator
from zoo.data.masking import IGNORED
from zoo.models.zen import valid_first
from zoo.tasks.losses import token_cross_entropy
from zoo.tokenization.wordpiece import wordpiece

NGRAMS = {
    "input_ngram_ids": "ngram_ids",
    "ngram_ids": "ngram_ids",
    "ngram_position_matrix": "ngram_positions",
    "ngram_positions": "ngram_positions",
    "ngram_attention_mask": "ngram_mask",
    "ngram_token_type_ids": "ngram_token_type_ids",
}
SPECIAL_LABELS = 38  # with so many the reference's tagger takes itself for the part-of-speech model


def given_to(case: Case) -> dict[str, Tensor]:
    named = {
        name: case.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in case.inputs
    }
    return named | {ours: case.inputs[theirs] for theirs, ours in NGRAMS.items() if theirs in case.inputs}


def kept_by_embeddings(model: Any) -> tuple[dict[str, Tensor], list[Any]]:
    kept: dict[str, Tensor] = {}
    places = {"embedding": model.embeddings, "ngram_embedding": model.ngram_embeddings}
    hooks = [
        place.register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
        for name, place in places.items()
    ]
    return kept, hooks


def pretraining(case: Case) -> dict[str, Any]:
    """Any of the classes that pre-train, and the bare model."""
    task = task_of(case)
    model = load(case, task, "zen")
    inputs = case.inputs
    mask = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    ngram_mask = inputs.get("ngram_attention_mask")
    real_ngrams = None if ngram_mask is None else ngram_mask.bool()
    labels = {}
    if "masked_lm_labels" in inputs:
        labels["labels"] = inputs["masked_lm_labels"].masked_fill(inputs["masked_lm_labels"] == -1, IGNORED)
    if "next_sentence_label" in inputs:
        labels["labels" if task == "next-sentence" else "next_sentence_label"] = inputs["next_sentence_label"].flatten()
    bare = model if task is None else model.model
    kept, hooks = kept_by_embeddings(bare)
    with torch.no_grad():
        result = model(**given_to(case), **labels, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    encoded = result if task is None else result.encoded
    outputs = {name: at_real(value, real if name == "embedding" else real_ngrams) for name, value in kept.items()}
    outputs |= {f"hidden.{i}": at_real(state, real) for i, state in enumerate(encoded.hidden_states)}
    outputs |= {
        f"ngram_hidden.{i}": at_real(state, real_ngrams) for i, state in enumerate(encoded.entity.hidden_states)
    }
    attentions = text_models.encoded_outputs(encoded, real)
    outputs |= {
        name.replace("attentions", "attention"): value for name, value in attentions.items() if "attentions" in name
    }
    outputs |= {"pooled": encoded.pooler_output, "last_hidden": at_real(encoded.last_hidden_state, real)}
    if task is not None:
        outputs |= {"loss": result.loss, "nsp_logits": result.seq_relationship_logits}
        outputs["mlm_logits"] = None if result.prediction_logits is None else at_real(result.prediction_logits, real)
    return outputs


def classification(case: Case) -> dict[str, Any]:
    """Called without masks and segments. What a head calls attention_mask reaches the model as the
    n-grams' segments.
    """
    task = task_of(case)
    model = load(case, task, "zen")
    given = given_to(case)
    if "attention_mask" in given:
        given["ngram_token_type_ids"] = given.pop("attention_mask")
    labels = {name: case.inputs[name] for name in text_models.LABELS if name in case.inputs}
    if task == "question-answering":
        with torch.no_grad():
            result = model(**given, **labels)
        return {"start_logits": result.start_logits, "end_logits": result.end_logits, "loss": result.loss}
    if task == "sequence-classification":
        with torch.no_grad():
            result = model(**given, **labels)
        return {"logits": result.logits, "loss": result.loss}
    with torch.no_grad():
        hidden = model.model(**given).last_hidden_state
        if model.options["num_labels"] == SPECIAL_LABELS:
            hidden = valid_first(hidden, case.inputs["valid_ids"] == 1)
        logits = model.heads["token_classification"](hidden)
    outputs = {"logits": logits}
    if "labels" in labels:
        outputs["loss"] = token_cross_entropy(logits, labels["labels"].masked_fill(labels["labels"] == 0, IGNORED))
    return outputs


class Replayed:
    """The recorded permutations: the new k-th is the old one at the k-th number."""

    def __init__(self, shuffles: list[list[int]]):
        self.shuffles = iter(shuffles)

    def shuffle(self, x: list[Any]) -> None:
        x[:] = [x[k] for k in next(self.shuffles)]


def matching(case: Case) -> dict[str, Any]:
    given = case.given
    vocabulary = {token: number for number, token in enumerate(given["vocab"])}
    tokenizer = wordpiece(vocabulary, lower_case=given.get("do_lower_case", True))

    def tokenize(text: str) -> list[str]:
        return list(tokenizer.backend.encode(text, add_special_tokens=False).tokens)

    length, most = given["max_seq_length"], given["max_ngram_in_seq"]
    lexicon = NGramLexicon.read([f"{ngram},{count}" for ngram, count in given["ngrams"]], tokenize)
    collator = NGramCollator(lexicon=lexicon, max_length=length, max_ngrams=most, to_max_length=True)
    features = []
    for (first, second), order in zip(given["examples"], given["shuffles"], strict=True):
        a, b = tokenize(first), tokenize(second) if second else []
        while len(a) + len(b) > length - (3 if b else 2):
            (a if len(a) > len(b) else b).pop()
        tokens = ["[CLS]", *a, "[SEP]", *([*b, "[SEP]"] if b else [])]
        padding = [0] * (length - len(tokens))
        batch = collator([tokens], [len(a) + 2], rng=Replayed([order]))
        chosen = collator.choose(tokens, Replayed([order]))
        features.append(
            {
                "input_ids": [vocabulary[token] for token in tokens] + padding,
                "input_mask": [1] * len(tokens) + padding,
                "segment_ids": [0] * (len(a) + 2) + [1] * (len(tokens) - len(a) - 2) + padding,
                "ngram_ids": batch["ngram_ids"][0],
                "ngram_lengths": batch["ngram_positions"][0].sum(0),
                "ngram_seg_ids": batch["ngram_token_type_ids"][0],
                "ngram_masks": batch["ngram_mask"][0],
                "ngram_tuples": [tokens[n.start : n.start + n.length] for n in chosen],
                "ngram_positions": batch["ngram_positions"][0],
            }
        )
    return {"features": features}


ADAPTERS: dict[str, Adapter] = {
    "ZEN.modeling.Zen": pretraining,
    "ZEN.modeling.ZenForSequenceClassification": classification,
    "ZEN.modeling.ZenForTokenClassification": classification,
    "ZEN.modeling.ZenForQuestionAnswering": classification,
    "convert_examples_to_features": matching,
}
