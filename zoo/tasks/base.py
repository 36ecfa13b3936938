"""A model with heads for a task: parameters under ``model.`` and ``heads.``; in files the model's
names stand bare.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError, TaskError, unknown
from zoo.layers.embeddings import FactorizedTable, NarrowTable
from zoo.layers.init import initialise
from zoo.models.base.model import Model
from zoo.registry.tasks import TaskSpec, offered, require_fit, spec_for


class TaskModel(nn.Module):
    """Base of the task models. ``options`` are the task's own (num_labels, pooling, ...), saved
    beside the config.
    """

    needs_pooler = False

    def __init__(self, model: Model, heads: Mapping[str, nn.Module], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(heads)
        self.options = dict(options)
        rate = getattr(self.config, "classifier_dropout", None)
        self.dropout = nn.Dropout(getattr(self.config, "dropout", 0.0) if rate is None else rate)
        self.task = ""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        """Assemble around a model; subclasses say which heads."""
        raise NotImplementedError

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        """The heads whose tensors the task needs from a file: the family's that it reads, else the
        one of its own name.
        """
        family = tuple(head for head in (*spec.heads, *spec.one_of) if head in model_class.heads)
        return family or (spec.name.replace("-", "_"),)

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        """The options that stored tensors show, by their canonical names and shapes: the number of
        labels.
        """
        if "num_labels" not in spec.options:
            return {}
        own = spec.name.replace("-", "_")
        stored = sizes.get(f"heads.{own}.weight") or sizes.get(f"heads.{own}.output.weight")
        return {"num_labels": stored[0]} if stored else {}

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def packing(self) -> bool:
        return self.model.packing

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def num_parameters(self) -> int:
        """Distinct parameters, counted once however often they are used."""
        return sum(p.numel() for p in self.parameters())

    def sites(self) -> Any:
        """The places of the model below, see `Model.sites`."""
        return self.model.sites()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights for the model and the heads."""
        self.model.init_weights(generator)
        initialise(self.heads, self.config.initializer_range, generator)

    @property
    def token_table(self) -> Tensor:
        """The token embedding that decoders are tied to, (vocabulary, embedding size)."""
        token = self.model.embeddings.token  # type: ignore[union-attr]
        return token.table if isinstance(token, FactorizedTable | NarrowTable) else token.weight  # type: ignore[union-attr, return-value]


def label_head(model: Model, name: str, num_labels: int) -> nn.Module:
    """The head of that name for so many labels: one linear layer, unless the family builds its
    own.
    """
    own = model.task_heads.get(name)
    return nn.Linear(model.config.hidden_size, num_labels) if own is None else own(model.config, num_labels)


def build_task(task: str, model_class: Any, config: Any, options: Mapping[str, Any], name: str) -> TaskModel:
    """A task model around a fresh model of ``model_class``; parts that the task does not read (the
    pooler) are left out.
    """
    spec = require_fit(task, offers_of_class(model_class), name)
    options = check_options(spec, options)
    if "pooler" in config.field_names():
        pooled = bool(spec.reads & {"pooled", "fused"}) and task.replace("-", "_") not in model_class.reads_first
        config = config.replace(pooler=pooled or ("pooled" in spec.may_read and config.pooler))
    built = task_class(spec).build(model_class(config), options)
    built.task = task
    return built


def task_class(spec: TaskSpec) -> type[TaskModel]:
    """The class that a spec names."""
    module, _, class_name = spec.class_path.partition(":")
    found: type[TaskModel] = getattr(importlib.import_module(module), class_name)
    return found


def spec_of_class(task: str, model_class: Any) -> TaskSpec:
    """The task's spec as it is for a model class."""
    return spec_for(task, offers_of_class(model_class))


def offers_of_class(model_class: Any) -> frozenset[str]:
    """What a model class offers to tasks."""
    return offered(model_class.inputs, "pooler" in model_class.Config.field_names(), model_class.heads)


def check_options(spec: TaskSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """The task's options over its defaults; an unknown one is refused with the closest."""
    for name in options:
        if name not in spec.options:
            raise unknown(f"option of the task {spec.name}", name, spec.options)
    merged = {**spec.options, **options}
    if "num_labels" in merged and (not isinstance(merged["num_labels"], int) or merged["num_labels"] < 1):
        raise ConfigError(f"num_labels must be an integer of at least 1, got {merged['num_labels']!r}")
    return merged


def check_labels(
    labels: Tensor, shape: tuple[int, ...], name: str, classes: int | None = None, *, integers: bool = False
) -> None:
    """Refuse labels of another shape, or integer ones outside 0..classes-1 (-100 excepted). Values
    are looked at on CPU only.
    """
    if tuple(labels.shape) != shape:
        raise TaskError(f"{name} must have shape {shape}, got {tuple(labels.shape)}")
    if (integers or classes is not None) and labels.is_floating_point():
        raise TaskError(f"{name} must hold integers, got {labels.dtype}")
    if classes is None or torch.compiler.is_compiling() or labels.device.type != "cpu":
        return
    real = labels[labels != -100]
    if real.numel() and not (int(real.min()) >= 0 and int(real.max()) < classes):
        raise TaskError(
            f"{name} must lie in 0..{classes - 1} (or be -100 to be left out), got {int(real.min())}..{int(real.max())}"
        )


def flat_choices(x: Tensor | None) -> Tensor | None:
    """(batch, choices, length, ...) -> (batch · choices, length, ...)."""
    if x is None:
        return None
    if x.dim() < 3:
        raise InputError(f"multiple choice takes (batch, choices, length) tensors, got {tuple(x.shape)}")
    return x.flatten(0, 1)


def canonical_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under the names they have in files: the model's bare, a task's heads under
    ``heads.``.
    """
    prefix = "model." if isinstance(module, TaskModel) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in module.state_dict().items()}
