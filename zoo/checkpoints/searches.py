"""The settings of a search that lie beside weights."""

from __future__ import annotations

from typing import Any

from zoo.checkpoints.locate import locate
from zoo.inference.search.settings import Search


def find_search(source: Any) -> Search:
    """How the authors of a model wrote with it, by its registered name, folder or source; the defaults where the files
    beside its weights say nothing.
    """
    return Search.read(locate(source)[0])
