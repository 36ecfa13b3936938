"""Training: `fit`, a loop over rows of a table or over batches, and what it is made of: optimizers,
learning-rate schedules, fine-tuning by depth, distillation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Adversarial": "zoo.training.adversarial",
    "SelfCritical": "zoo.training.self_critical",
    "Settings": "zoo.training.settings",
    "evaluate": "zoo.training.evaluation",
    "fit": "zoo.training.loop",
    "for_trainer": "zoo.training.trainer",
    "grad_cache": "zoo.training.cached_gradients",
    "grow_tables": "zoo.training.tables",
    "shard": "zoo.training.parallel",
    "task_options": "zoo.training.evaluation",
}
__all__ = [
    "Adversarial",
    "SelfCritical",
    "Settings",
    "evaluate",
    "fit",
    "for_trainer",
    "grad_cache",
    "grow_tables",
    "shard",
    "task_options",
]

if TYPE_CHECKING:
    from zoo.training.adversarial import Adversarial as Adversarial
    from zoo.training.cached_gradients import grad_cache as grad_cache
    from zoo.training.evaluation import evaluate as evaluate
    from zoo.training.evaluation import task_options as task_options
    from zoo.training.loop import fit as fit
    from zoo.training.parallel import shard as shard
    from zoo.training.self_critical import SelfCritical as SelfCritical
    from zoo.training.settings import Settings as Settings
    from zoo.training.tables import grow_tables as grow_tables
    from zoo.training.trainer import for_trainer as for_trainer


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {', '.join(_WHERE)}")
    return getattr(importlib.import_module(_WHERE[name]), name)
