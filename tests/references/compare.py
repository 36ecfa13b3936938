"""Hold an adapter's outputs against the reference's: ``compare(case, outputs) -> differences``, an
empty list when all is well.

The tolerance is 10 x the float noise that the case states (for that output first, then for real
positions alone, then for the case), at least 1e-6 and at most 1e-3, times the output's largest
value where that is larger than one. Integers, booleans and strings compare exactly. Padded
positions are left out by the adapter (``Output(value, where=mask)``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Case, Output, Skipped, expected, flatten

LEAST, MOST = 1e-6, 1e-3


def tolerance(case: Case, name: str) -> float:
    """The absolute bound for output ``name`` (its full or its first dotted name) on values of order
    one.
    """
    per_output = case.info.get("float_noise_per_output") or {}
    candidates = [per_output.get(name), per_output.get(name.split(".")[0])]
    candidates += [case.info.get(f"float_noise_{kind}") for kind in ("real_positions", "without_padding_positions")]
    candidates.append(case.info.get("float_noise"))
    noise = next((n for n in candidates if n is not None), 0.0)
    return min(max(10 * noise, LEAST), MOST)


def compare(case: Case, outputs: Mapping[str, Any]) -> list[str]:
    """Every stored output that is missing or differs, one line each; outputs that the case does not
    store are not looked at.
    """
    ours = flatten(outputs, lengths=True)
    stored = flatten(expected(case), lengths=True)
    if not stored:
        return ["the case stores no outputs"]
    differences = []
    for name, reference in stored.items():
        mine = ours.get(name)
        if name not in ours:
            parent = next((ours[p] for p in _parents(name) if p in ours), None)
            if not isinstance(parent, Skipped):
                differences.append(f"{name}: missing")
            continue
        difference = _difference(case, name, reference, mine)
        if difference:
            differences.append(f"{name}: {difference}")
    return differences


def _difference(case: Case, name: str, reference: Any, mine: Any) -> str | None:
    if isinstance(mine, Skipped):
        return None
    where, bound = None, None
    if isinstance(mine, Output):
        where, bound = mine.where, mine.tolerance
        if bound is not None and not mine.reason:
            return "has a looser tolerance without a reason"
        mine = flatten(mine.value, name).get(name)
    if not isinstance(reference, Tensor):
        return None if mine == reference else f"{mine!r} instead of {reference!r}"
    if not isinstance(mine, Tensor):
        return f"{mine!r} instead of a tensor"
    mine, reference = mine.detach().cpu(), reference.cpu()
    if mine.shape != reference.shape:
        return f"shape {tuple(mine.shape)} instead of {tuple(reference.shape)}"
    if where is not None:
        where = where.cpu().bool()
        where = where.reshape(where.shape + (1,) * (reference.dim() - where.dim())).expand(reference.shape)
        mine, reference = mine[where], reference[where]
    if reference.numel() == 0:
        return None
    exact = not (reference.is_floating_point() or reference.is_complex()) and bound is None
    if exact and not mine.is_floating_point():
        wrong = int((mine.long() != reference.long()).sum())
        return f"{wrong} of {reference.numel()} values differ" if wrong else None
    mine, reference = mine.double(), reference.double()
    finite = reference.isfinite()
    if not torch.equal(mine.isfinite(), finite) or not torch.equal(
        mine[~finite].nan_to_num(), reference[~finite].nan_to_num()
    ):
        return "infinite or NaN at other places"
    mine, reference = mine[finite], reference[finite]
    if reference.numel() == 0:
        return None
    limit = 0.0 if exact else tolerance(case, name) if bound is None else bound
    limit *= max(1.0, float(reference.abs().max()))
    worst = float((mine - reference).abs().max())
    return f"differs by {worst:.3g}, allowed {limit:.3g}" if worst > limit else None


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
