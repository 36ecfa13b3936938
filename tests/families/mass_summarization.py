"""MASS for summaries: BART's blocks: its small configs and its inputs."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families import mbart
from tests.families.mbart import inputs, labels, small_batch, states
from zoo.models.mass_summarization import MassSummarizationConfig

__all__ = ["SMALL", "inputs", "labels", "small_batch", "states", "tiny_config"]


SMALL = {**mbart.SMALL, "activation_dropout": 0.0}


def tiny_config(draw: st.DrawFn) -> MassSummarizationConfig:
    fields = {**mbart.tiny_config(draw).to_dict(), "start_token_id": 2, "end_token_id": 2}
    return MassSummarizationConfig(**{**fields, "pad_token_id": draw(st.sampled_from([0, 1]))})
