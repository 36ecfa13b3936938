"""Finds the data that travels with the package."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import UnknownNameError

VERSION = "0.1.0"


def weights_folder() -> Path:
    """The folder of maps and source records: inside an installed package ``zoo/_weights``, in a
    checkout ``weights``.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "_weights", here.parent / "weights"):
        if folder.is_dir():
            return folder
    raise UnknownNameError(
        f"the folder of weight maps is missing: neither {here.name}/_weights nor weights beside it exists; reinstall "
        "extended-zoo"
    )
