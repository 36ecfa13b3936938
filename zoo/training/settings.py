"""What a run of `zoo.training.fit` is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from zoo.errors import ConfigError, UnknownNameError, unknown
from zoo.training.adversarial import Adversarial
from zoo.training.schedules import Schedule
from zoo.training.self_critical import SelfCritical

T = TypeVar("T")
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "sgd", "lars")
ELSEWHERE = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "decay",
    "max_grad_norm": "clip",
    "metric_for_best_model": "metric",
    "eval_steps": "evaluate_every",
    "save_steps": "save_every",
    "logging_steps": "log_every",
}
"""What transformers calls a setting, and what it is called here."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long, how fast, and how the best model is chosen. The defaults are BERT's for fine-tuning
    (Devlin et al. 2019, appendix A.3), an update an optimizer step over ``accumulate`` batches.
    """

    epochs: int = 3  # passes over the training rows
    steps: int | None = None  # updates in all, in place of epochs
    batch_size: int = 32  # rows of a batch
    accumulate: int = 1  # batches of one update
    grad_cache: bool = False  # a contrastive loss over all batches of an update as one (GradCache)
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"  # MoCo trains by sgd, SimCLR by lars, with momentum 0.9
    lr: float = 5e-5  # the highest learning rate
    warmup: float = 0.1  # a share of the updates below 1, their number from 1 on
    decay: Literal["linear", "cosine", "constant"] = "linear"  # of the learning rate, after warm-up
    weight_decay: float = 0.01  # of all but biases and norms
    layer_decay: float = 1.0  # each layer has so many times the rate of the one above it
    clip: float = 1.0  # the gradients' common norm at most; 0: as they are
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast, weights stay as they are
    max_length: int | None = None  # tokens; longer texts are cut. None: as the tokenizer says
    metric: str | None = None  # of the evaluation, by which the best model is chosen; None: the task's own
    patience: int | None = None  # evaluations without a better one, after which the run ends
    evaluate_every: int | None = None  # updates; None: each epoch
    save_every: int | None = None  # updates after which a killed run can go on; None: at each evaluation
    log_every: int = 10  # updates between two lines of the log
    adversarial: Adversarial | None = None  # perturb words or regions in training; its fields as a dict do too
    self_critical: SelfCritical | None = None  # learn from a score of what the model writes, not from its labels
    seed: int = 0  # of the order of rows and of dropout

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            self._at_least(name, 1)
        for name in ("steps", "max_length", "patience", "evaluate_every", "save_every"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        for name in ("lr", "layer_decay"):
            if not (isinstance(getattr(self, name), int | float) and 0 < getattr(self, name) < math.inf):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number above zero")
        for name in ("warmup", "weight_decay", "clip"):
            if not (isinstance(getattr(self, name), int | float) and 0 <= getattr(self, name) < math.inf):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number, zero or above")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.decay not in ("linear", "cosine", "constant"):
            raise unknown("decay of the learning rate", self.decay, ("linear", "cosine", "constant"))
        if isinstance(self.adversarial, Mapping):
            object.__setattr__(
                self, "adversarial", _of(Adversarial, self.adversarial, "setting of adversarial training")
            )
        if self.adversarial is not None and not isinstance(self.adversarial, Adversarial):
            raise ConfigError(f"adversarial must be a zoo.training.Adversarial or its fields, got {self.adversarial!r}")
        if self.self_critical is not None:
            if not isinstance(self.self_critical, SelfCritical):
                raise ConfigError(f"self_critical must be a zoo.training.SelfCritical, got {self.self_critical!r}")
            if self.grad_cache or self.adversarial is not None:
                other = "grad_cache" if self.grad_cache else "adversarial"
                raise ConfigError(
                    f"self_critical draws texts of its own, which {other} knows nothing of; give one of them"
                )
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From plain values; an unknown name is refused with the closest."""
        for name in values:
            if name in ELSEWHERE:
                raise UnknownNameError(f"{name!r} is called {ELSEWHERE[name]!r} here")
        return _of(cls, values, "setting of a training run")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, by which a run is known again; a function by its name."""
        found = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if self.adversarial is not None:
            found["adversarial"] = dataclasses.asdict(self.adversarial)
        return found | ({} if self.self_critical is None else {"self_critical": self.self_critical.to_dict()})

    def schedule(self, total: int) -> Schedule:
        """The share of the rate at each update, from 0: up in the warm-up, then down to zero."""
        warmup = round(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if self.decay == "linear":
            ramp = max(1, total - warmup)
            return lambda step: (step + 1) / warmup if step < warmup else max(0.0, (total - step) / ramp)
        if self.decay == "cosine":
            ramp = max(1, total - warmup)
            return lambda step: (
                (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * min(1.0, (step - warmup) / ramp))) / 2
            )
        return lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0


def _of(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """A dataclass from plain values; an unknown name is refused with the closest."""
    known = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown(what, name, known)
    return cls(**values)
