"""Recorded outputs of public checkpoints: the last check. Data in
``weights/<family>/probes.toml``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConfigError
from zoo.registry.records import Record
from zoo.registry.resources import weights_folder


@dataclass(frozen=True)
class Probe:
    """Token ids and what another library's model gave for them: the first values of the first
    token's last state.
    """

    input_ids: list[list[int]]
    values: list[float]
    tolerance: float
    source: str


def probe_of(record: Record) -> Probe | None:
    """The probe on record for a tag, or None."""
    path = weights_folder() / record.family / "probes.toml"
    if not path.is_file():
        return None
    found = tomllib.loads(path.read_text(encoding="utf-8")).get(record.variant, {}).get(record.tag)
    if found is None:
        return None
    try:
        return Probe(**found)
    except TypeError as error:
        raise ConfigError(
            f"{path.name}: the probe of {record.name} needs input_ids, values, tolerance and source: {error}"
        ) from error


def check(probe: Probe, model: Any) -> tuple[bool, str]:
    """Run a bare model on the probe's ids and compare."""
    import torch

    with torch.inference_mode():
        got = model(torch.tensor(probe.input_ids)).last_hidden_state[0, 0, : len(probe.values)].double()
    difference = float((got - torch.tensor(probe.values, dtype=torch.float64)).abs().max())
    return (
        difference <= probe.tolerance,
        f"differs by {difference:.1e} from {probe.source}; {probe.tolerance:.0e} is allowed",
    )
