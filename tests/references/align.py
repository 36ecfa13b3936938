"""ALIGN: transformers.AlignModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case, Output
from zoo.tasks.contrast import matched_loss


def grids(cells: Tensor, likes: tuple[int, int]) -> Tensor:
    """Cells row by row -> (batch, channels, rows, columns)."""
    return cells.mT.unflatten(2, likes)


def sides(model: Any, pixels: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of what enters the first block and leaves each."""
    found: list[tuple[int, int]] = []
    parts = [model.image.stem, *model.image.encoder.blocks]
    hooks = [part.register_forward_hook(lambda *given: found.append(tuple(given[2].shape[2:]))) for part in parts]
    try:
        model.image.grid(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def model(case: Case) -> Mapping[str, Any]:
    ours = zoo.load(case.weights, config=case.config, layout="hf-align")
    inputs = dict(case.inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    with torch.no_grad(), zoo.packing(False):
        out = ours(**inputs, output_hidden_states=True, output_attentions=True)
        shapes = sides(ours, inputs["pixel_values"])
    real = {"where": mask}
    found: dict[str, Any] = {
        name: out[name] for name in ("text_embeds", "image_embeds", "logits_per_image", "logits_per_text")
    }
    found |= {f"text.hidden_states.{j}": Output(x, **real) for j, x in enumerate(out.text.hidden_states)}
    for j, probabilities in enumerate(out.text.attentions):
        found[f"text.attentions.{j}"] = Output(probabilities, where=mask[:, None, :, None].expand_as(probabilities))
    found |= {
        f"vision.hidden_states.{j}": grids(x, shape)
        for j, (x, shape) in enumerate(zip(out.image.hidden_states, shapes, strict=True))
    }
    return found | {
        "text.last_hidden_state": Output(out.text.last_hidden_state, **real),
        "vision.last_hidden_state": grids(out.image.last_hidden_state, shapes[-1]),
        "vision.pooler_output": out.image.pooler_output,
        "loss": matched_loss(out.logits_per_text, smoothing=ours.smoothing),
    }


ADAPTERS: dict[str, Adapter] = {"transformers.Align": model}
