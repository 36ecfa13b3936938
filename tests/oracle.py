"""Asking the transformers library: its classes built for a config of ours, and our weights on their
way to it and back.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

from zoo.formats.archive import Info
from zoo.maps import layouts
from zoo.tasks.base import TaskModel, canonical_state

PROBLEMS = {
    "regression": "regression",
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
}


def hugging_face(layout: str, class_name: str, config: Any, options: Mapping[str, Any]) -> nn.Module:
    """A class of transformers for a config of ours, in float64, with the attention that is written
    out.
    """
    cls = getattr(transformers, class_name)
    keymap = layouts.load(layout)
    foreign = {
        **keymap.config_back(config.to_dict(), keymap.architectures[class_name]),
        "num_labels": options.get("num_labels", 2),
    }
    if options.get("problem_type"):
        foreign["problem_type"] = PROBLEMS[options["problem_type"]]
    theirs = cls.config_class.from_dict(foreign)
    theirs._attn_implementation = "eager"
    bare = "add_pooling_layer" in inspect.signature(cls).parameters
    return (cls(theirs, add_pooling_layer=config.pooler) if bare else cls(theirs)).double().eval()


def in_float64(theirs: nn.Module) -> nn.Module:
    """A class of transformers that takes its softmax or its loss in float32 whatever the dtype, by
    ``Tensor.float``: here that keeps float64.
    """
    forward = theirs.forward

    def wide(**named: Any) -> Any:
        with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):
            return forward(**named)

    theirs.forward = wide
    return theirs


def config_class(class_name: str) -> Any:
    """The config class of a class of transformers."""
    return getattr(transformers, class_name).config_class


def way_back(layout: str, model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A model's tensors (or others under the same names) in a foreign layout, stored copies of tied
    ones included.
    """
    ours = dict(canonical_state(model)) if tensors is None else dict(tensors)
    infos = {name: Info(tuple(tensor.shape), "F64") for name, tensor in ours.items()}
    heads = model.heads if isinstance(model, TaskModel) else {}
    plan = layouts.load(layout).back(infos, model.config.to_dict(), tied_heads=tuple(heads), ties=True)
    return plan.run(lambda name: ours[name])


def taught(layout: str, theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Their class with our weights, loaded strictly."""
    theirs.load_state_dict(way_back(layout, ours), strict=True)
    return theirs


def asked(theirs: nn.Module, inputs: Mapping[str, Tensor], *, gradients: bool = False, **labels: Any) -> Any:
    """Their result on our inputs; they take integer masks only."""
    given = {name: x.long() if name == "attention_mask" and x.dim() == 2 else x for name, x in inputs.items()}
    with torch.set_grad_enabled(gradients):
        return theirs(**given, **labels)
