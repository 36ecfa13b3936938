"""What binds the files of a folder to each other, so that no two models are mixed in silence.

The header of the weights repeats the description (``config.json``, ``adapter.json``, another
library's config), and lists the hashes of the files beside it; a description of ours names the hash
of the tensors and of those files. Both carry one *generation*, the hash of all of that. Weights are
replaced by one rename, so what their header says is the truth about them: a description of another
generation is of another save (a killed one, or one that is under way), one of the same generation
that says other things was edited.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.checkpoints.files import read_json
from zoo.errors import CheckpointError
from zoo.formats.archive import Archive
from zoo.formats.disk import safe_path, sha256_of
from zoo.formats.opening import open_archive
from zoo.formats.writer import content_hash, tensor_hash
from zoo.maps.config_map import SAVE

CONTENT, GENERATION, FILES = "zoo.content_sha256", "zoo.generation", "zoo.files"
DESCRIPTION, FOREIGN, ADAPTER = "zoo.description", "zoo.config", "zoo.adapter"  # whose description a header repeats
BINDING = "binding"  # the part of our own description that names what it belongs to
MODULES = ("modules.json", "sentence_bert_config.json")  # of a sentence encoder, besides those in folders
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
UNBOUND = "an older zoo wrote this, so nothing tells whether its files belong together; save it again to bind them"


@dataclass(frozen=True)
class Binding:
    """A description, the key under which the weights' header repeats it, and the hashes of the files
    beside the weights.
    """

    description: Mapping[str, Any]
    key: str = DESCRIPTION
    files: Mapping[str, str] = field(default_factory=dict)

    def header(self, content: str) -> dict[str, str]:
        """What the header of the weights says, once the hash of their tensors is known."""
        said, files = _plain(self.description), _plain(self.files)
        return {self.key: said, CONTENT: content, FILES: files, GENERATION: _generation(content, files, said)}

    def described(self, content: str) -> dict[str, Any]:
        """The description as it is written beside the weights."""
        bound = {
            "generation": self.header(content)[GENERATION],
            "content_sha256": content,
            "files": dict(self.files),
        }
        return {**self.description, BINDING: bound}


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder, but for the model's own two, by its name in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256_of(file) for name, file in names.items() if name not in (WEIGHTS_FILE, CONFIG_FILE)}


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _generation(content: str, files: str, said: str) -> str:
    return hashlib.sha256("\n".join((content, files, said)).encode()).hexdigest()


@dataclass(frozen=True)
class Header:
    """What the header of a file says of it: empty, of another's file; without a generation, of one that
    an older zoo wrote.
    """

    path: Path
    said: Mapping[str, str]

    @classmethod
    def of(cls, archive: Archive) -> Header:
        """Of an opened file, or of shards that all say the same; refused where it contradicts itself."""
        said = {key: text for key, text in archive.metadata.items() if isinstance(text, str)}
        found = cls(archive.path, said)
        if found.generation is not None:
            stated = next((said[key] for key in (DESCRIPTION, FOREIGN, ADAPTER) if key in said), "")
            if _generation(said.get(CONTENT, ""), said.get(FILES, ""), stated) != found.generation:
                raise CheckpointError(
                    f"{archive.path}: the description in the file's header is not the one that it was written with; "
                    "the file was changed or damaged"
                )
            found.files  # noqa: B018  (refused here, where they lead out of the folder)
        return found

    @property
    def generation(self) -> str | None:
        return self.said.get(GENERATION)

    @property
    def files(self) -> dict[str, str]:
        """The hashes of the files that were written with this one, none of them out of its folder."""
        return {safe_path(name): str(digest) for name, digest in (self.json(FILES) or {}).items()}

    def json(self, key: str) -> dict[str, Any] | None:
        """A JSON object of the header."""
        if key not in self.said:
            return None
        try:
            found = json.loads(self.said[key])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: {key} in the file's header is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.path}: {key} in the file's header is no JSON object")
        return found


def header_beside(folder: Path) -> Header | None:
    """The header of the weights in a folder, or None where none can be read."""
    for name in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json"):
        if (folder / name).is_file():
            try:
                with open_archive(folder / name) as archive:
                    return Header.of(archive)
            except CheckpointError:
                return None
    return None


def replaced(folder: Path, header: Header) -> bool:
    """Whether the weights in a folder are not those of this header any more. They are replaced first, so
    what was read besides is of another save then, and of theirs otherwise, unless it was edited.
    """
    now = header_beside(folder)
    return now is None or now.generation != header.generation


def same_save(folder: Path, generation: str | None) -> bool:
    """Whether the config.json in a folder says that it is of this generation: of tensors of ours, or in
    another library's layout.
    """
    file = folder / CONFIG_FILE
    said = read_json(file) if file.is_file() else {}
    return generation is not None and generation in (generation_of(said), said.get(SAVE))


def generation_of(description: Mapping[str, Any]) -> str | None:
    """The generation that a description of ours says it belongs to."""
    bound = description.get(BINDING)
    return str(bound.get("generation")) if isinstance(bound, Mapping) else None


def unbound(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without what binds it."""
    return {key: value for key, value in description.items() if key != BINDING}


