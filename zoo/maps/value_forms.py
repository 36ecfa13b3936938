"""Named pairs of functions for config values that no list of pairs can tell: what a foreign value
means, and the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from zoo.errors import ConfigError
from zoo.layers.convolution import widened


@dataclass(frozen=True)
class Form:
    """``forward(value, what)`` from the foreign value (``what`` names it in errors), ``back(value)``
    to it.
    """

    forward: Callable[[object, str], object]
    back: Callable[[object], object]


def names_of_ids(value: object, what: str) -> object:
    """``{"en": 0, "fr": 1}`` (or ``{"0": "en", "1": "fr"}``) -> ``("en", "fr")``; nothing ->
    ``()``.
    """
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must give each name its number, got {type(value).__name__}")
    by_name = all(isinstance(number, int) for number in value.values())
    pairs = {int(cast(int, number)): str(name) for name, number in value.items()} if by_name else None
    if pairs is None:
        try:
            pairs = {int(str(number)): str(name) for number, name in value.items()}
        except ValueError:
            raise ConfigError(f"{what} must give each name its number, got {dict(value)!r}") from None
    if sorted(pairs) != list(range(len(value))):
        raise ConfigError(f"{what} must number its {len(value)} names from 0 without gaps, got {sorted(pairs)}")
    return tuple(pairs[number] for number in range(len(pairs)))


def ids_of_names(value: object) -> object:
    """``("en", "fr")`` -> ``{"en": 0, "fr": 1}``."""
    return {name: number for number, name in enumerate(cast(tuple[str, ...], value))}


def behind_the_last(value: object, what: str) -> object:
    """``[6, 7, 8]`` -> 9: how many layers there are where one more stands behind the last connection."""
    if not isinstance(value, list | tuple) or not value or not isinstance(value[-1], int):
        raise ConfigError(f"{what} must be a list of numbers of layers, got {value!r}")
    return value[-1] + 1


def same_value(value: object, what: str) -> object:
    """The value of another key."""
    return value


def end_token(value: object, what: str) -> object:
    """CLIP's end token: 2, which configs had before it was read, means the largest id."""
    return None if value == 2 else value


def grid_size(rows: int, cell: int) -> int:
    """A picture's height from the rows of its position table, one of them for no cell, and a cell's height."""
    return math.isqrt(max(rows - 1, 0)) * cell


def complement(value: object, what: str) -> object:
    """0.99 -> 0.01: the share of the new in place of that of the old."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{what} must be a number, got {value!r}")
    return round(1 - value, 12)


def stage_inputs(fields: Mapping[str, object]) -> object:
    """The channels that enter each stage of a network: the stem's, then those of the stage before."""
    stages = cast(Sequence[int], fields["stage_channels"])
    return [fields["stem_channels"], *stages[:-1]]


def ratio(fields: Mapping[str, object], whole: str, part: str) -> float:
    """How many times one size is another."""
    return cast(int, fields[whole]) / cast(int, fields[part])


def four_times(value: object, what: str) -> object:
    """Four times the value: the inner width of a feed-forward that no key states."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{what} must be a whole number, got {value!r}")
    return 4 * value


FORMS: dict[str, Form] = {
    "names-by-id": Form(names_of_ids, ids_of_names),
    "complement": Form(complement, lambda value: complement(value, "the value")),
    "clip-end-token": Form(end_token, lambda value: 2 if value is None else value),
}


def last_stage(fields: Mapping[str, object]) -> object:
    """The channels that leave the last stage of a network that is made wider by a factor."""
    channels = cast(Sequence[int], fields["stage_channels"])[-1]
    return widened(channels, cast(float, fields["width_multiplier"]), cast(int, fields["channel_multiple"]))


COMPUTED: dict[str, Callable[[Mapping[str, object]], object]] = {
    "last-stage": last_stage,
    "text-size": lambda fields: fields["hidden_size"],
    "stage-inputs": stage_inputs,
    "inner-ratio": lambda fields: ratio(fields, "intermediate_size", "hidden_size"),
    "image-inner-ratio": lambda fields: ratio(fields, "image_intermediate_size", "image_hidden_size"),
    "projection-size": lambda fields: fields.get("projection_size"),
    "pooler-size": lambda fields: fields.get("pooler_size"),
    "pool-head-size": lambda fields: int(32 * ratio(fields, "image_stem_channels", "image_num_heads")),
    "image-head-size": lambda fields: int(ratio(fields, "image_hidden_size", "image_num_heads")),
}
"""Foreign values that follow from our fields: checked on the way here and written on the way back, where not None."""
DERIVED: dict[str, Callable[[object, str], object]] = {
    "behind-the-last": behind_the_last,
    "four-times": four_times,
    "same": same_value,
}
"""What a field can follow from another key by, which makes a field of its own: forward alone."""
INFERRED: dict[str, Callable[..., object]] = {
    "same": lambda value: value,
    "quotient": lambda whole, part: whole // part,
    "difference": lambda whole, part: whole - part,
    "pool-heads": lambda channels, size: 32 * channels // size,  # of CLIP's ResNets, whose last grid is so much wider
    "grid-size": grid_size,
    "listed": lambda *values: values,
}
"""What a field can follow from, sizes of tensors and values of other fields and keys, where no key states it."""
