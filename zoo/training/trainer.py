"""A task model as `transformers.Trainer` takes it.

    trainer = transformers.Trainer(for_trainer(model), TrainingArguments(...), train_dataset=...)
    trainer.train()
    zoo.save(model, "trained", tokenizer)         # the model is the one that was handed over

Trainer asks a model which arguments it takes, writes into its config, and reads results as dicts. A
zoo model's config is frozen, so Trainer gets a view of it that may be written to.
"""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

from torch import Tensor, nn

from zoo.errors import TaskError
from zoo.models.base.model import unwrapped
from zoo.tasks.objective import Objective
from zoo.training.fine_tuning import checkpoint_blocks, keep_blocks


class ConfigView:
    """The fields of a model's config, for who wants to write into it: the model's own stays as it is."""

    def __init__(self, config: Any, **more: Any) -> None:
        self.__dict__.update({**config.to_dict(), **more})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return copy.deepcopy(self.__dict__)

    def to_json_string(self, **_: Any) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=str)

    def get_text_config(self, **_: Any) -> ConfigView:
        """Trainer asks for the part about text; here that is all of it."""
        return self

    def __repr__(self) -> str:
        return f"ConfigView({self.to_dict()})"


class ForTrainer(nn.Module):
    """See `for_trainer`. ``module`` is the task model."""

    config: ConfigView

    def __init__(self, module: nn.Module, config: ConfigView) -> None:
        super().__init__()
        self.module = module
        self.config = config

    def forward(self, *inputs: Any, **named: Any) -> dict[str, Any]:
        """The loss and the head's results, as a dict."""
        output = self.module(*inputs, **named)
        found: dict[str, Any] = {}
        for name, value in output.items():
            if isinstance(value, Tensor) and not any(value is other for other in found.values()):
                found[name] = value
        return found

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """For ``TrainingArguments(gradient_checkpointing=True)``."""
        checkpoint_blocks(self.module)

    def gradient_checkpointing_disable(self) -> None:
        """Undo it."""
        keep_blocks(self.module)

    @property
    def device(self) -> Any:
        """Where the model lies."""
        return next(self.parameters()).device


def for_trainer(model: nn.Module) -> ForTrainer:
    """The model behind what `transformers.Trainer` expects: a signature that names its inputs and
    labels, results as dicts, and a config that may be written to. The weights are the model's own.

    Raises TaskError for a model without a task, which has no loss.
    """
    inner: Any = unwrapped(model)
    if not getattr(inner, "task", ""):
        raise TaskError("a bare model has no loss; build or load it with task=..., such as sequence-classification")
    names = [name for name in inner.names if name not in ("output_hidden_states", "output_attentions", "hidden_size")]
    labels = [name for name in label_arguments(inner) if name not in names]
    kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in names + labels]

    def forward(self: ForTrainer, *inputs: Any, **named: Any) -> dict[str, Any]:
        return ForTrainer.forward(self, *inputs, **named)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = inspect.Signature([own, *kinds])  # type: ignore[attr-defined]
    title = f"{type(inner).__name__}ForTrainer"  # Trainer tells answers to questions by the name
    built: ForTrainer = type(title, (ForTrainer,), {"forward": forward})(
        inner, ConfigView(inner.config, model_type="zoo", task=inner.task, **_labels(inner.options))
    )
    return built.train(model.training)


def label_arguments(model: Any) -> list[str]:
    """The labels that a task model's call takes, by name."""
    if isinstance(model, Objective):
        named = [term.labels for term in model.terms if term.labels]
        return named if len(named) > 1 else ["labels"]
    parameters = inspect.signature(model.forward).parameters.values()
    return [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]


def _labels(options: Any) -> dict[str, Any]:
    names = options.get("labels")
    if not names:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
