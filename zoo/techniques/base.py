"""What every technique is: a frozen config that says what, and `apply`, which does it to a model
and says what it changed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointError, ConfigError, TechniqueError, counted, unknown
from zoo.layers.attention import DenseAttention
from zoo.layers.extend import own_class
from zoo.layers.init import initialise
from zoo.models.base.config import Config
from zoo.models.base.model import Model, bare_model, on_meta, shadow
from zoo.models.base.sites import Site
from zoo.registry.renames import TECHNIQUES as RENAMED
from zoo.registry.techniques import TECHNIQUES

M = TypeVar("M", bound=nn.Module)
MAX_RECORDED = 64  # techniques of one model; each is looked for in all of its parts


@dataclass(frozen=True)
class Change:
    """What a technique did to a model: parameters before and after, and the tensors that came and
    went (by their canonical names).
    """

    technique: str
    before: int
    after: int
    added: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = f" ({(self.after - self.before) / self.before:+.2%})" if self.before else ""
        lines = [f"{self.technique}: {self.before:,} parameters before, {self.after:,} after{share}"]
        lines += [
            f"  {counted(len(names), 'tensor')} {verb}"
            for names, verb in ((self.added, "added"), (self.removed, "removed"))
            if names
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class Technique(Config):
    """Base of the techniques. Subclasses add fields and write `change`."""

    needs: ClassVar[tuple[str, ...]] = ()  # the roles without which there is nothing to do
    adds_tensors: ClassVar[bool] = (
        True  # or changes names and shapes: then a foreign layout has no place for the result
    )
    only_values: ClassVar[bool] = False  # what it does stands in the values of the weights alone: any layout can say it
    reads_depths: ClassVar[bool] = False  # it reads hidden states by their numbers, so that no layer may go afterwards
    chosen: ClassVar[Mapping[str, Tensor] | None] = None  # of a pruning technique: what stays, see `apply_chosen`

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [getattr(self, key, ()) for key in ("name", "names")]
        for name in (part for found in names for part in ([found] if isinstance(found, str) else found)):
            if not name or "." in name or hasattr(nn.ModuleDict, name):
                raise ConfigError(
                    f"{type(self).__name__} can't be called {name!r}: a name is a part of the names of tensors, so it "
                    "is not empty, has no dot and is no method of torch's modules"
                )

    def apply(self, model: M, generator: torch.Generator | None = None) -> M:
        """Change the model in place. -> the same model; what was done is the last of
        ``model.changes``.

        Raises TechniqueError where the model lacks the parts, before anything is touched.
        """
        bare = bare_model(model)
        for role in self.needs:
            if not any(site.role == role for site in bare.sites()):
                raise TechniqueError(
                    f"{type(self).__name__} needs a part with the role {role!r}, which {type(bare).__name__} has not"
                )
        before, had = bare.num_parameters(), _shapes(bare)
        notes = self.change_with_heads(model, generator)
        if not on_meta(bare):
            self.settle(bare, generator)
        has = _shapes(bare)
        change = Change(
            str(self),
            before,
            bare.num_parameters(),
            {name: shape for name, shape in has.items() if had.get(name) != shape},
            {name: shape for name, shape in had.items() if has.get(name) != shape},
            tuple(notes or ()),
        )
        bare.techniques = (*bare.techniques, self)
        bare.changes = (*getattr(bare, "changes", ()), change)  # type: ignore[assignment]
        return model

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        """Do it; remarks go into the report. Checks come before the first change. On meta nothing
        but names and shapes matters.
        """
        raise NotImplementedError

    def change_with_heads(self, model: nn.Module, generator: torch.Generator | None) -> Sequence[str] | None:
        """The same for a technique that changes the task's heads around the model too."""
        return self.change(bare_model(model), generator)

    def settle(self, model: Model, generator: torch.Generator | None) -> None:
        """What depends on the numbers and not on the shapes alone, after `change`: at once, or,
        where a model is built on meta, when its random weights have been drawn. A loaded model's
        tensors say it themselves.
        """

    def __str__(self) -> str:
        """As it would be written, what is by default left out."""
        given = [entry for entry in fields(self) if getattr(self, entry.name) != entry.default]
        return f"{type(self).__name__}({', '.join(f'{entry.name}={getattr(self, entry.name)!r}' for entry in given)})"

    def record(self) -> dict[str, Any]:
        """How it stands in a saved config: its name and its fields."""
        return {"technique": type(self).__name__, **self.to_dict()}


@dataclass(frozen=True, kw_only=True)
class PlacedTechnique(Technique):
    """A technique that a user may restrict: to ``streams`` ("text", "image", ...) and to
    ``depths``; empty = everywhere.
    """

    streams: tuple[str, ...] = ()
    depths: tuple[int, ...] = ()

    def wants(self, site: Site) -> bool:
        """Whether a place is in the wanted streams and depths."""
        in_streams = not self.streams or site.stream in self.streams
        return in_streams and (not self.depths or bool(set(site.depths) & set(self.depths)))

    def places(self, model: Model, *roles: str) -> list[Site]:
        """The model's sites of these roles in the wanted streams and depths; a TechniqueError that
        says what there is where none fits.

        A part that runs at several depths (a shared block) is one place, wanted if one of its
        depths is.
        """
        sites = [site for site in model.sites() if site.role in roles]
        found = [site for site in sites if self.wants(site)]
        if not found:
            name, what = type(model).__name__, " or ".join(repr(role) for role in roles)
            if not sites:
                raise TechniqueError(f"{type(self).__name__} needs a part with the role {what}, which {name} has not")
            streams = ", ".join(sorted({site.stream for site in sites}))
            depths = sorted({depth for site in sites for depth in site.depths})
            wanted = f"streams={self.streams}, depths={self.depths}"
            raise TechniqueError(
                f"no part of {name} fits {wanted}; its {what} parts are of the streams {streams} at depths {depths}"
            )
        return found


