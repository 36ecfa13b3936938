"""SimCLR: NT-Xent as three public codes have it."""

from __future__ import annotations

from tests.references.case import Adapter
from tests.references.contrast import google, lightly, sthalles

ADAPTERS: dict[str, Adapter] = {
    "NTXentLoss": lightly,
    "add_contrastive_loss": google,
    "info_nce_loss": sthalles,
}
