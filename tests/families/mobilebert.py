"""MobileBERT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.mobilebert import MobileBertConfig

LAYOUT = "hf-mobilebert"
SMALL = {"bottleneck_size": 6, "num_feed_forwards": 2, "norm": "layer_norm_hf"}
CLASSES = {
    None: "MobileBertModel",
    "masked-lm": "MobileBertForMaskedLM",
    "pretraining": "MobileBertForPreTraining",
    "next-sentence": "MobileBertForNextSentencePrediction",
    "sequence-classification": "MobileBertForSequenceClassification",
    "token-classification": "MobileBertForTokenClassification",
    "question-answering": "MobileBertForQuestionAnswering",
    "multiple-choice": "MobileBertForMultipleChoice",
}


def tiny_config(draw: st.DrawFn) -> MobileBertConfig:
    """What transformers can build and uses whole; the rest is in tests/models/test_mobilebert.py.

    Its class builds tensors that nothing reads where attention is in the bottleneck though query
    and key would share one, and where the token table is as wide as the model; and it cannot run
    attention over the full states unless the bottleneck has their width.
    """
    fields = encoder_fields(draw)
    wiring = draw(st.sampled_from(["none", "shared", "narrow", "full"]))
    inner = fields["hidden_size"]
    if wiring in ("shared", "narrow"):
        fields["hidden_size"] = draw(st.integers(2, 9))
    fields["hidden_size"] = max(fields["hidden_size"], fields["num_heads"] * 2 if wiring in ("none", "full") else 2)
    return MobileBertConfig(
        **fields,
        embedding_size=draw(st.integers(1, fields["hidden_size"] - 1)),
        num_feed_forwards=draw(st.integers(1, 4)),
        bottleneck=wiring != "none",
        bottleneck_size=fields["hidden_size"] if wiring == "full" else inner,
        bottleneck_attention=wiring == "narrow",
        shared_key_query=wiring == "shared",
        trigram=draw(st.booleans()),
        norm=draw(st.sampled_from(["no_norm", "layer_norm_hf"])),
        pooler_dense=draw(st.booleans()),
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(text_batches(config, **options))


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
