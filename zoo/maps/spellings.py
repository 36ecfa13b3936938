"""Names whose numbers count otherwise than ours: named pairs of functions, for what no template can tell.

A file may number its blocks within their stage, or all its convolutions in the order in which they were made. What
the numbers mean then follows from the config. A map that says ``spelling = "..."`` has its rules written for the
names that `Spelling.read` makes of a file's; `Spelling.write` is the way back. A name that is none of theirs stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from zoo.layers.convolution import deepened

Fields = Mapping[str, object]


@dataclass(frozen=True)
class Spelling:
    """``read(name, config)`` from a file's name to that of the rules, ``write(name, config)`` to the file's."""

    read: Callable[[str, Fields], str]
    write: Callable[[str, Fields], str]


def _field(fields: Fields, name: str) -> Any:
    return fields[name]


# -- timm's EfficientNet: blocks.STAGE.BLOCK -------------------------------------------------------------------------

# a block that widens nothing lacks the first of three pairs, and timm calls its others by other names
_UNWIDENED = {"conv_pw": "conv_pwl", "bn1": "bn2", "bn2": "bn3"}


def _stages(fields: Fields) -> list[tuple[int, int]]:
    """Stage and place of every block."""
    blocks = cast(Sequence[int], fields["stage_blocks"])
    depths = deepened(blocks, cast(float, fields["depth_multiplier"]), bool(fields.get("fixed_ends")))
    return [(stage, place) for stage, depth in enumerate(depths) for place in range(depth)]


def _read_staged(name: str, fields: Fields) -> str:
    found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)(\..+)", name)
    places = _stages(fields)
    if found is None or (place := (int(found[1]), int(found[2]))) not in places:
        return name
    narrow = _field(fields, "stage_expansions")[place[0]] == 1
    part = _UNWIDENED.get(found[3], found[3]) if narrow else found[3]
    return f"blocks.{places.index(place)}.{part}{found[4]}"


def _write_staged(name: str, fields: Fields) -> str:
    found = re.fullmatch(r"blocks\.(\d+)\.(\w+)(\..+)", name)
    places = _stages(fields)
    if found is None or int(found[1]) >= len(places):
        return name
    stage, place = places[int(found[1])]
    back = {ours: theirs for theirs, ours in _UNWIDENED.items()}
    narrow = _field(fields, "stage_expansions")[stage] == 1
    part = back.get(found[2], found[2]) if narrow else found[2]
    return f"blocks.{stage}.{place}.{part}{found[3]}"


# -- torchvision's ResNet: layer1.BLOCK to layer4.BLOCK --------------------------------------------------------------


def _places(fields: Fields) -> list[tuple[int, int]]:
    return [(stage, place) for stage, depth in enumerate(_field(fields, "stage_blocks")) for place in range(depth)]


def _read_layers(name: str, fields: Fields) -> str:
    found, places = re.fullmatch(r"layer(\d+)\.(\d+)(\..+)", name), _places(fields)
    if found is None or (place := (int(found[1]) - 1, int(found[2]))) not in places:
        return name
    return f"blocks.{places.index(place)}{found[3]}"


def _write_layers(name: str, fields: Fields) -> str:
    found, places = re.fullmatch(r"blocks\.(\d+)(\..+)", name), _places(fields)
    if found is None or int(found[1]) >= len(places):
        return name
    stage, place = places[int(found[1])]
    return f"layer{stage + 1}.{place}{found[2]}"


# -- SimCLR's ResNet: conv2d, conv2d_1, ... and batch_normalization, batch_normalization_1, ... -----------------------


def _in_order(fields: Fields) -> tuple[list[str], list[str]]:
    """Our names of the convolutions and of the norms in the order in which TensorFlow made and numbered them."""
    selective = bool(fields["selective_ratio"])
    convolutions = [f"stem.layers.{number}.conv" for number in range(3 if selective else 1)]
    norms = [f"stem.layers.{number}.norm" for number in range(3 if selective else 1)]
    for number, (_, place) in enumerate(_places(fields)):
        block = f"encoder.blocks.{number}"
        parts = [*(["shortcut"] if place == 0 else []), "layers.0", "layers.1", "layers.2"]
        for part in parts:
            convolutions.append(f"{block}.{part}.conv")
            norms.append(f"{block}.{part}.norm")
            if part == "layers.1" and selective:
                convolutions += [f"{block}.layers.1.reduce.conv", f"{block}.layers.1.choose"]
                norms.append(f"{block}.layers.1.reduce.norm")
    return convolutions, norms


def _read_numbered(name: str, fields: Fields) -> str:
    found = re.fullmatch(r"base_model/(conv2d|batch_normalization)(?:_(\d+))?/(\w+)", name)
    if found is None:
        return name
    parts, number = _in_order(fields)[found[1] != "conv2d"], int(found[2] or 0)
    return f"{parts[number]}/{found[3]}" if number < len(parts) else name


def _write_numbered(name: str, fields: Fields) -> str:
    part, _, tensor = name.partition("/")
    for kind, parts in zip(("conv2d", "batch_normalization"), _in_order(fields), strict=True):
        if part in parts:
            number = parts.index(part)
            return f"base_model/{kind}{f'_{number}' if number else ''}/{tensor}"
    return name


def below(prefix: str, spelling: Spelling) -> Spelling:
    """A spelling for names below a prefix, which is kept."""

    def applied(change: Callable[[str, Fields], str]) -> Callable[[str, Fields], str]:
        def changed(name: str, fields: Fields) -> str:
            return prefix + change(name.removeprefix(prefix), fields) if name.startswith(prefix) else name

        return changed

    return Spelling(applied(spelling.read), applied(spelling.write))


_STAGED = Spelling(_read_staged, _write_staged)
SPELLINGS: dict[str, Spelling] = {
    "efficientnet-stages": _STAGED,
    "brivl-stages": below("imgencoder.backbone.", _STAGED),
    "resnet-stages": Spelling(_read_layers, _write_layers),
    "simclr-order": Spelling(_read_numbered, _write_numbered),
}
