"""mBART: its small configs and its inputs; tests/models/test_mbart.py asks transformers about
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import MASKS, Batch, attention_masks, encoder_fields
from zoo.models.mbart import MbartConfig

SMALL = {"decoder_num_layers": 2, "decoder_num_heads": 4, "decoder_intermediate_size": 9}


def tiny_config(draw: st.DrawFn) -> MbartConfig:
    fields = encoder_fields(draw)
    own = set(MbartConfig.field_names()) - {"norm_eps"}
    heads = draw(st.sampled_from([n for n in range(1, fields["hidden_size"] + 1) if fields["hidden_size"] % n == 0]))
    return MbartConfig(
        **{name: value for name, value in fields.items() if name in own},
        decoder_num_layers=draw(st.integers(1, 3)),
        decoder_num_heads=heads,
        decoder_intermediate_size=draw(st.integers(1, 12)),
        scale_embeddings=draw(st.booleans()),
        activation_dropout=0.2,
    )


def inputs(draw: st.DrawFn, config: Any, kinds: tuple[str, ...] = MASKS, least: int = 1, **options: Any) -> Batch:
    """``plain``: without position ids, which the other library does not take."""
    rows = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    given: dict[str, Tensor] = {}
    for prefix in ("", "decoder_"):
        length = draw(st.integers(1, min(7, config.max_positions)))
        given[f"{prefix}input_ids"] = torch.randint(2, config.vocab_size, (rows, length), generator=generator)
        mask = draw(attention_masks(rows, length, kinds, least))
        if mask is not None:
            given[f"{prefix}attention_mask"] = mask
        if not options.get("plain") and draw(st.booleans()):
            given[f"{prefix}position_ids"] = torch.randint(config.max_positions, (rows, length), generator=generator)
    return Batch(given)


def small_batch() -> Batch:
    generator = torch.Generator().manual_seed(4)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    given = {"input_ids": torch.randint(2, 19, (4, 6), generator=generator), "attention_mask": mask}
    given |= {
        "decoder_input_ids": torch.randint(2, 19, (4, 5), generator=generator),
        "decoder_attention_mask": mask[[2, 0, 3, 1], :5],
    }
    return Batch(given)


def states(output: Any) -> Mapping[str, Tensor]:
    return {"attention_mask": output.encoder.last_hidden_state, "decoder_attention_mask": output.last_hidden_state}


def labels(task: str, model: Any, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    real = batch.real("decoder_attention_mask")
    drawn = torch.randint(2, model.config.vocab_size, real.shape, generator=torch.Generator().manual_seed(seed))
    return {"labels": drawn.masked_fill(~real, -100)}
