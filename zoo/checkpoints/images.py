"""`zoo.images`: how a registered model, or one in a folder, wants its pictures."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.checkpoints.binding import check_beside, header_beside
from zoo.checkpoints.files import folder_of, read_description
from zoo.checkpoints.locate import is_remote, locate
from zoo.data.images.files import FILE, FILES, read_images
from zoo.data.images.images import Images
from zoo.errors import InputError
from zoo.formats.disk import settled
from zoo.registry import variants as registry


def images(source: str | os.PathLike[str]) -> Images:
    """How the model of a registered name, a folder or ``"hub:org/name"`` wants its pictures.

    A name's are its variant's; a folder's those of ``preprocessor_config.json``, ``processor_config.json``
    or ``open_clip_config.json`` in it, else those of the variant that its config.json names. Raises
    InputError for a model that reads none.
    """
    found = find_images(source)
    if found is None:
        raise InputError(
            f"nothing says how {source} wants its pictures; give a model that reads pictures, or a folder with one of "
            f"{', '.join(FILES)}"
        )
    return found


def find_images(source: str | os.PathLike[str]) -> Images | None:
    """The same, None where nothing is said."""
    name = str(source)
    if not Path(source).exists() and not is_remote(name):
        if os.sep in name:
            raise InputError(f"{name} does not exist; give a registered name, a folder or a source like hub:org/name")
        return of_name(name)
    path, record = locate(source)
    folder = folder_of(path)
    found = None if folder is None else settled(lambda: _beside(folder), folder)
    if found is None and record is not None:
        return of_name(record.name)
    if found is None and (described := read_description(path)) is not None and described.get("model"):
        try:
            return of_name(described["model"])
        except LookupError:  # registered nowhere here
            return None
    return found


def of_name(name: str) -> Images | None:
    """Of a registered variant or tag."""
    values = registry.image_values(name)
    return Images.from_dict(values) if values else None


def _beside(folder: Path) -> Images | None:
    header, found = header_beside(folder), read_images(folder)
    if header is not None and found is not None:
        alone = f"copy {FILE} into a folder of its own, and call zoo.images on that"
        check_beside(header, folder, [FILE], "images", alone)
    return found
