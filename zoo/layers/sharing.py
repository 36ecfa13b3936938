"""A part that stands elsewhere: used here, owned there, so that its tensors have one name."""

from __future__ import annotations

from torch import nn


def borrow(holder: nn.Module, name: str, part: nn.Module) -> None:
    """Let ``holder.name`` be a part that another module owns; what stood there goes.

    Nothing is registered a second time: the part's tensors have the owner's names alone, and moving, saving or training reaches them there.
    Whoever changes a part that is borrowed changes it in place.
    """
    delattr(holder, name)
    object.__setattr__(holder, name, part)
