"""Techniques: functions from a model to a model, each a frozen dataclass that says what and an
``apply`` that does it.
"""

from zoo.techniques.base import Change, Technique, apply, freeze_all_but, new_tensors, recorded

__all__ = ["Change", "Technique", "apply", "freeze_all_but", "new_tensors", "recorded"]
