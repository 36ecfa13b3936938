"""What saved files call by an older name: the classes of models and the techniques, old name -> new.

A class or technique that is renamed or moved gets a line here, so that files that were saved before
still load.
"""

from __future__ import annotations

CLASSES: dict[str, str] = {}
TECHNIQUES: dict[str, str] = {}
