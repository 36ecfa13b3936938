"""The base of every model's config: frozen, keyword only, flat; refuses invalid values.

A field that neither shapes a weight nor changes what it means (dropout, initialization) is declared
with `free`; every other field is part of a checkpoint's contract and cannot be overridden
when weights are loaded.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from zoo.errors import ConfigError, unknown
from zoo.models.base.fields import documented


def free(default: Any) -> Any:
    """A field that may differ from what a checkpoint was trained with: it changes no weight's shape
    or meaning.
    """
    return field(default=default, metadata={"free": True})


MAX_PARTS = 10_000  # layers and the like, each of which costs memory even before it has weights
_COUNTS = re.compile(r"layers$|_blocks$|feed_forwards$|_groups$")
LARGEST_NUMBER = (1 << 31) - 1  # no size and no id is larger, and a product of two still is a size to torch

_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(item, inner) for item in value)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _shown(value: object) -> str:
    """A value for a message; a number of thousands of digits can't be written out."""
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} too long to show"


def _check_numbers(name: str, value: object) -> None:
    """Raise ConfigError for numbers that no field can mean, nor one of this name."""
    if isinstance(value, tuple):
        for part in value:
            _check_numbers(name, part)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        shown = _shown(value) if abs(value) < 1 << 100 else "a number of more than 30 digits"
        raise ConfigError(f"{name} is {shown}, which no size or id is; the largest is {LARGEST_NUMBER}")
    if not math.isfinite(value):
        raise ConfigError(f"{name}={value} must be a finite number")
    if "dropout" in name and not 0 <= value < 1:
        raise ConfigError(f"{name}={value} must lie in [0, 1)")
    if name.endswith("_eps") and value <= 0:
        raise ConfigError(f"{name}={value} must be above 0: a norm divides by the root of a variance, which may be 0")
    if name.endswith("_range") and value < 0:
        raise ConfigError(f"{name}={value} is a standard deviation, which is at least 0")


class _Annotation(str):
    """A type as it is written, for a signature without quotes."""

    __repr__ = str.__str__


class _Named(type):
    """A class whose call refuses a field that it doesn't have, with the closest that it has. Its
    signature is that of its fields, and `dir` and `help` leave out what every dataclass has.
    """

    @property
    def __doc__(cls) -> str:  # type: ignore[override]
        return documented(cls)

    @property
    def __signature__(cls) -> inspect.Signature:
        _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature([each.replace(annotation=_Annotation(each.annotation)) for each in parameters])

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("__")]

    def __call__(cls, *values: Any, **named: Any) -> Any:
        cls._refuse_unknown(named)  # type: ignore[attr-defined]
        return super().__call__(*values, **named)


@dataclass(frozen=True, kw_only=True)
class Config(metaclass=_Named):
    """What every config can do; a family's config adds its fields, with the base size as defaults,
    and `check`.
    """

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value, hint = getattr(self, item.name), _hints(type(self))[item.name]
            if isinstance(value, list):  # JSON and TOML know no tuples
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
                object.__setattr__(self, item.name, value)
            if not _fits(value, hint):
                wanted = getattr(hint, "__name__", None) or str(hint)
                raise ConfigError(
                    f"{type(self).__name__}.{item.name} must be {wanted}, got {_shown(value)} ({type(value).__name__})"
                )
            _check_numbers(item.name, value)
            if isinstance(value, int) and value > MAX_PARTS and _COUNTS.search(item.name):
                raise ConfigError(f"{item.name}={value} is more than the {MAX_PARTS:,} that a model may have")
        self.check()

    def check(self) -> None:
        """Raise ConfigError where fields contradict each other. Overridden by families."""

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(item.name for item in dataclasses.fields(cls))

    @classmethod
    def free_fields(cls) -> frozenset[str]:
        """The fields that may be overridden on top of loaded weights."""
        return frozenset(item.name for item in dataclasses.fields(cls) if item.metadata.get("free"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values; an unknown field is an UnknownNameError with the three
        closest.
        """
        cls._refuse_unknown(values)
        return cls(**values)

    def replace(self, **overrides: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        self._refuse_unknown(overrides)
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON (tuples become lists)."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def _refuse_unknown(cls, names: Iterable[str]) -> None:
        known = cls.field_names()
        for name in names:
            if name not in known:
                raise unknown(f"field of {cls.__name__}", name, known)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):  # of a part that is a model itself
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def check_positive(config: Config, *names: str) -> None:
    """Raise ConfigError unless each named field is at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")


def check_heads(
    hidden_size: int, num_heads: int, hidden_name: str = "hidden_size", heads_name: str = "num_heads"
) -> None:
    """Raise ConfigError unless ``num_heads`` divides ``hidden_size``; the message names the nearest
    that does.
    """
    if num_heads < 1 or hidden_size % num_heads:
        small = [h for h in range(1, math.isqrt(max(hidden_size, 1)) + 1) if hidden_size % h == 0]
        near = min([*small, *(hidden_size // h for h in small)], key=lambda h: abs(h - num_heads))
        raise ConfigError(
            f"{heads_name}={num_heads} does not divide {hidden_name}={hidden_size}; the nearest that does is {near}"
        )
