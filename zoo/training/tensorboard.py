"""A run's log for TensorBoard, which is an extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import missing_extra
from zoo.training.loop import Event


def tensorboard(folder: Path | str) -> Event:
    """An ``on_event`` for `fit` that writes every figure of the log."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("a log for TensorBoard", "tensorboard", "tensorboard") from None
    writer: Any = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def event(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("step", "total"):
                writer.add_scalar(name.replace("eval_", "eval/"), value, row["step"])
        writer.flush()

    return event
