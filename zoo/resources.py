"""Finds the data that travels with the package."""

from __future__ import annotations

from pathlib import Path


def weights_folder() -> Path:
    """The folder of maps and source records: inside an installed package ``zoo/_weights``, in a checkout ``weights``."""
    here = Path(__file__).resolve().parent
    installed = here / "_weights"
    return installed if installed.is_dir() else here.parent / "weights"
