"""ERNIE (Baidu): the Hugging Face port's model, and the two maskings."""

from __future__ import annotations

from typing import Any

import torch

from tests.references import text_models
from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load, real_of, task_of
from zoo.data.knowledge_masking import UnitDraws, knowledge_masking, unit_masking
from zoo.data.masking import IGNORED


def hugging_face(case: Case) -> dict[str, Any]:
    """Any of the Ernie* classes, under this case's own output names and the usual ones."""
    task = task_of(case)
    model = load(case, task, "hf-ernie")
    names = (*text_models.INPUTS, "task_type_ids", *(text_models.LABELS if task else ()))
    given = {name: case.inputs[name] for name in names if name in case.inputs}
    if task == "next-sentence" and "next_sentence_label" in given:
        given["labels"] = given.pop("next_sentence_label")
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, output_attentions=True)
    real = real_of(case)
    if real is not None and real.dim() == 3:  # multiple choice: (batch, choices, length)
        real = real.flatten(0, 1)
    encoded = result if task is None else result.encoded
    outputs = text_models.encoded_outputs(encoded, real)
    outputs |= {
        name.replace("hidden_states", "hidden").replace("attentions", "attention"): value
        for name, value in outputs.items()
    }
    outputs |= {"last_hidden": at_real(encoded.last_hidden_state, real), "pooled": encoded.pooler_output}
    if task is not None:
        for name, value in result.present():
            if name in ("prediction_logits", "start_logits", "end_logits"):
                outputs[name] = at_real(value, real)
            elif name in ("loss", "seq_relationship_logits"):
                outputs[name] = value
            elif name == "logits":
                outputs[name] = at_real(value, real) if task in ("token-classification", "masked-lm") else value
        outputs["mlm_logits"] = outputs.get("prediction_logits")
        outputs["nsp_logits"] = outputs.get("seq_relationship_logits")
    return outputs


def masking_of_a_batch(case: Case) -> dict[str, Any]:
    """Version 1.0: positions count in the padded batch."""
    given, config = case.given, case.config
    longest = max(map(len, given["batch_tokens"]))
    done: dict[str, list[Any]] = {"batch_tokens": [], "mask_label": [], "mask_pos": []}
    at = 0
    for row, (tokens, labels, whole) in enumerate(
        zip(given["batch_tokens"], given["seg_labels"], given["mask_word_tags"], strict=True)
    ):
        here = slice(at, at + len(tokens))
        at += len(tokens)
        corrupted, targets = knowledge_masking(
            tokens,
            labels,
            given["prob_mask"][here],
            given["replace_ids"][here],
            config["MASK"],
            whole_units=whole,
            special_ids=(config["CLS"], config["SEP"]),
        )
        done["batch_tokens"].append(corrupted)
        done["mask_label"] += [target for target in targets if target != IGNORED]
        done["mask_pos"] += [row * longest + place for place, target in enumerate(targets) if target != IGNORED]
    return done


def units_of_a_batch(case: Case) -> dict[str, Any]:
    """Version 2.0: ``shuffle`` says which unit comes first, second, ..."""
    given = case.given
    corrupted, labels = unit_masking(
        torch.tensor(given["sentence"]),
        torch.tensor(given["seg_info"]),
        case.config["mask_id"],
        given["vocab_size"],
        rate=given["mask_rate"],
        draws=UnitDraws(
            given["shuffle"], torch.tensor(given["rand"], dtype=torch.float64), torch.tensor(given["random_id"])
        ),
    )
    chosen = labels != IGNORED
    return {"sentence": corrupted, "mask_pos": Output(chosen.nonzero()), "mask_label": labels[chosen]}


ADAPTERS: dict[str, Adapter] = {
    "Ernie": hugging_face,
    "batching.mask": masking_of_a_batch,
    "apply_mask": units_of_a_batch,
}
