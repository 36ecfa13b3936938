"""K-BERT (autoliuweijie/K-BERT): UER-py's model under a visible matrix, classifier, tagger, and the
sentence tree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load
from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge_batches import SentenceTreeCollator


def uer(case: Case) -> Case:
    """Without the remarks that the case writes among the config's keys."""
    config = {key: value for key, value in case.config.items() if "(" not in key}
    return replace(case, info=case.info | {"config": config})


def visible(case: Case, segments: str, everywhere: bool = False) -> tuple[Tensor, Tensor]:
    """Who sees whom, and the positions that are tokens. ``everywhere``: rows of padding see
    everything, as their rounded scores in the reference do.
    """
    inputs = case.inputs
    if "vm" in inputs and not (case.config.get("no_vm") and "Model" not in case.object):
        matrix = inputs["vm"].bool()
        real = matrix.any(2)
    else:
        real = inputs[segments] > 0
        matrix = real[:, None, :].expand(-1, real.shape[1], -1)
        everywhere = False if bool(real.all()) else everywhere
    return (matrix | ~matrix.any(2, keepdim=True) if everywhere else matrix), real


def run(case: Case, task: str, segments: str, everywhere: bool = False) -> tuple[Any, Any, Tensor]:
    case = uer(case)
    model = load(case, task)
    matrix, real = visible(case, segments, everywhere)
    with torch.no_grad():
        result = model(
            case.inputs["src"], matrix, case.inputs[segments], case.inputs.get("pos"), output_hidden_states=True
        )
    return model, result, real


def language_model(case: Case) -> dict[str, Any]:
    _, result, real = run(case, "pretraining", "seg")
    words, targets = result.prediction_logits, case.inputs["tgt_mlm"]
    chosen = targets > 0
    scores = words[chosen]
    losses = {}
    if "tgt_nsp" in case.inputs:
        pairs, label = result.seq_relationship_logits, case.inputs["tgt_nsp"]
        losses = {
            "loss_nsp": torch.nn.functional.cross_entropy(pairs, label),
            "correct_nsp": (pairs.argmax(1) == label).sum(),
        }
    count = chosen.sum() + 1e-6
    return losses | {
        **{f"hidden.{i}": at_real(state, real) for i, state in enumerate(result.encoded.hidden_states)},
        "mlm_logits": at_real(words, real),
        "loss_mlm": torch.nn.functional.cross_entropy(scores, targets[chosen], reduction="sum") / count,
        "correct_mlm": (scores.argmax(1) == targets[chosen]).sum().float(),
        "denominator": count,
    }


def classifier(case: Case) -> dict[str, Any]:
    """The mean, the maximum and the last run over the whole window in the reference, padding
    included.
    """
    everywhere = case.config.get("pooling", "first") != "first"
    _, result, real = run(case, "sequence-classification", "mask", everywhere)
    return {
        "last_hidden": at_real(result.encoded.last_hidden_state, real),
        "logits": result.logits,
        "loss": torch.nn.functional.cross_entropy(result.logits, case.inputs["label"].flatten()),
    }


def tagger(case: Case) -> dict[str, Any]:
    """Label 0 is padding; it is a class all the same."""
    _, result, real = run(case, "token-classification", "mask")
    labels = case.inputs["label"]
    chosen, predicted = labels > 0, result.logits.argmax(-1)
    loss = torch.nn.functional.cross_entropy(result.logits[chosen], labels[chosen], reduction="sum") / (
        chosen.sum() + 1e-6
    )
    return {
        "last_hidden": at_real(result.encoded.last_hidden_state, real),
        "loss": loss,
        "correct": (chosen & (predicted == labels)).sum().float(),
        "predict": Output(predicted.flatten(), where=real.flatten()),
    }


def trees(case: Case) -> dict[str, Any]:
    """Sentences come segmented; ids are not asked for, so any will do."""
    given = case.given
    collator = SentenceTreeCollator(
        graph=KnowledgeGraph.from_triples(map(tuple, given["triples"])),
        token_id=lambda token: 1,
        unknown_id=1,
        max_entities=given["max_entities"],
        predicate=given["predicate"],
        max_length=given["max_length"],
        to_max_length=True,
    )
    grown = [collator.tree(words).tokens for words in given["sentences"]]
    batch = collator(given["sentences"])
    return {
        "tokens": [tokens + ["[PAD]"] * (given["max_length"] - len(tokens)) for tokens in grown],
        "soft_positions": batch["position_ids"],
        "visible_matrix": batch["attention_mask"].long(),
        "inserted_flag": batch["inserted"].long(),
    }


ADAPTERS: dict[str, Adapter] = {
    "uer.models.model.Model": language_model,
    "BertClassifier": classifier,
    "BertTagger": tagger,
    "add_knowledge_with_vm": trees,
}
