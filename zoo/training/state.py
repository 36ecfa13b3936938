"""What a killed run goes on from: one safetensors file, replaced whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import CheckpointError
from zoo.formats.writer import write_tensors

FILE = "state.safetensors"
ABOUT = "zoo.training"


@dataclass(frozen=True)
class State:
    """``about``: plain values; ``tensors``: weights, the optimizer's and the generators'."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write_state(folder: Path, state: State) -> None:
    """Replace the state in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach() for name, tensor in state.tensors.items()}
    write_tensors(folder / FILE, tensors, {ABOUT: json.dumps(state.about)})


def read_state(folder: Path) -> State | None:
    """The state in a folder, None where there is none."""
    path = folder / FILE
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            return State(about, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} can't be read, so the run can't go on from it: {error}") from error
