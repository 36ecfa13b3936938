"""CLIP's models as OpenAI, open_clip and the Hugging Face library write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tests.references.case import Case, Output
from zoo.formats.archive import Info
from zoo.maps import layouts
from zoo.registry import variants as registry
from zoo.tasks.contrast import matched_loss

BLOCKS = "encoder.blocks."


def load(case: Case, layout: str) -> Any:
    """Ours with the case's weights."""
    return zoo.load(case.weights, config=case.config, layout=layout).eval()


@contextmanager
def watched(model: nn.Module, **parts: str) -> Iterator[dict[str, Tensor]]:
    """What the parts named by paths give, by the names on the left."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    hooks = [model.get_submodule(path).register_forward_hook(keep(name)) for name, path in parts.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def blocks_of(tower: Any, name: str, prefix: str = "block") -> dict[str, str]:
    """``text.block0`` and so on -> the paths of a tower's blocks."""
    return {f"{name}.{prefix}{i}": f"{name}.{BLOCKS}{i}" for i in range(len(tower.encoder.blocks))}


def joined(out: Any) -> dict[str, Tensor]:
    """What compares the towers."""
    return {
        "logits_per_image": out.logits_per_image,
        "logits_per_text": out.logits_per_text,
        "loss": matched_loss(out.logits_per_image),
    }


def is_resnet(case: Case) -> bool:
    vision = case.config.get("vision_cfg", {})
    return isinstance(case.config.get("vision_layers", vision.get("layers")), list)


def openai(case: Case) -> dict[str, Any]:
    """clip.model.CLIP: no mask, so that what follows the end token has states too."""
    resnet = is_resnet(case)
    model = load(case, "openai-clip-resnet" if resnet else "openai-clip")
    ids, pixels = case.inputs["text"], case.inputs["image"]
    parts = blocks_of(model.text, "text")
    if resnet:
        parts |= {"vision.stem": "image.stem"}
        parts |= {f"vision.layer{i + 1}": f"image.encoder.blocks.{i}" for i in range(4)}
    else:
        parts |= {f"vision.block{i}": f"image.{BLOCKS}{i}" for i in range(len(model.image.encoder.blocks))}
        parts |= {"vision.ln_pre": "image.embeddings.norm"}
    with torch.no_grad(), watched(model, **parts) as seen:
        out = model(ids, torch.ones_like(ids), pixel_values=pixels)
        return {
            **seen,
            **joined(out),
            "text.ln_final": out.text.last_hidden_state,
            "text_features": model.encode_text(ids),
            "image_features": model.encode_image(pixels),
            "logit_scale_exp": model.scale,
        }


def open_clip(case: Case) -> dict[str, Any]:
    """open_clip.model.CLIP."""
    model = load(case, "open-clip-resnet" if is_resnet(case) else "open-clip")
    ids, pixels = case.inputs["text"], case.inputs["image"]
    with torch.no_grad():
        out = model(ids, pixel_values=pixels)
        return {
            **joined(out),
            "image_features_raw": model.encode_image(pixels),
            "text_features_raw": model.encode_text(ids),
            "image_features": out.image_embeds,
            "text_features": out.text_embeds,
            "logit_scale": model.scale,
        }


def hugging_face(case: Case) -> dict[str, Any]:
    """transformers.CLIPModel; its pooled outputs have gone through the projections."""
    model = load(case, "hf-clip")
    inputs = dict(case.inputs)
    mask = inputs.pop("attention_mask", None)
    ids = inputs["input_ids"]
    mask = torch.ones_like(ids) if mask is None else mask
    real = mask.bool()
    last = len(model.text.encoder.blocks)
    with torch.no_grad(), zoo.packing(False):
        out = model(**inputs, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        with watched(model, raw=f"text.{BLOCKS}{last - 1}") as seen:  # ours gives the last one normalized
            features = model.encode_text(ids, mask)
        states = {f"text.hidden_states.{j}": state for j, state in enumerate(out.text.hidden_states)}
        states[f"text.hidden_states.{last}"] = seen["raw"]
        found: dict[str, Any] = {name: Output(state, where=real) for name, state in states.items()}
        found |= {f"vision.hidden_states.{j}": state for j, state in enumerate(out.image.hidden_states)}
        for j, probabilities in enumerate(out.text.attentions):
            found[f"text.attentions.{j}"] = Output(
                probabilities, where=real[:, None, :].expand(probabilities.shape[:3])
            )
        found |= {f"vision.attentions.{j}": each for j, each in enumerate(out.image.attentions)}
        return {
            **found,
            **joined(out),
            "text_embeds": out.text_embeds,
            "image_embeds": out.image_embeds,
            "text.last_hidden_state": Output(out.text.last_hidden_state, where=real),
            "vision.last_hidden_state": out.image.last_hidden_state,
            "text.pooler_output": features,
            "vision.pooler_output": model.encode_image(inputs["pixel_values"]),
        }


NAMES = {"ViT-L/14@336px": "clip-vit-l-14-336"}


def shapes(case: Case) -> dict[str, Any]:
    """The names and shapes of OpenAI's files, written from ours, and the parameter counts."""
    found = {}
    for name, sizes in case.given.items():
        variant = NAMES.get(name, "clip-" + name.lower().replace("/", "-"))
        layout = layouts.load("openai-clip-resnet" if isinstance(sizes["vision_layers"], list) else "openai-clip")
        model = zoo.create(variant, device="meta", **overrides(layout, sizes, variant))
        infos = {key: Info(tuple(tensor.shape), "F32") for key, tensor in model.state_dict().items()}
        written = layout.back(infos, model.config.to_dict(), ties=True).outputs
        named = {key: list(info.shape) for key, info in written.items()}
        # a scalar beside each batch norm counts batches; ours reads and writes none
        named |= {key.replace("running_mean", "num_batches_tracked"): [] for key in written if "running_mean" in key}
        found[name] = {"parameter_count": model.num_parameters(), "state_dict": named}
    return found


def overrides(layout: Any, sizes: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The sizes of a case that differ from the variant's."""
    own = registry.config(variant).to_dict()
    said = layout.config_forward({key: value for key, value in sizes.items() if value is not None})
    return {field: value for field, value in said.items() if own[field] != value}
