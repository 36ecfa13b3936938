"""`create(..., init_from=...)`: another family's checkpoint starts what the declared transfer map
says.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from zoo.checkpoints.convert import convert, converted
from zoo.checkpoints.files import read_description
from zoo.checkpoints.load import LoadReport
from zoo.checkpoints.locate import locate
from zoo.errors import CheckpointError, unknown
from zoo.formats.opening import open_archive
from zoo.maps import layouts
from zoo.registry import variants as registry
from zoo.tasks.base import canonical_state


def warm_start(module: nn.Module, variant: registry.Variant, source: str | os.PathLike[str]) -> LoadReport:
    """Fill what another family's checkpoint can start, by the declared transfer map; the report
    says what stays random.

    Raises UnknownNameError where no transfer is declared, CheckpointError where sizes differ.
    """
    origin, record = locate(source)
    with tempfile.TemporaryDirectory() as folder:
        if record is not None:
            origin = converted(record)
        elif read_description(Path(origin)) is None:
            convert(origin, folder + "/ours")
            origin = Path(folder) / "ours"
        description = read_description(Path(origin))
        assert description is not None
        family = next(v.maps for vs in registry.families().values() for v in vs if v.class_path == description["class"])
        known = layouts.transfers(variant.maps)
        if family not in known:
            raise unknown(f"family to start {variant.name} from", family, known)
        keymap = layouts.load(known[family])
        targets = canonical_state(module)
        with open_archive(Path(origin)) as archive:
            heads = {name.split(".")[1] for name in targets if name.startswith("heads.")}
            plan = keymap.forward(archive.tensors, module.config.to_dict(), heads=heads, inspect=True)  # type: ignore[union-attr, operator]
            started: set[str] = set()
            for step in plan.steps:
                for name, tensor in step.run(archive.read).items():
                    if name not in targets or targets[name].shape != tensor.shape:
                        wanted = tuple(targets[name].shape) if name in targets else "nothing of that name"
                        raise CheckpointError(
                            f"{source}: {name} is {tuple(tensor.shape)} there; {variant.name} has {wanted}"
                        )
                    with torch.no_grad():
                        targets[name].copy_(tensor)
                    started.add(name)
            left_out = {**plan.left_out, **plan.dropped}
            if missed := [
                n for n in archive.tensors if n not in left_out and not any(n in step.sources for step in plan.steps)
            ]:
                raise CheckpointError(f"{source}: {missed[0]} has no place in {variant.name}; do the sizes agree?")
    return LoadReport(str(source), keymap.layout, left_out, tuple(name for name in targets if name not in started))
