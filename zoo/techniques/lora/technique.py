"""LoRA (Hu et al., 2022): y = W x + b + s · B A x with W frozen; rank-stabilised scaling; DoRA; and
IA3, which rescales outputs or inputs.

In a block that runs at several depths (ALBERT) there is one update for all of them, as there is one
W.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import TechniqueError, unknown
from zoo.layers.embeddings import NarrowTable
from zoo.layers.extend import Extension, extend, extensions, own_class, without
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model, bare_model
from zoo.models.base.sites import Site
from zoo.techniques.base import PlacedTechnique, fresh, parts_of
from zoo.techniques.lora.layers import (
    GatedLowRank,
    InputRescaled,
    LowRank,
    LowRankUpdated,
    Rescaled,
    Rescaling,
    row_norms,
)

LINEAR_ROLES = (
    "attention-query",
    "attention-key",
    "attention-value",
    "attention-output",
    "feed-forward-up",
    "feed-forward-down",
)


@dataclass(frozen=True, kw_only=True)
class LoRA(PlacedTechnique):
    """``W x + b + s · B A x`` at the linear layers of these ``roles``; s = alpha / rank, or alpha /
    sqrt(rank) with ``rank_stabilized``.

    ``name`` tells several updates of one layer apart; they add up. ``alpha`` None = rank (s = 1).
    """

    rank: int = 8  # width of B A
    alpha: float | None = None  # scales the update; None: as rank
    dropout: float = 0.0  # on what enters A
    roles: tuple[str, ...] = ("attention-query", "attention-value")  # the linear layers that get an update
    rank_stabilized: bool = False  # s = alpha / sqrt(rank)
    bias: bool = False  # B has a bias
    dora: bool = False  # a learned length for each output's weights (DoRA)
    gate: bool = False  # each text weighs the update; without dora and bias
    dora_whole: bool = (
        False  # m scales the bias too, over the norm of W + B A without s: the form of the library `adapters`
    )
    paths: tuple[str, ...] = ()  # these parts by their paths, in place of roles
    name: str = "default"  # tells several updates of one layer apart

    def check(self) -> None:
        check_positive(self, "rank")
        if self.gate and (self.dora or self.bias):
            raise TechniqueError(
                "a gated LoRA has no form as a DoRA and no bias here; leave dora and bias off, or gate"
            )

    @property
    def scale(self) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)  # eq: scale

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites = linear_sites(self, model, self.roles, self.paths)
        for site in sites:
            if isinstance(site.module, LowRankUpdated) and self.name in site.module.loras:
                raise TechniqueError(f"{site.path} has a LoRA named {self.name!r} already; give this one another name")
        std = model.config.initializer_range
        for site in sites:
            linear = site.module
            assert isinstance(linear, nn.Linear)
            size = (linear.in_features, linear.out_features, self.rank, self.scale)
            if self.gate:
                update: LowRank = GatedLowRank(*size, dropout=self.dropout)
            else:
                update = LowRank(*size, dropout=self.dropout, dora=self.dora, whole=self.dora_whole, bias=self.bias)
            update = fresh(update, linear.weight, std, generator)
            update.train(linear.training)
            if update.magnitude is not None and not linear.weight.is_meta:
                with torch.no_grad():
                    update.magnitude.copy_(row_norms(linear.weight, update))
            add_update(linear, self.name, update)
        return None


@dataclass(frozen=True, kw_only=True)
class IA3(PlacedTechnique):
    """``l ⊙ (W x + b)``: a learned scale for each output of keys, values and the feed-forward's
    inner layer.

    input_roles: layers whose inputs are scaled, ``W (l ⊙ x) + b``; the paper and ``peft`` scale the
    feed-forward behind its activation: ``IA3(roles=("attention-key", "attention-value"),
    input_roles=("feed-forward-down",))``. Ahead of it is how ``adapters`` does.
    """

    roles: tuple[str, ...] = ("attention-key", "attention-value", "feed-forward-up")  # layers whose outputs are scaled
    input_roles: tuple[str, ...] = ()  # layers whose inputs are scaled
    paths: tuple[str, ...] = ()  # parts by their paths: with these or `input_paths`, neither of the roles counts
    input_paths: tuple[str, ...] = ()  # parts whose inputs are scaled, by their paths
    name: str = "default"  # tells several scales of one layer apart

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        by_path = bool(self.paths or self.input_paths)
        outputs, inputs = ((), ()) if by_path else (self.roles, self.input_roles)
        if not by_path and not outputs and not inputs:
            raise TechniqueError(f"IA3 needs a role in roles or input_roles, such as {', '.join(LINEAR_ROLES)}")
        places: list[tuple[Site, type[Extension], str]] = []
        if outputs or self.paths:
            places += [(site, Rescaled, "rescalings") for site in linear_sites(self, model, outputs, self.paths)]
        if inputs or self.input_paths:
            places += [
                (site, InputRescaled, "input_rescalings")
                for site in linear_sites(self, model, inputs, self.input_paths)
            ]
        for site, _, holder in places:
            if self.name in getattr(site.module, holder, {}):
                raise TechniqueError(
                    f"{site.path} has a rescaling named {self.name!r} already; give this one another name"
                )
        for site, extension, holder in places:
            part: Any = site.module
            if extend(part, extension):
                setattr(part, holder, nn.ModuleDict())
            size = part.out_features if extension is Rescaled else part.in_features
            made = fresh(Rescaling(size), part.weight, model.config.initializer_range, generator)
            getattr(part, holder)[self.name] = made
        return None


def add_update(linear: Any, name: str, update: LowRank) -> None:
    """Give a linear layer one more update and let it act."""
    if extend(linear, LowRankUpdated):
        linear.loras, linear.active_loras = nn.ModuleDict(), ()
    linear.loras[name] = update
    linear.active_loras = (*linear.active_loras, name)


def linear_sites(technique: PlacedTechnique, model: Model, roles: Sequence[str], paths: Sequence[str]) -> list[Site]:
    """The places of these roles (or at these paths) that are linear layers, each once."""
    if not roles and not paths:
        raise TechniqueError(f"{type(technique).__name__} needs at least one role, such as {', '.join(LINEAR_ROLES)}")
    if paths:
        parts = dict(model.named_modules())
        if missing := [path for path in paths if path not in parts]:
            raise unknown(f"part of {type(model).__name__}", missing[0], parts)
        sites = [
            Site(path, "", "", (), model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2])
            for path in dict.fromkeys(paths)
        ]
    else:
        sites = technique.places(model, *roles)
    for site in sites:
        if not isinstance(site.module, nn.Linear):
            raise TechniqueError(
                f"{site.path} is a {type(site.module).__name__}; {type(technique).__name__} changes linear layers"
            )
    return sites


def switch(model: nn.Module, names: Sequence[str] | None = None) -> None:
    """Let only the updates of these names act from here on, as from batch to batch; None = all of
    them. Saved files know of no switch.
    """
    parts = list(parts_of(model, LowRankUpdated).values())
    known = list(dict.fromkeys(name for part in parts for name in part.loras))
    if missing := [name for name in names or () if name not in known]:
        raise unknown("LoRA of this model", missing[0], known)
    for part in parts:
        part.active_loras = tuple(name for name in part.loras if names is None or name in names)


@torch.no_grad()
def merge(model: nn.Module, name: str | None = None) -> Mapping[str, Any]:
    """Add the updates to the weights they belong to and take them away: no cost at inference, and
    any converter takes the model again. The model gives what it gave, but for the rounding of the
    sum to the weights' dtype.

    name: one update's; None = all. -> what `unmerge` needs, by path. Raises TechniqueError where a
    merge would change what the model gives, before anything is changed.
    """
    bare = bare_model(model)
    updated = parts_of(bare, LowRankUpdated)
    parts = {path: (part, [key for key in part.loras if name in (None, key)]) for path, part in updated.items()}
    known = list(dict.fromkeys(key for part in updated.values() for key in part.loras))
    if name is not None and name not in known:
        raise unknown("LoRA of this model", name, known)
    readers = _readers(model)
    for path, (part, keys) in parts.items():
        for key in keys:
            if reason := _unmergeable(part, key, readers):
                raise TechniqueError(
                    f"the update {key!r} at {path} can't be merged: {reason}. Nothing was changed; the model runs and "
                    "is saved with its updates as well"
                )
    removed: dict[str, list[tuple[str, LowRank, torch.Tensor | None]]] = {}
    kinds: dict[str, type] = {}
    for path, (part, keys) in parts.items():
        kinds[path] = type(part)
        for key in keys:
            update = part.loras[key]
            before = part.weight.clone() if update.magnitude is not None else None
            part.weight.copy_(_merged(part.weight, update))
            removed.setdefault(path, []).append((key, update, before))
            del part.loras[key]
            part.active_loras = tuple(k for k in part.active_loras if k != key)
        if not len(part.loras):
            del part.loras
            del part.active_loras
            part.__class__ = without(type(part), LowRankUpdated)
    old = bare.techniques
    gone = tuple(t for t in old if isinstance(t, LoRA) and name in (None, t.name))
    bare.techniques = tuple(t for t in old if t not in gone)
    return {"parts": removed, "techniques": gone, "kinds": kinds, "order": old}


def _merged(weight: torch.Tensor, update: LowRank) -> torch.Tensor:
    """``W + s B A``, of a DoRA in its norm; summed in float32 where the weights are narrower, so that
    it is rounded once.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(wide) + update.scale * (update.up.to(wide) @ update.down.to(wide))
    if update.magnitude is None:
        return total
    return total * (update.magnitude / row_norms(weight, update)).to(wide)[:, None]


