"""XLM: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from tests.strategies import MASKS, Batch, encoder_fields, text_batches
from zoo.models.xlm import XlmConfig

LAYOUT = "hf-xlm"
CLASSES = {
    None: "XLMModel",
    "masked-lm": "XLMWithLMHeadModel",
    "sequence-classification": "XLMForSequenceClassification",
    "token-classification": "XLMForTokenClassification",
    "question-answering": "XLMForQuestionAnsweringSimple",
}
SMALL = {"num_languages": 2, "pad_token_id": 0, "embedding_range": 0.05}
NAMES = ("en", "fr", "de", "ru")


def tiny_config(draw: st.DrawFn) -> XlmConfig:
    fields = encoder_fields(draw)
    shared = {
        name: fields[name]
        for name in XlmConfig.field_names()
        if name in fields and name not in ("activation", "pooler")
    }
    languages = draw(st.integers(1, 4))
    return XlmConfig(
        **{**shared, "classifier_dropout": 0.2},
        activation=draw(st.sampled_from(["gelu", "relu"])),
        num_languages=languages,
        languages=NAMES[:languages] if draw(st.booleans()) else (),
        language_embeddings=draw(st.booleans()),
        sinusoidal_positions=draw(st.booleans()),
        causal=draw(st.booleans()),
        pooler=False,
        pad_token_id=0,
    )


def inputs(draw: st.DrawFn, config: Any, kinds: tuple[str, ...] = MASKS, **options: Any) -> Batch:
    """A causal model of transformers looks at padding to the left of a token; ours never does, so
    there padding stands on the right.
    """
    if config.causal:
        kinds = tuple(kind for kind in kinds if kind not in ("left", "holes")) or ("right",)
    batch = draw(text_batches(_Segmentless(config), kinds=kinds, **options))
    first = next(x for name, x in batch.inputs.items() if name in ("input_ids", "inputs_embeds"))
    given = {name: x for name, x in batch.inputs.items() if name != "token_type_ids"}
    if config.tells_languages:
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        given["language_ids"] = torch.randint(config.num_languages, first.shape[:2], generator=generator)
    return replace(batch, inputs=given)


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face, in_float64

    theirs = in_float64(hugging_face(LAYOUT, CLASSES[task], config, options))
    forward = theirs.forward

    def renamed(**named: Any) -> Any:
        """The port calls languages ``langs``."""
        return forward(**{"langs" if name == "language_ids" else name: value for name, value in named.items()})

    theirs.forward = renamed
    return theirs


class _Segmentless:
    """A config as `text_batches` reads it, with one segment."""

    num_segments = 1

    def __init__(self, config: Any) -> None:
        self.vocab_size, self.hidden_size, self.max_positions = (
            config.vocab_size,
            config.hidden_size,
            config.max_positions,
        )
