"""From a located source to an opened checkpoint that knows which model it is of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from zoo.checkpoints.description import class_of_maps, described, targets_of
from zoo.checkpoints.files import architectures_of, foreign_config, head_options, read_description
from zoo.checkpoints.locate import record_of
from zoo.checkpoints.opened import Opened, under_own_names
from zoo.checkpoints.sentence_modules import embedding_options, prompt_note, refuse_model_elsewhere, with_modules
from zoo.errors import CheckpointError
from zoo.formats.opening import opened
from zoo.maps import layouts
from zoo.registry import variants as registry
from zoo.registry.records import Record
from zoo.registry.tasks import TASKS
from zoo.tasks.base import spec_of_class
from zoo.techniques.blueprint import Blueprint


@dataclass(frozen=True)
class Checkpoint(Opened):
    """An opened checkpoint and the ``blueprint`` of the model that it holds.

    ``shown``: its name in messages. ``differs``: config fields in which it differs from the variant
    that the user named, (variant's, checkpoint's).
    """

    _: KW_ONLY
    source: Any  # the file or folder, or the tensors in memory
    shown: str
    blueprint: Blueprint
    hints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def hints_for(self, task: str | None) -> Mapping[str, Any]:
        """The options that a task should take, as far as something beside the tensors says them."""
        if self.keymap is None:
            return self.hints.get(task or "", {})
        if task == "sentence-embedding":
            return embedding_options(self.source)
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
        if embedding_options(self.source):
            return "sentence-embedding", prompt_note(self.source)
        named, model_class = architectures_of(self.foreign), self.blueprint.model_class
        known = [name for name in named if name in self.keymap.architectures]
        heads = {head for name in known for head in self.keymap.architectures[name]} - set(model_class.heads)
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

    def targets(self, blueprint: Blueprint | None = None) -> dict[str, tuple[int, ...]]:
        """The names and shapes of ours that the whole file must give, with every head that it has, for
        this ``blueprint`` or the checkpoint's own.
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
) -> Iterator[Checkpoint]:
    """Open a file, a folder or a dict of tensors, in our layout or a foreign one.

    name: the variant that it should be of, with a tag or without. record: what is on record of
    these files. layout: None = recognised; or a map file. config: the foreign config, where none
    lies beside the source.
    """
    shown = shown or ("tensors in memory" if isinstance(source, Mapping) else str(source))
    variant = None if name is None else registry.resolve(name)[0]
    description = None if isinstance(source, Mapping) else read_description(Path(source))
    if description is None and config is not None and "zoo_format" in (said := foreign_config(source, config) or {}):
        description, config = said, None
    refuse_model_elsewhere(source)
    with opened(source) as archive:
        if description is not None and layout in (None, layouts.OURS):
            archive = under_own_names(archive)
            blueprint = described(description, Path(source))
            if variant is not None and variant.model_class() is not blueprint.model_class:
                raise CheckpointError(f"{source} holds a {description['class']}, not a {name}")
            yield Checkpoint(
                archive,
                None,
                blueprint.config.to_dict(),
                source=source,
                shown=shown,
                blueprint=blueprint,
                hints=description.get("hints", {}),
                differs=_differences(name, blueprint.config),
            )
            return
        foreign = foreign_config(source, config if config is not None else record.config if record else None)
        foreign = layouts.own_config(archive) if foreign is None else foreign
        if foreign is None and name is not None and registry.split(name)[1]:  # "name.tag": what is on record of it
            known = record_of(name)
            if isinstance(known.config, Mapping):
                foreign, record = dict(known.config), known
        recorded = record.layout if record is not None else None
        found_layout = layout or recorded or layouts.recognise(archive, foreign)
        if found_layout == layouts.OURS and layouts.is_ours(archive):
            raise layouts.undescribed(shown)
        keymap = layouts.load(found_layout)
        if variant is not None and variant.maps != keymap.family:
            raise CheckpointError(
                f"{shown} is a {keymap.family} (layout {keymap.layout}), not a {variant.maps} like {variant.name}"
            )
        model_class = class_of_maps(keymap.family) if variant is None else variant.model_class()
        found = model_class.Config.from_dict(keymap.config_forward(foreign or {}, archive.tensors))
        archive, modules = with_modules(archive, source)
        yield Checkpoint(
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
        )


def _differences(name: str | None, found: Any) -> dict[str, tuple[Any, Any]]:
    """The fields, free ones excepted, in which a checkpoint's config differs from the named
    variant's: (variant's, checkpoint's).
    """
    if name is None:
        return {}
    named, names = registry.config(name), set(found.field_names()) - found.free_fields()
    pairs = {key: (getattr(named, key), getattr(found, key)) for key in found.field_names() if key in names}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
