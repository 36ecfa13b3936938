"""Work in two processes that talk over gloo, without a new interpreter: children of this process."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_processes(work: Callable[[int], Any], count: int = 2) -> list[Any]:
    """What ``work`` returns (tensors, in lists and dicts) for each rank of a group of processes."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(count):
            if child := os.fork():
                children.append(child)
                continue
            try:
                _run(work, rank, count, Path(folder))
                os._exit(0)
            except BaseException:
                Path(folder, f"error-{rank}").write_text(traceback.format_exc())
                os._exit(1)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        errors = [file.read_text() for file in sorted(Path(folder).glob("error-*"))]
        assert not any(codes), "\n".join(errors) or f"exit codes {codes}"
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]


def _run(work: Callable[[int], Any], rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.barrier()  # who ends first would cut the others off