# --- what was edited


def differences(stated: Any, found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where two descriptions differ: the path to a value, and both values in words."""
    if isinstance(stated, Mapping) and isinstance(found, Mapping):
        for key in sorted({*stated, *found}, key=str):
            yield from differences(stated.get(key, _NOTHING), found.get(key, _NOTHING), (*path, str(key)))
    elif isinstance(stated, list) and isinstance(found, list) and _nested(stated) and _nested(found):
        for place in range(max(len(stated), len(found))):
            one, other = (values[place] if place < len(values) else _NOTHING for values in (stated, found))
            yield from differences(one, other, (*path, str(place)))
    elif stated is not found and (type(stated) is not type(found) or stated != found) and not _same(stated, found):
        yield path, f"{'.'.join(path)} is {_short(found)}, the weights were written with {_short(stated)}"


class _Nothing:
    def __repr__(self) -> str:
        return "not there"


_NOTHING = _Nothing()


def _nested(values: list[Any]) -> bool:
    return any(isinstance(value, Mapping | list) for value in values)


def _same(one: Any, other: Any) -> bool:
    """12 and 12.0 are one number; True is none."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return numbers and one == other


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def edited(
    stated: Mapping[str, Any], found: Mapping[str, Any], file: Path, free: Callable[[tuple[str, ...]], bool]
) -> list[str]:
    """Notes on how a description differs from what its weights were written with, in values that are
    ``free`` to be set; any other edit is refused.
    """
    told: list[str] = []
    for path, words in differences(stated, unbound(found)):
        if not free(path):
            raise CheckpointError(
                f"{file} was edited, or is of another save: {words}.\nUndo that, or take the file as it is on purpose "
                f"with config={str(file)!r} and save the result anew"
            )
        told.append(f"{file.name} was edited: {words}; it is taken, since no weight depends on it")
    return told


def check_beside(header: Header, folder: Path, names: Collection[str], again: str, alone: str) -> None:
    """Tell of files in a folder that are not those written with the weights beside them; refused where
    they may be of another save. ``header``: as it was before the files were read; ``again``, ``alone``: what
    to save again, and how to read such a file by itself.
    """
    there = [name for name in names if name in header.files and (folder / name).exists()]
    if not (found := faults(folder, header.files, there)):
        return
    if not same_save(folder, header.generation) or replaced(folder, header):
        raise CheckpointError(
            f"{folder}: {found[0]}: it is of another save, of which one was cut short.\nSave the model with its "
            f"{again} again, or take this one as it is: {alone}"
        )
    warnings.warn(f"{folder}: {found[0]}: it was edited, and is taken as it is", UserWarning, stacklevel=5)


# --- what is damaged


def faults(folder: Path, files: Mapping[str, str], names: Collection[str] | None = None) -> list[str]:
    """What is wrong with the files that were written beside weights: which lack, which are others."""
    found = []
    for name, digest in files.items():
        if names is None or name in names:
            if not (folder / name).is_file():  # nor a pipe or device, which could be read for ever
                found.append(f"{name} is missing")
            elif (actual := sha256_of(folder / name)) != digest:
                found.append(f"{name} has sha256 {actual}, it was written with {digest}")
    return found


def content_of(archive: Archive) -> str:
    """The hash of an archive's tensors as they are stored, read now."""
    archive = archive.stored
    return content_hash(archive.tensors, {name: tensor_hash(archive.read(name)) for name in archive.tensors})


def content_named(folder: Path) -> str | None:
    """The hash of the tensors that a description of ours in a folder names, or None."""
    file = folder / CONFIG_FILE
    bound = read_json(file).get(BINDING) if file.is_file() else None
    found = bound.get("content_sha256") if isinstance(bound, Mapping) else None
    return found if isinstance(found, str) else None


def damage(folder: Path, *, contents: bool = True) -> list[str]:
    """What is wrong with a folder that `zoo.convert` or `zoo.save` wrote, by its own hashes. Without
    ``contents`` only what can be told from sizes and headers.
    """
    try:
        description = read_json(folder / CONFIG_FILE)
        with open_archive(folder) as archive:
            header = Header.of(archive)
            if header.generation is None:
                return [UNBOUND]
            if header.generation != generation_of(description) or header.json(DESCRIPTION) != unbound(description):
                return ["config.json is not the one that the weights were written with"]
            if contents and (found := content_of(archive)) != header.said.get(CONTENT):
                return [f"the tensors hash to {found}, they were written with {header.said.get(CONTENT)}"]
            return faults(folder, header.files) if contents else []
    except (CheckpointError, OSError) as error:
        return [str(error)]
