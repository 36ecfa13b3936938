"""InfoXLM: the cross-lingual contrastive term."""

from __future__ import annotations

from tests.references.case import Adapter
from tests.references.contrast import cross_lingual

ADAPTERS: dict[str, Adapter] = {"contrastive_loss": cross_lingual}
