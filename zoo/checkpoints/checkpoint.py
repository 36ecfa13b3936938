"""From a located source to an opened checkpoint that knows which model it is of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from zoo.checkpoints.binding import CONFIG_FILE, FOREIGN, MODULES, WEIGHTS_FILE, Header, faults, replaced
from zoo.checkpoints.description import (
    class_of_maps,
    described,
    foreign_words,
    own_description,
    targets_of,
)
from zoo.checkpoints.files import architectures_of, folder_of, foreign_config, head_options
from zoo.checkpoints.locate import record_of
from zoo.checkpoints.opened import Opened, under_own_names
from zoo.checkpoints.sentence_modules import embedding_options, prompt_note, refuse_model_elsewhere, with_modules
from zoo.errors import CheckpointError, with_article
from zoo.formats.archive import Archive
from zoo.formats.disk import settled
from zoo.formats.opening import opened
from zoo.maps import layouts
from zoo.maps.config_map import SAVE
from zoo.maps.plans import Target
from zoo.registry import variants as registry
from zoo.registry.records import Record, label_names
from zoo.registry.tasks import TASKS
from zoo.tasks.base import spec_of_class
from zoo.techniques.blueprint import Blueprint


@dataclass(frozen=True)
class Checkpoint(Opened):
    """An opened checkpoint and the ``blueprint`` of the model that it holds.

    ``shown``: its name in messages. ``differs``: config fields in which it differs from the variant
    that the user named, (variant's, checkpoint's). ``notes``: what is to be said of how its files
    belong together; ``bound``: the hashes of the files that were written with the tensors, None where
    nothing binds them.
    """

    _: KW_ONLY
    source: Any  # the file or folder, or the tensors in memory
    shown: str
    blueprint: Blueprint
    hints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bound: Mapping[str, str] | None = None

    def hints_for(self, task: str | None) -> Mapping[str, Any]:
        """The options that a task should take, as far as something beside the tensors says them."""
        if self.keymap is None:
            return self.hints.get(task or "", {})
        if task == "sentence-embedding":
            return self.hints[task] if task in self.hints else embedding_options(self.source)
        if task is None:
            return {}
        return head_options(self.foreign, spec_of_class(task, self.blueprint.model_class).options)

    def kept_task(self) -> tuple[str | None, str]:
        """The task that a foreign checkpoint was trained for, as far as what lies beside the tensors
        says it and its head is there; and what to say where it is not. Heads that the family trains
        its models with are no such task: they are there for whoever asks for them.
        """
        if self.keymap is None:
            return self.blueprint.task, ""
        if self.hints_for("sentence-embedding"):
            return "sentence-embedding", prompt_note(self.source)
        named, model_class = architectures_of(self.foreign), self.blueprint.model_class
        known = [name for name in named if name in self.keymap.architectures]
        said = {head for name in known for head in self.keymap.architectures[name]}
        heads = {head for head in said if head not in model_class.heads or (said == {head} and self._classifies(head))}
        present = self.plan(inspect=True).heads if heads else frozenset()
        tasks = [task for head in sorted(heads & present) if (task := head.replace("_", "-")) in TASKS]
        if len(tasks) == 1:
            return tasks[0], ""
        if heads:
            return (
                None,
                f"the config says {', '.join(known)}, but the file has no such head; the model comes without it",
            )
        strange = [name for name in named if name not in known and "For" in name]
        if strange and not known:
            return None, f"the zoo has no head like that of {', '.join(strange)}; the model comes without it"
        return None, ""

    def _classifies(self, head: str) -> bool:
        """Whether a head is that of a task with classes of its own, as answers are, and no guess at masked words."""
        task = head.replace("_", "-")
        return task in TASKS and "num_labels" in spec_of_class(task, self.blueprint.model_class).options

    def targets(self, blueprint: Blueprint | None = None) -> dict[str, Target]:
        """What of ours the whole file must give, with every head that it has, for this ``blueprint`` or
        the checkpoint's own.
        """
        stored = {name: info.shape for name, info in self.plan(inspect=True).outputs.items()}
        return targets_of(blueprint or self.blueprint, stored)


@contextmanager
def open_checkpoint(
    source: Any,
    *,
    name: str | None = None,
    record: Record | None = None,
    layout: str | Path | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    shown: str | None = None,
    mmap: bool = False,
) -> Iterator[Checkpoint]:
    """Open a file, a folder or a dict of tensors, in our layout or a foreign one.

    name: the variant that it should be of, with a tag or without. record: what is on record of
    these files. layout: None = recognised; or a map file. config: the config, where none lies beside
    the source, or to be taken whatever lies there. mmap: tensors may show the mapped file, see
    `open_archive`. A folder that is just being replaced is read again.
    """
    shown = shown or ("tensors in memory" if isinstance(source, Mapping) else str(source))
    refuse_model_elsewhere(source)

    def opened_once() -> Checkpoint:
        return _checkpoint(source, name, record, layout, config, shown, mmap)

    found = opened_once() if isinstance(source, Mapping) else settled(opened_once, Path(source))
    try:
        yield found
    finally:
        found.archive.close()


def _checkpoint(
    source: Any,
    name: str | None,
    record: Record | None,
    layout: str | Path | None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None,
    shown: str,
    mmap: bool,
) -> Checkpoint:
    archive = opened(source, mmap=mmap)
    try:
        header = Header.of(archive)
        ours, notes = (
            ({}, ()) if layout not in (None, layouts.OURS) else own_description(archive, header, source, config)
        )
        if ours:
            return _of_ours(archive, header, ours, notes, name, source, shown)
        return _of_others(archive, header, name, record, layout, config, source, shown)
    except BaseException:
        archive.close()
        raise


def _of_ours(
    archive: Archive,
    header: Header,
    description: Mapping[str, Any],
    notes: tuple[str, ...],
    name: str | None,
    source: Any,
    shown: str,
) -> Checkpoint:
    blueprint = described(description, Path(shown))
    if name is not None and registry.resolve(name)[0].model_class() is not blueprint.model_class:
        raise CheckpointError(f"{shown} holds a {description['class']}, not {with_article(str(name))}")
    return Checkpoint(
        under_own_names(archive),
        None,
        blueprint.config.to_dict(),
        source=source,
        shown=shown,
        blueprint=blueprint,
        hints=description.get("hints", {}),
        differs=_differences(name, blueprint.config),
        notes=notes,
        bound=None if header.generation is None else header.files,
    )


def _of_others(
    archive: Archive,
    header: Header,
    name: str | None,
    record: Record | None,
    layout: str | Path | None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None,
    source: Any,
    shown: str,
) -> Checkpoint:
    variant = None if name is None else registry.resolve(name)[0]
    foreign = foreign_config(source, config if config is not None else record.config if record else None)
    foreign = layouts.own_config(archive) if foreign is None else foreign
    if record is not None and record.labels and foreign is not None:
        foreign = {"id2label": dict(enumerate(label_names(record.labels))), **foreign}
    if foreign is None and name is not None and registry.split(name)[1]:  # "name.tag": what is on record of it
        known = record_of(name)
        if isinstance(known.config, Mapping):
            foreign = dict(known.config)
            if known.layout is None or not layouts.load(known.layout).fits(archive.tensors, below=True):
                record = known  # else somebody's own file, in another layout of the family
    written = None if config is not None or header.generation is None else header.json(FOREIGN)
    recorded = record.layout if record is not None else None
    found_layout = layout or recorded or layouts.recognise(archive, foreign if written is None else written)
    if found_layout == layouts.OURS and layouts.is_ours(archive):
        raise layouts.undescribed(shown)
    keymap = layouts.load(found_layout)
    if variant is not None and variant.maps != keymap.family:
        raise CheckpointError(
            f"{shown} is {with_article(keymap.family)} (layout {keymap.layout}), not {with_article(variant.maps)} like "
            f"{variant.name}"
        )
    model_class = class_of_maps(keymap.family) if variant is None else variant.model_class()

    def understood(said: Mapping[str, Any] | None) -> Any:
        return model_class.Config.from_dict(keymap.config_forward(said or {}, alone.tensors))

    alone = archive
    archive, modules = with_modules(alone, source)
    if archive is not alone:
        archive.put_together_from(alone.stored)
    notes: tuple[str, ...] = ()
    hints: dict[str, Any] = {}
    folder = folder_of(source)
    if written is not None:
        foreign, notes = foreign_words(header, foreign, understood, (folder or Path()) / CONFIG_FILE)
        hints, more = _modules(header, folder, foreign)
        notes += more
    found = understood(foreign)
    return Checkpoint(
        archive,
        keymap,
        found.to_dict(),
        foreign,
        modules=modules,
        sha256=None if record is None else record.sha256,
        source=source,
        shown=shown,
        blueprint=Blueprint(model_class, found, None if variant is None else variant.name),
        differs=_differences(name, found),
        hints=hints,
        notes=notes,
        bound=None if header.generation is None else header.files,
    )


def _modules(
    header: Header, folder: Path | None, config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a sentence encoder that the zoo wrote for another library says of its vectors, and what is
    to be said of that; refused where the files that say it may be of another save.
    """
    if folder is None or header.path.name not in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json"):
        return {"sentence-embedding": {}}, ()
    found = {"sentence-embedding": embedding_options(folder)}
    told = faults(folder, header.files, [name for name in header.files if name in MODULES or "/" in name])
    if found["sentence-embedding"] and "modules.json" not in header.files:
        told.insert(0, "modules.json was not written with the weights")
    if told and ((config or {}).get(SAVE) != header.generation or replaced(folder, header)):
        raise CheckpointError(f"{folder}: {told[0]}: it is of another save; convert the model again")
    return found, tuple(f"{fault}: it was edited, and is taken as it is" for fault in told)


def _differences(name: str | None, found: Any) -> dict[str, tuple[Any, Any]]:
    """The fields, free ones excepted, in which a checkpoint's config differs from the named
    variant's: (variant's, checkpoint's).
    """
    if name is None:
        return {}
    named, names = registry.config(name), set(found.field_names()) - found.free_fields()
    pairs = {key: (getattr(named, key), getattr(found, key)) for key in found.field_names() if key in names}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
