"""Whole word masking (google-research/bert): data cases."""

from __future__ import annotations

from typing import Any

from tests.references.case import Adapter, Case
from tests.references.pretraining_data import bert_masking, draws_of, instances, predictions
from zoo.data.instances import next_sentence_pairs


def masked_sequences(case: Case) -> dict[str, Any]:
    given, rng = case.given, draws_of(case.given)
    return {
        "examples": [
            predictions(
                bert_masking(
                    tokens,
                    given["masked_lm_prob"],
                    given["max_predictions_per_seq"],
                    given["do_whole_word_mask"],
                    given["vocab_words"],
                    rng,
                )
            )
            for tokens in given["sequences"]
        ]
    }


def sentence_pair_instances(case: Case) -> dict[str, Any]:
    given, rng = case.given, draws_of(case.given)

    def mask(tokens: list[str]) -> dict[str, Any]:
        return predictions(
            bert_masking(
                tokens,
                given["masked_lm_prob"],
                given["max_predictions_per_seq"],
                given["do_whole_word_mask"],
                given["vocab_words"],
                rng,
            ),
            "tokens",
        )

    return {
        "instances": [
            instance | {"document": index}
            for index in range(len(given["documents"]))
            for instance in instances(
                next_sentence_pairs(given["documents"], index, given["max_seq_length"], rng, given["short_seq_prob"]),
                mask,
            )
        ]
    }


ADAPTERS: dict[str, Adapter] = {
    "create_masked_lm_predictions": masked_sequences,
    "create_instances_from_document": sentence_pair_instances,
}
