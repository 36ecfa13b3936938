"""MoCo: its step, and the loss against a queue."""

from __future__ import annotations

from tests.references.case import Adapter
from tests.references.contrast import lightly

ADAPTERS: dict[str, Adapter] = {"NTXentLoss": lightly}
