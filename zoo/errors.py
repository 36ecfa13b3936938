"""The errors of the zoo: each says what was wrong, the value received, and what would be right."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 tensor", "12,000 tensors"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def with_article(noun: str) -> str:
    """A noun behind "a" or "an", by its first letter: "an albert"."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


class ZooError(Exception):
    """Base of every error that the zoo raises on purpose."""

    def __str__(self) -> str:  # a LookupError would print its message in quotes
        return str(self.args[0]) if self.args else ""


class UnknownNameError(ZooError, LookupError):
    """A model, tag, task, layout, field or option that does not exist; the message names the
    closest that do.
    """


class ConfigError(ZooError, ValueError):
    """A config whose values contradict each other, or a foreign config that cannot be
    translated.
    """


class InputError(ZooError, ValueError):
    """A tensor or text handed to a model, collator or tokenizer that it cannot take."""


class TaskError(ZooError, ValueError):
    """A task that does not fit a model, or labels that do not fit a task."""


class TechniqueError(ZooError, ValueError):
    """A technique that a model's parts do not allow."""


class CheckpointError(ZooError, ValueError):
    """A file that is truncated, hostile, of an unknown format, or holds the wrong tensors."""


class MapError(ZooError, ValueError):
    """A name map that is ambiguous, unused in part, or not invertible."""


class ExportError(ZooError):
    """A model that can't leave, or that says something else once it has left."""


class FetchError(ZooError, OSError):
    """A source that could not be had; the message names every source that was tried and why each
    failed.
    """


class MissingExtraError(ZooError, ImportError):
    """A feature whose optional dependency is not installed; the message names the extra."""


class ZooWarning(UserWarning):
    """Something that the user can act on, and that stops nothing: a head that starts at random, an
    adapter of another base.
    """


def warn(message: str) -> None:
    """Warn at the line outside of the zoo that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "zoo":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ZooWarning, stacklevel=level)


def closest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` names nearest to ``name``, nearest first, however far away they are."""
    scored = sorted(set(known), key=lambda k: (-difflib.SequenceMatcher(None, name.lower(), k.lower()).ratio(), k))
    return scored[:count]


MANY = 10_000
"""Among so many names none is looked for that is close: it would take minutes."""


def unknown(kind: str, name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a name that is not among ``known``: it shows the three closest valid ones."""
    known = list(known)
    if len(known) >= MANY:
        return UnknownNameError(
            f"unknown {kind} {name!r}; it is none of the {len(known):,} there are{' ' + hint if hint else ''}"
        )
    near = closest(str(name), known)
    suggestion = (
        f"; did you mean {', '.join(repr(k) for k in near)}?" if near else f"; there is no {kind} to choose from"
    )
    return UnknownNameError(f"unknown {kind} {name!r}{suggestion}{' ' + hint if hint else ''}")


def missing_extra(what: str, package: str, extra: str) -> MissingExtraError:
    """The error for a feature that needs an optional package."""
    return MissingExtraError(
        f"{what} needs the package {package!r}, which is not installed; run: pip install 'extended-zoo[{extra}]'"
    )
