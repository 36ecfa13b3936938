"""SpanBERT (facebookresearch/SpanBERT): pre-training with both objectives, and the maskings with
their recorded draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.references.case import Adapter, Case
from tests.references.text_models import at_real, load
from zoo.data.knowledge_masking import SpanBertMasking
from zoo.data.masking import IGNORED, wordpiece_start


def pretraining(case: Case) -> dict[str, Any]:
    """A target 0 is none; padding is what has the padding's id."""
    inputs, config = case.inputs, case.config
    model = load(case, "pretraining", "fairseq-spanbert", span_loss_weight=config.get("pair_loss_weight", 1.0))
    pad = config.get("pad", 0)
    real = inputs["src_tokens"] != pad
    labels, pair_labels = (
        inputs[name].masked_fill(inputs[name] == pad, IGNORED) for name in ("lm_target", "pair_targets")
    )
    given = {"pairs": inputs["pairs"], "labels": labels, "pair_labels": pair_labels}
    if "next_sentence" in model.heads and "sentence_target" in inputs:
        given["next_sentence_label"] = inputs["sentence_target"].flatten()
    with torch.no_grad():
        result = model(inputs["src_tokens"], real, inputs.get("segment_labels"), output_hidden_states=True, **given)
    words, guessed = result.prediction_logits, result.scores["span_boundary"]
    word_count, pair_count = (labels != IGNORED).sum(), (pair_labels != IGNORED).sum() + 1
    outputs = {
        **{f"hidden.{i}": at_real(state, real) for i, state in enumerate(result.encoded.hidden_states)},
        "lm_logits": at_real(words, real),
        "pair_logits": guessed,
        "loss": result.loss,
        "lm_loss_sum": result.losses["masked_lm"] * word_count,
        "pair_loss_sum": torch.nn.functional.cross_entropy(
            guessed.flatten(0, 2), pair_labels.flatten(), reduction="sum"
        ),
        "ntokens": word_count,
        "npairs": pair_count,
    }
    if result.seq_relationship_logits is not None:
        outputs |= dict.fromkeys(("nsp_logits", "sentence_logits", "seq_relationship"), result.seq_relationship_logits)
        outputs["pooled"] = result.encoded.pooler_output
    if "next_sentence" in result.losses:
        outputs |= {"nsp_loss": result.losses["next_sentence"]}
        outputs |= {"sentence_loss_sum": result.losses["next_sentence"] * len(result.seq_relationship_logits)}
    return outputs


class Replayed:
    """The recorded draws in their order; the coin before an anchor decides about tags, which are
    not used.
    """

    def __init__(self, draws: list[list[Any]]):
        self.draws = iter(draws)

    def _next(self, kind: str) -> Any:
        recorded, value = next(self.draws)
        if recorded == "anchor_coin":
            recorded, value = next(self.draws)
        if recorded != kind:
            raise AssertionError(f"the reference drew {recorded!r} where we draw {kind!r}")
        return value

    def length(self, lengths: Sequence[int], weights: Sequence[float]) -> int:
        return int(self._next("span_length"))

    def anchor(self, count: int) -> int:
        return int(self._next("anchor"))

    def positions(self, count: int, chosen: int) -> list[int]:
        found = list(self._next("positions"))
        assert len(found) == chosen
        return found

    def fate(self) -> float:
        return float(self._next("replace"))

    def token(self, corpus: Sequence[int]) -> int:
        return int(self._next("random_token"))


def masking(case: Case) -> dict[str, Any]:
    given = case.given
    vocabulary = given["vocab"]
    cls, sep, mask = (vocabulary.index(word) for word in ("[CLS]", "[SEP]", "[MASK]"))
    scheme = SpanBertMasking(
        mask_id=mask,
        starts=lambda token: wordpiece_start(vocabulary[token]),
        ratio=given["mask_ratio"],
        geometric_p=given["geometric_p"],
        shortest=given["span_lower"],
        longest=given["span_upper"],
        per_span=given["replacement_method"] == "span",
        outer=given["endpoints"] == "external",
        max_targets=given["max_pair_targets"],
    )
    draws = Replayed(given["draws"])
    corrupt = scheme.random_tokens if given["scheme"] == "random" else scheme
    done = [corrupt(sentence, given["corpus_tokens"], draws) for sentence in given["sentences"]]
    batch = scheme.batch(done, cls, sep, vocabulary.index("[PAD]"))
    labels, pair_labels = (batch[name].masked_fill(batch[name] == IGNORED, 0) for name in ("labels", "pair_labels"))
    return {
        "examples": [
            {
                "masked": one.tokens,
                "target": one.targets,
                "pair_targets": None if given["scheme"] == "random" else one.pairs,
            }
            for one in done
        ],
        "length_distribution": scheme.weights,
        "batch": {
            "src_tokens": batch["input_ids"],
            "segment_labels": torch.zeros_like(batch["input_ids"]),
            "pairs": batch["pairs"],
            "lm_target": labels,
            "pair_targets": pair_labels,
        },
    }


ADAPTERS: dict[str, Adapter] = {
    "pair_bert": pretraining,
    "masking": masking,
    "span_bert_dataset": masking,
}