def _readers(model: nn.Module) -> Counter[int]:
    """How many parts read each parameter, by its identity."""
    count = Counter(id(p) for part in model.modules() for p in part._parameters.values() if p is not None)
    count.update(id(part.widen.weight) for part in model.modules() if isinstance(part, NarrowTable))
    return count


def _unmergeable(part: Any, key: str, readers: Mapping[int, int]) -> str | None:
    """Why the sum of a layer's weight and this update would not do what both do, or None."""
    update, kinds, own = part.loras[key], extensions(type(part)), own_class(part)
    here = kinds.index(LowRankUpdated)
    below, above = kinds[here + 1 :], [kind for kind in kinds[:here] if not kind.around]
    if (
        isinstance(update, GatedLowRank)
        or update.up_bias is not None
        or (update.magnitude is not None and update.whole)
    ):
        return "it has a bias or a gate, or a magnitude that scales the bias too, which no weight can hold"
    if len(part.loras) > 1 and any(other.magnitude is not None for other in part.loras.values()):
        return f"a DoRA's norm depends on the weight below it, and there are {', '.join(map(repr, part.loras))} here"
    if key not in part.active_loras:
        return "it is switched off, so that the model runs without it; switch it on first"
    if below:
        names = " and ".join(kind.__name__ for kind in below)
        return f"{names}, which the layer was before the update came, would act on the update too"
    if above:
        return f"{above[0].__name__}, which the layer became after the update came, reads the weight without it"
    if own.forward is not nn.Linear.forward or "weight" not in part._parameters:  # type: ignore[attr-defined]
        return f"the layer is a {own.__name__}, whose weight is rounded, packed or made from others"
    if not part.weight.is_floating_point():
        return f"the weight is stored as {part.weight.dtype}"
    if readers[id(part.weight)] > 1:
        return "another part reads the same weight without the update"
    return None