def refuse_read_depths(technique: Technique, model: Model) -> None:
    """Refuse to take layers out of a model below something that reads hidden states by number."""
    reader = next((one for one in model.techniques if one.reads_depths), None)
    if reader is not None:
        name = type(technique).__name__
        raise TechniqueError(
            f"{type(reader).__name__} reads this model's hidden states by their numbers, which {name} would change; "
            f"apply {name} first"
        )


def apply_chosen(technique: Technique, model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Apply a pruning technique that keeps these parts, by path or width, in place of those it would
    choose. It is recorded without them: the tensors say it.
    """
    object.__setattr__(technique, "chosen", keep)
    try:
        technique.apply(model)
    finally:
        object.__delattr__(technique, "chosen")


def all_but(size: int, gone: Iterable[int], what: str) -> Tensor:
    """The numbers 0..size-1 without those that go, which must be some of them."""
    out = set(gone)
    if out and (min(out) < 0 or max(out) >= size):
        raise TechniqueError(f"{what} has the numbers 0..{size - 1}, got {sorted(out)}")
    return torch.tensor([number for number in range(size) if number not in out], dtype=torch.int64)


def apply(model: M, *techniques: Technique, generator: torch.Generator | None = None) -> M:
    """Apply techniques to a model in place, in order, all or none, and return it. ``generator``
    draws the new weights.
    """
    for technique in techniques:
        if not isinstance(technique, Technique):
            raise TechniqueError(f"a technique is an object like zoo.LoRA(rank=8), got {technique!r}")
    if len(techniques) > 1 and not on_meta(bare_model(model)):
        apply(shadow(model), *techniques)  # a later one may not fit
    for technique in techniques:
        technique.apply(model, generator)
    return model


def recorded(records: Sequence[Mapping[str, Any]]) -> tuple[Technique, ...]:
    """The techniques that a saved config names; an unknown one is refused with the closest."""
    if len(records) > MAX_RECORDED:
        raise TechniqueError(f"the config names {len(records):,} techniques; at most {MAX_RECORDED} are put on a model")
    found = []
    for entry in records:
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"a technique is recorded as its name and its fields, got {entry!r}")
        values = dict(entry)
        name = str(values.pop("technique", ""))
        name = RENAMED.get(name, name)
        if name not in TECHNIQUES:
            raise unknown("technique", name, TECHNIQUES)
        found.append(technique_class(name).from_dict(values))
    return tuple(found)


def technique_class(name: str) -> type[Technique]:
    """The class of a technique that `zoo.registry.techniques` declares."""
    found: type[Technique] = getattr(importlib.import_module(TECHNIQUES[name].module), name)
    return found


def fresh(module: M, like: Tensor, std: float, generator: torch.Generator | None) -> M:
    """A new part on the device and in the dtype of ``like``, its weights drawn (on meta: only its
    shapes).
    """
    with torch.no_grad():
        module.to_empty(device=like.device) if like.is_meta else module.to(like.device)
        module.to(like.dtype)
        if not like.is_meta:
            initialise(module, std, generator)
    return module


def new_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that techniques added, with their names."""
    bare = bare_model(model)
    added = {name for change in getattr(bare, "changes", ()) for name in change.added}
    prefix = "" if bare is model else "model."
    for name, parameter in model.named_parameters():
        if name.removeprefix(prefix) in added:
            yield name, parameter


def freeze_all_but(model: nn.Module, *, heads: bool = True) -> list[str]:
    """Train what techniques added (and, with ``heads``, a task's heads), freeze the rest. -> the
    names that train.
    """
    train = {name for name, _ in new_tensors(model)}
    names = []
    for name, parameter in model.named_parameters():
        wanted = name in train or (heads and name.startswith("heads."))
        parameter.requires_grad_(wanted)
        if wanted:
            names.append(name)
    return names


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What is saved: parameters, and buffers such as ranges and stored integers."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def plain_attentions(technique: PlacedTechnique, model: Model, why: str, *, prefixes: bool = True) -> list[Any]:
    """The self-attentions in the wanted places, whose cores are to be exchanged; a TechniqueError,
    which ends in ``why``, where a core is another technique's. prefixes: may stand in front.
    """
    found = []
    for site in technique.places(model, "self-attention"):
        core = getattr(site.module, "core", None)
        if core is None:
            raise TechniqueError(f"{site.path} is a {type(site.module).__name__}, which has no exchangeable core")
        if not has_plain_core(site.module) or not (prefixes or type(core) is DenseAttention):
            raise TechniqueError(f"the attention at {site.path} has a {type(core).__name__} already; {why}")
        found.append(site.module)
    return found


def has_plain_core(attention: Any) -> bool:
    """Whether an attention computes dense attention, prefixes aside."""
    return own_class(attention.core) is DenseAttention


def parts_of(model: nn.Module, kind: type) -> dict[str, Any]:
    """The parts of a kind, by path in the bare model."""
    return {path: part for path, part in bare_model(model).named_modules() if isinstance(part, kind)}


def put_core(attention: nn.Module, new: nn.Module) -> None:
    """Exchange an attention's core; what was put around the old one (prefixes) hands itself over to
    the new one.
    """
    hand_over = getattr(attention.core, "hand_over", None)
    new.train(attention.training)
    if hand_over is not None:
        hand_over(new)
    attention.core = new
