"""BriVL: what its image tower reads."""

from __future__ import annotations

from tests.references.case import Adapter
from tests.references.images import brivl_grid

ADAPTERS: dict[str, Adapter] = {"datasets.ImageData.__getitem__": brivl_grid}
