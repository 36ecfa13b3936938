"""`create(..., init_from=...)`: another family's checkpoint starts what the declared transfer map
says.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from zoo.checkpoints import checks
from zoo.checkpoints.description import class_path
from zoo.checkpoints.load import LoadReport, open_to_load
from zoo.checkpoints.opened import Opened, Translated
from zoo.checkpoints.streaming import finite, stream
from zoo.errors import CheckpointError, unknown
from zoo.maps import layouts
from zoo.maps.plans import heads_of
from zoo.registry import variants as registry
from zoo.tasks.base import canonical_state


def warm_start(module: Any, variant: registry.Variant, source: str | os.PathLike[str]) -> LoadReport:
    """Fill what another family's checkpoint can start, by the declared transfer map; the report
    says what stays random.

    Raises UnknownNameError where no transfer is declared, CheckpointError where sizes differ.
    """
    targets = canonical_state(module)
    started: list[str] = []
    with open_to_load(source) as checkpoint:
        origin = class_path(checkpoint.blueprint.model_class)
        family = next(v.maps for vs in registry.families().values() for v in vs if v.class_path == origin)
        known = layouts.transfers(variant.maps)
        if family not in known:
            raise unknown(f"family to start {variant.name} from", family, known)
        keymap = layouts.load(known[family])
        whole = checkpoint.plan(wanted := checkpoint.targets())
        checks.check_kinds(whole.outputs, wanted, cast=True)
        contract = checks.required(checks.check_contract(checkpoint), checkpoint.shown)
        ties = checks.check_ties(checkpoint.archive, whole)
        archive = Translated(checkpoint.archive, whole)
        plan = Opened(archive, keymap, module.config.to_dict()).plan(heads=heads_of(targets), inspect=True)
        infos = plan.outputs

        def start(name: str, tensor: torch.Tensor) -> None:
            if name not in targets or targets[name].shape != tensor.shape:
                wanted = tuple(targets[name].shape) if name in targets else "nothing of that name"
                raise CheckpointError(f"{source}: {name} is {tuple(tensor.shape)} there; {variant.name} has {wanted}")
            with torch.no_grad():
                targets[name].copy_(finite(tensor, name, infos[name]))
            started.append(name)

        stream(plan, archive, start)
        left_out = {**plan.left_out, **plan.dropped}
        used = {name for step in plan.steps for name in step.sources}
        if missed := [name for name in archive.tensors if name not in left_out and name not in used]:
            raise CheckpointError(f"{source}: {missed[0]} has no place in {variant.name}; do the sizes agree?")
        values = checks.values_read(infos, started)
    random = tuple(name for name in targets if name not in started)
    proven = checks.Checks((checks.check_plan(whole), values, ties, contract))
    return LoadReport(str(source), keymap.layout, left_out, random, checks=proven)
