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
    """What a model is given and what another library's gave for it: token ids, and the first values of the
    first token's last state; or the size of `waves`, and the first values of the pooled vector.
    """

    values: list[float]
    tolerance: float
    source: str
    input_ids: list[list[int]] | None = None
    waves: int | None = None


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
            f"{path.name}: the probe of {record.name} needs input_ids or waves, values, tolerance and source: {error}"
        ) from error


def waves(size: int) -> Any:
    """A picture that a formula draws, (1, 3, size, size): ``cos(0.1 (c + 1) i) cos(0.07 (c + 2) j)`` at row i
    and column j of channel c.
    """
    import torch

    c, i = torch.arange(3.0)[:, None, None], torch.arange(float(size))
    return (torch.cos(0.1 * (c + 1) * i[:, None]) * torch.cos(0.07 * (c + 2) * i)).unsqueeze(0)


def check(probe: Probe, model: Any) -> tuple[bool, str]:
    """Run a bare model on what the probe gives it, and compare."""
    import torch

    with torch.inference_mode():
        if probe.waves is None:
            vector = model(torch.tensor(probe.input_ids)).last_hidden_state[0, 0]
        else:
            vector = model(waves(probe.waves)).pooler_output[0]
        got = vector[: len(probe.values)].double()
    difference = float((got - torch.tensor(probe.values, dtype=torch.float64)).abs().max())
    return (
        difference <= probe.tolerance,
        f"differs by {difference:.1e} from {probe.source}; {probe.tolerance:.0e} is allowed",
    )
