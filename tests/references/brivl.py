"""BriVL: its two towers, its steps with queues and momentum copies, and what its image tower reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import zoo
from tests.oracle import way_back
from tests.references.case import Adapter, Case
from tests.references.images import brivl_grid
from zoo.registry.tasks import task_spec
from zoo.tasks.base import check_options
from zoo.tasks.tower_queues import ImageTextMomentum

LEARNED = "learnable."


def loaded(case: Case, ending: str = "") -> Any:
    """The towers, or their momentum copies ("_mom")."""
    c, tensors = case.config, {}
    for name, tensor in case.weights.items():
        for tower in ("imgencoder", "textencoder"):
            if name.startswith(f"{LEARNED}{tower}{ending}."):
                tensors[name.replace(f"{tower}{ending}.", f"{tower}.", 1).removeprefix(LEARNED)] = tensor
    width, depth = c["cnn_multipliers"]
    cnn = {"channel_multiplier": width, "depth_multiplier": depth}
    told = {"MODEL": c["MODEL"], "bert": c["bert"], "cnn": cnn}
    if "ffn_width" in c:
        told["ffn_width"] = c["ffn_width"]
    return zoo.load(tensors, config=told, layout="brivl").float()


def batch(case: Case, ending: str = "") -> dict[str, Tensor]:
    names = {
        "input_ids": "texts",
        "attention_mask": "maskTexts",
        "pixel_values": "imgFea",
        "visual_boxes": "image_boxs",
        "visual_mask": "maskImages",
    }
    found = {ours: case.inputs[theirs + ending] for ours, theirs in names.items()}
    return found | {name: found[name].long() for name in ("attention_mask", "visual_mask")}


def extract(case: Case) -> Mapping[str, Any]:
    model, given = loaded(case), batch(case)
    boxed: list[Tensor] = []
    hook = model.image.box.register_forward_hook(lambda *call: boxed.append(call[2][..., 0].mT))
    with torch.no_grad(), zoo.packing(False):
        out = model(**given, output_hidden_states=True)
        image = model.encode_image(**{name: given[name] for name in model.image.inputs})
        text = model.encode_text(given["input_ids"], given["attention_mask"])
        features = model.image.backbone.grid(given["pixel_values"])
    hook.remove()
    return {
        "feature_map": features,
        "roi_grid_pool": boxed[0],
        "image_encoder": image,
        "text_backbone": out.text.hidden_states[model.config.num_layers],
        "text_encoder": text,
        "image_feature": out.image_embeds,
        "text_feature": F.normalize(text, dim=1),
    }


def steps(case: Case) -> Mapping[str, Any]:
    c = case.config["MODEL"]
    spec = task_spec("image-text-momentum")
    named = {"temperature": c["TEMPERATURE"], "queue_size": c["QUEUE_SIZE"], "momentum": c["MOMENTUM"]}
    model: Any = ImageTextMomentum.build(loaded(case), check_options(spec, named), spec.name)
    model.start()
    model.eval().training = True  # its towers as in evaluation
    model.twin.twin.load_state_dict(loaded(case, "_mom").state_dict())
    for side, name in (("image", "img_queue"), ("text", "text_queue")):
        model.queue(side).keys.copy_(case.weights[name].T)
        model.queue(side).pointer.copy_(case.weights[f"{name}_ptr"])
    outputs: dict[str, Any] = {}
    for step in range(sum(name.startswith("imgFea.") for name in case.inputs)):
        model.zero_grad()
        model.before_step()
        out = model(**batch(case, f".{step}"))
        out.loss.backward()
        model.after_step([out])
        tensors = dict(model.model.named_buffers()) | {n: p.grad for n, p in model.model.named_parameters()}
        gradients, copies = theirs(model.model, tensors), theirs(model.model, model.twin.twin.state_dict())
        outputs[f"loss.{step}"] = out.loss
        outputs |= {f"grad.{step}.{LEARNED}{name}": x for name, x in gradients.items()}
        for name, x in copies.items():
            tower, rest = name.split(".", 1)
            outputs[f"after_momentum.{step}.{LEARNED}{tower}_mom.{rest}"] = x
        for side, name in (("image", "img_queue"), ("text", "text_queue")):
            outputs[f"{name}.{step}"] = model.queue(side).keys.T.clone()
            outputs[f"{name}_ptr.{step}"] = model.queue(side).pointer.clone()
    return outputs


def theirs(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the towers by the reference's names."""
    return way_back("brivl", model, {name: x.detach().clone() for name, x in tensors.items()})


ADAPTERS: dict[str, Adapter] = {
    "datasets.ImageData.__getitem__": brivl_grid,
    "models.vl_model.VL_model.extract": extract,
    "models.vl_model.VL_model.forward": steps,
}
