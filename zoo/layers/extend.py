"""Giving a part of a model new behavior without renaming any of its tensors.

A part that is wrapped changes the names of its parameters; a part that is extended keeps them: it
becomes an instance of a class made of the extension and its own class, as
``torch.nn.utils.parametrize`` does it. Whatever else the part is, a Linear or a family's own norm,
it stays.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from zoo.errors import TechniqueError


class Extension(nn.Module):
    """Base of what may be put in front of a part's own class. An extension makes its state in
    ``extend``, not in ``__init__``.

    around: it changes only what enters or leaves the part and reads none of its tensors, so that a
    weight below it may change.
    """

    around: ClassVar[bool] = False

    def __reduce__(self) -> Any:  # the class made on the way has no name that pickle could look up
        extension, own = type(self).__bases__
        return _again, (extension, own), self.__dict__


def _again(extension: type, own: type) -> Any:
    made = extended_class(extension, own)
    return made.__new__(made)  # type: ignore[call-overload]


@functools.cache
def extended_class(extension: type, own: type) -> type:
    """The class of a part of class ``own`` after the extension; one for each pair."""
    return type(f"{extension.__name__}{own.__name__}", (extension, own), {"__doc__": extension.__doc__})


def own_class(part: nn.Module) -> type:
    """The class of a part without its extensions."""
    cls = type(part)
    while len(cls.__bases__) == 2 and issubclass(cls.__bases__[0], Extension):
        cls = cls.__bases__[1]
    return cls


def extensions(kind: type) -> list[type[Extension]]:
    """The extensions of a class, the last that was put on first."""
    found = []
    while len(kind.__bases__) == 2 and issubclass(kind.__bases__[0], Extension):
        found.append(kind.__bases__[0])
        kind = kind.__bases__[1]
    return found


def without(kind: type, extension: type[Extension]) -> type:
    """An extended class without one of its extensions, wherever it stands among them."""
    first, own = kind.__bases__
    return own if first is extension else extended_class(first, without(own, extension))


def extend(part: nn.Module, extension: type[Extension]) -> bool:
    """Make ``part`` an instance of ``extension`` too; whether it was none before."""
    if isinstance(part, extension):
        return False
    part.__class__ = extended_class(extension, type(part))  # type: ignore[assignment, arg-type]
    return True


def check_last(parts: Iterable[tuple[str, nn.Module]], extension: type[Extension]) -> None:
    """Refuse to take an extension away where another was put on after it, before anything is done."""
    for path, part in parts:
        if (last := extensions(type(part))[0]) is not extension:
            raise TechniqueError(
                f"{path} is a {extension.__name__} below a {last.__name__}, which came after it; take that away first"
            )


def restore(part: nn.Module, extension: type[Extension]) -> None:
    """Take the extension away again; it must be the last that was put on."""
    first, own = type(part).__bases__
    if first is not extension:
        raise TypeError(
            f"{type(part).__name__} was extended by {first.__name__} after {extension.__name__}; take that away first"
        )
    part.__class__ = own
