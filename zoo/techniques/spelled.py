"""Techniques as a command line spells them: ``lora:rank=8,alpha=16``."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from typing import Any

from zoo.errors import ConfigError, unknown
from zoo.registry.techniques import TECHNIQUES
from zoo.techniques.base import Technique


def technique_of(spelled: str) -> Technique:
    """``name`` or ``name:field=value,...``; case, hyphens and underscores in the name don't count.
    Values are JSON where they read as such, else text.
    """
    name, _, rest = spelled.partition(":")
    known = {_plain(each): each for each in TECHNIQUES}
    if _plain(name) not in known:
        raise unknown("technique", name, [_hyphenated(each) for each in TECHNIQUES])
    title = known[_plain(name)]
    built_by = getattr(importlib.import_module(TECHNIQUES[title].module), title)
    values: dict[str, Any] = {}
    fields = [item.name for item in dataclasses.fields(built_by)]
    for pair in re.split(r",(?![^\[]*\])", rest) if rest else []:  # a list keeps its commas
        field, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} of {spelled!r} is not field=value; {title} has {', '.join(fields)}")
        if field not in fields:
            raise unknown(f"field of {title}", field, fields)
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[field] = tuple(value) if isinstance(value, list) else value
    try:
        built: Technique = built_by(**values)
    except TypeError as error:
        raise ConfigError(f"{spelled!r} lacks a field of {title}: {error}") from error
    return built


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _hyphenated(name: str) -> str:
    """AdapterFusion -> adapter-fusion, LoRA -> lora."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "-", name).lower()
