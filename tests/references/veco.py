"""VECO for translation: fairseq's model, whose positions count tokens and whose sources are padded on
the left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references import text_models
from tests.references.case import Adapter, Case, Output
from zoo.tasks.losses import token_cross_entropy

PAD = 1


def places(real: Tensor) -> Tensor:
    """(batch, length) positions that count tokens, 0 at padding."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


def translation(case: Case) -> dict[str, Any]:
    """States of all blocks, word scores and the summed loss."""
    model = text_models.load(case, "conditional-generation", "fairseq-veco")
    source, previous = case.inputs["src_tokens"], case.inputs["prev_output_tokens"]
    read, written = source != PAD, previous != PAD
    given: dict[str, Any] = {}
    if "target" in case.inputs:
        given["labels"] = case.inputs["target"].masked_fill(case.inputs["target"] == PAD, -100)
    with torch.no_grad():
        result = model(
            source,
            read,
            places(read),
            decoder_input_ids=previous,
            decoder_attention_mask=written,
            decoder_position_ids=places(written),
            output_hidden_states=True,
            **given,
        )
    decoded = result.encoded
    outputs: dict[str, Any] = {
        "encoder_out": _time_first(decoded.encoder.last_hidden_state, read),
        "decoder_features": text_models.at_real(decoded.last_hidden_state, written),
        "logits": text_models.at_real(result.logits, written),
    }
    # the encoder's list begins behind its first block, the decoder's with its embeddings
    states = {"encoder_states": decoded.encoder.hidden_states[1:], "decoder_inner_states": decoded.hidden_states}
    for (name, kept), real in zip(states.items(), (read, written), strict=True):
        outputs |= {f"{name}.{depth}": _time_first(x, real) for depth, x in enumerate(kept)}
    if given:
        outputs["nll_sum"] = token_cross_entropy(result.logits, given["labels"]) * (given["labels"] != -100).sum()
    return outputs


def _time_first(x: Tensor, real: Tensor) -> Output:
    return Output(x.transpose(0, 1), where=real.T)


ADAPTERS: dict[str, Adapter] = {"fairseq.models.veco": translation, "nlg": translation}
