"""`zoo.create`: a registered model, with random weights or a checkpoint's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.images import find_images
from zoo.checkpoints.load import filled, open_to_load, split_overrides
from zoo.checkpoints.locate import record_of
from zoo.checkpoints.warm_start import warm_start
from zoo.errors import ConfigError
from zoo.formats.archive import torch_dtype
from zoo.models.base.model import bare_model
from zoo.registry import variants as registry
from zoo.registry.records import Record
from zoo.registry.tasks import require_fit
from zoo.tasks.base import offers_of_class
from zoo.techniques.base import Technique, apply
from zoo.techniques.blueprint import Blueprint


def create(
    name: str,
    *,
    pretrained: bool | str | os.PathLike[str] | Mapping[str, Tensor] = False,
    init_from: str | os.PathLike[str] | None = None,
    task: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    generator: torch.Generator | None = None,
    layout: str | None = None,
    techniques: Sequence[Technique] = (),
    **overrides: Any,
) -> Any:
    """Build a registered model, with a head where ``task`` names one.

    name: a variant, or a variant and a checkpoint tag after a dot. pretrained: True for the tag's
    public checkpoint (the variant's default tag where the name has none), or a file, a folder,
    ``"hub:org/name@revision"``, or tensors by their foreign names; what has no config beside it
    takes the tag's, where the name has one. overrides: config fields and the task's options
    (``num_labels``); on top of loaded weights only those fields that shape no weight. device: may
    be "meta". dtype: torch's, or its name; random weights are float32 unless you say, loaded ones come
    as stored.
    generator: draws the random weights. techniques: applied in order, see `zoo.apply`. init_from:
    another family's checkpoint (``"bert-base.google"``, a file or folder) that fills what it can by
    declared rules; ``model.load_report`` says what stays random.

    Raises UnknownNameError for a name, tag, task or field that does not exist (with the closest),
    ConfigError for values that contradict each other or the weights, TechniqueError where a
    technique finds no parts, TaskError where the task does not fit, CheckpointError for a file that
    is not this model, FetchError where it can't be had.
    """
    dtype = torch_dtype(dtype)
    variant, _ = registry.resolve(name)
    model_class = variant.model_class()
    if task is not None:
        require_fit(task, offers_of_class(model_class), variant.name)
    fields, options = split_overrides(overrides, model_class, task)
    if pretrained is not False and init_from is not None:
        raise ConfigError(
            "pretrained= fills the whole model and init_from= starts a part of it from another family; give one of them"
        )
    if pretrained is not False:
        source = record_of(name) if pretrained is True else pretrained
        named = source.name if isinstance(source, Record) else name
        with open_to_load(source, name=named, layout=layout) as checkpoint:
            loaded = filled(checkpoint, task, overrides, device=device, dtype=dtype, generator=generator)
        return apply(loaded, *techniques, generator=generator)
    config = model_class.Config.from_dict(registry.config_values(name)).replace(**fields)
    blueprint = Blueprint(model_class, config, variant.name, task, options, tuple(techniques))
    module = blueprint.drawn(device, dtype, generator)
    if registry.image_values(name):
        bare_model(module).find_images = module.find_images = partial(find_images, name)
    module.load_report = None if init_from is None else warm_start(module, variant, init_from)
    return module