@torch.no_grad()
def unmerge(model: nn.Module, merged: Mapping[str, Any]) -> None:
    """Take merged updates out of the weights again and put them back as they were. Rounding aside,
    the weights are the old ones.
    """
    bare = bare_model(model)
    for path in merged["parts"]:
        kind, now = merged["kinds"][path], type(bare.get_submodule(path))
        if now not in (kind, without(kind, LowRankUpdated)):
            raise TechniqueError(
                f"{path} was a {kind.__name__} when its updates were merged and is a {now.__name__} now, so that they "
                "can't be put back where they stood; take away first what came since"
            )
    for path, updates in merged["parts"].items():
        part: Any = bare.get_submodule(path)
        for _, update, before in reversed(updates):
            part.weight.copy_(part.weight - update.delta() if before is None else before)
        if not isinstance(part, LowRankUpdated):
            part.__class__ = merged["kinds"][path]
            part.loras, part.active_loras = nn.ModuleDict(), ()
        for key, update, _ in updates:
            add_update(part, key, update)
    order, techniques = merged["order"], list(bare.techniques)
    for number in reversed(range(len(order))):
        if order[number] in merged["techniques"]:  # before those that came after it
            later = [place for place, technique in enumerate(techniques) if technique in order[number + 1 :]]
            techniques.insert(min(later, default=len(techniques)), order[number])
    bare.techniques = tuple(techniques)
