"""ALBERT (google-research/albert): data and function cases."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.optimizers import train
from tests.references.pretraining_data import CLS, MASK, SEP, instances, predictions
from tests.references.text_models import hugging_face, tf_pretraining
from zoo.data.instances import next_sentence_pairs, sentence_order_pairs
from zoo.data.masking import (
    Masked,
    NGrams,
    permute,
    prediction_budget,
    replace_tokens,
    sentencepiece_start,
    word_units,
    wordpiece_start,
)
from zoo.training.optimizers import BertAdam, Lamb, decay_groups
from zoo.training.schedules import warmup_then_decay

Uniform = Callable[[], float]


def n_gram_masking(
    tokens: list[str],
    options: dict[str, Any],
    probability: float,
    vocabulary: list[str],
    rng: random.Random,
    uniform: Uniform,
) -> dict[str, Any]:
    """The reference shuffles its candidates a second time after masking, for the permutation that
    is usually off.
    """
    units = word_units(tokens, (CLS, SEP), wordpiece_start if options["do_whole_word_mask"] else None)
    boundary = [int(token in (CLS, SEP) or wordpiece_start(token)) for token in tokens]
    if probability == 0:
        return predictions(Masked(list(tokens), [], [])) | {"token_boundary": boundary}
    budget = prediction_budget(len(tokens), probability, options["max_predictions_per_seq"])
    n_grams = NGrams(options["ngram"], longer=not options["favor_shorter_ngram"])
    order = n_grams.starts(units, rng)
    chosen = n_grams.choose(units, order, budget, uniform)
    masked = replace_tokens(tokens, chosen, MASK, vocabulary, rng)
    rng.shuffle(order)
    if options.get("do_permutation"):
        moved = permute(masked.tokens, n_grams.choose(units, order, budget, uniform, taken=chosen), rng)
        labels = dict(zip(masked.positions, masked.labels, strict=True)) | dict(
            zip(moved.positions, moved.labels, strict=True)
        )
        masked = Masked(moved.tokens, sorted(labels), [labels[p] for p in sorted(labels)])
    return predictions(masked) | {"token_boundary": boundary}


def masking(case: Case) -> dict[str, Any]:
    given, config = case.given, case.config
    vocabulary = config["vocab_words"]
    items = [
        n_gram_masking(
            item["tokens"],
            config | item,
            item["masked_lm_prob"],
            vocabulary,
            random.Random(item["python_seed"]),
            numpy.random.RandomState(item["numpy_seed"]).random_sample,
        )
        for item in given["items"]
    ]
    rng, uniform = random.Random(given["seed"]), numpy.random.RandomState(given["seed"]).random_sample
    options = config | {"max_predictions_per_seq": config["max_predictions_per_seq_documents"]}

    def mask(tokens: list[str]) -> dict[str, Any]:
        made = n_gram_masking(tokens, options, config["masked_lm_prob_documents"], vocabulary, rng, uniform)
        return {"tokens": made.pop("output_tokens")} | made

    pairs = next_sentence_pairs if config["random_next_sentence"] else sentence_order_pairs
    documents = given["documents"]
    made = [
        instance
        for index in range(len(documents))
        for instance in instances(pairs(documents, index, given["max_seq_length"], rng, config["short_seq_prob"]), mask)
    ]
    answers = {"items": items, "instances": made}
    if "sentencepiece_pieces" in given:
        answers["sentencepiece_start_pieces"] = [
            [piece, sentencepiece_start(piece)] for piece in given["sentencepiece_pieces"]
        ]
    return answers


def optimizer(case: Case) -> dict[str, Tensor]:
    config = case.config
    rate = config["init_lr"]
    schedule = warmup_then_decay(
        rate,
        config["num_train_steps"],
        config["num_warmup_steps"],
        config.get("poly_power", 1.0),
        config.get("start_warmup_step", 0),
    )
    kind = Lamb if config.get("optimizer", "lamb") == "lamb" else BertAdam
    return train(case, lambda named: kind(decay_groups(named.items(), 0.01), lr=rate), schedule, rate)


ADAPTERS: dict[str, Adapter] = {
    "transformers.Albert": hugging_face,
    "modeling.AlbertModel": tf_pretraining("tf-albert", "sentence_order", "sentence_order"),
    "create_pretraining_data": masking,
    "optimization.create_optimizer": optimizer,
}
