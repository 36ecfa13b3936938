"""BERT (google-research/bert): data and function cases."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.optimizers import train
from tests.references.pretraining_data import bert_masking, instances, predictions
from tests.references.text_models import hugging_face, tf_pretraining
from zoo.data.instances import next_sentence_pairs
from zoo.training.optimizers import BertAdam, decay_groups
from zoo.training.schedules import warmup_then_decay


def masking(case: Case) -> dict[str, Any]:
    given, config = case.given, case.config
    vocabulary = config["vocab_words"]
    items = [
        predictions(
            bert_masking(
                item["tokens"],
                item["masked_lm_prob"],
                item["max_predictions_per_seq"],
                item["do_whole_word_mask"],
                vocabulary,
                random.Random(item["seed"]),
            )
        )
        for item in given["items"]
    ]
    rng = random.Random(given["seed"])

    def mask(tokens: list[str]) -> dict[str, Any]:
        masked = bert_masking(
            tokens,
            config["masked_lm_prob_documents"],
            config["max_predictions_per_seq_documents"],
            config.get("do_whole_word_mask", False),
            vocabulary,
            rng,
        )
        return predictions(masked, "tokens")

    documents = given["documents"]
    made = [
        instance
        for index in range(len(documents))
        for instance in instances(
            next_sentence_pairs(documents, index, given["max_seq_length"], rng, config["short_seq_prob"]), mask
        )
    ]
    return {"items": items, "instances": made}


def adam_weight_decay(case: Case) -> dict[str, Tensor]:
    config = case.config
    rate = config["init_lr"]
    schedule = warmup_then_decay(rate, config["num_train_steps"], config["num_warmup_steps"])
    return train(case, lambda named: BertAdam(decay_groups(named.items(), 0.01), lr=rate), schedule, rate)


ADAPTERS: dict[str, Adapter] = {
    "transformers.Bert": hugging_face,
    "modeling.BertModel": tf_pretraining("tf-bert", "next_sentence", "next_sentence"),
    "create_pretraining_data": masking,
    "optimization.create_optimizer": adam_weight_decay,
}
