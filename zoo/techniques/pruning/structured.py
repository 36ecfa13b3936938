"""Structured pruning: heads, feed-forward units and whole layers go, and the matrices really
shrink.

    zoo.apply(model, zoo.HeadPruning(kept=0.5))            # half of each layer's heads, the smallest by their matrices
    scores = importance.head_importance(model, batches, loss)            # or by what the loss feels
    structured.remove_heads(model, importance.heads_to_prune(scores, 10))

A layer may keep any number of heads and units, none too: its attention then gives its output's
bias, its feed-forward likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import reduce
from torch import Tensor, nn

from zoo.errors import ConfigError, TechniqueError, counted, unknown
from zoo.layers.attention import Attention
from zoo.layers.stack import Stack
from zoo.models.base.model import Model, bare_model, on_meta
from zoo.models.base.sites import Site
from zoo.techniques.base import PlacedTechnique, Technique, all_but, apply_chosen, refuse_read_depths
from zoo.techniques.pruning.weights import check_share


@dataclass(frozen=True, kw_only=True)
class StructuredPruning(PlacedTechnique):
    """Base: what stays, as a share everywhere or, with ``paths``, as one count for each of these
    parts.
    """

    kept: float = 0.5  # share that stays in each layer
    paths: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()  # how many stay at each of the paths

    def check(self) -> None:
        check_share("kept", self.kept)
        if len(self.paths) != len(self.counts):
            raise ConfigError(f"each of the {len(self.paths)} paths needs a count, got {len(self.counts)}")

    def parts(self, model: Model) -> list[Site]:
        """The parts that lose something, checked."""
        raise NotImplementedError

    def size(self, part: Any) -> int:
        """How many heads or units a part has."""
        raise NotImplementedError

    def sizes_by_magnitude(self, part: Any) -> Tensor:
        """A number for each head or unit by which the smallest go."""
        raise NotImplementedError

    def cut(self, part: Any, keep: Tensor) -> None:
        """Keep these heads or units, in their order."""
        raise NotImplementedError

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites = {site.path: site for site in self.parts(model)}
        if missing := [path for path in self.paths if path not in sites]:
            raise unknown(f"part for {type(self).__name__}", missing[0], sites)
        wanted = dict(zip(self.paths, self.counts, strict=True)) if self.paths else {}
        for path, site in sites.items():
            if self.paths and path not in wanted:
                continue
            size = self.size(site.module)
            count = wanted.setdefault(path, max(1, round(self.kept * size)))
            if not 0 <= count <= size:
                raise TechniqueError(f"{path} has {size}, of which {count} can't stay")
        if all(wanted[path] == self.size(sites[path].module) for path in wanted):
            raise TechniqueError(
                f"{type(self).__name__} would remove nothing from {type(model).__name__}: every part keeps all it has"
            )
        for path, count in wanted.items():
            part, size = sites[path].module, self.size(sites[path].module)
            if self.chosen is not None:
                keep = self.chosen[path]
            elif on_meta(part):
                keep = torch.arange(count)
            else:
                keep = self.sizes_by_magnitude(part).argsort(descending=True, stable=True)[:count].sort().values
            if count < size:
                self.cut(part, keep)
        return [f"{sum(wanted.values())} stay in {len(wanted)} parts"]


@dataclass(frozen=True, kw_only=True)
class HeadPruning(StructuredPruning):
    """Remove attention heads: rows of query, key and value, columns of the output. Of each layer
    those stay whose value and output matrices have the larger norms; `remove_heads` removes chosen
    ones.
    """

    roles: tuple[str, ...] = ("self-attention",)  # the attentions that are pruned

    def parts(self, model: Model) -> list[Site]:
        sites = self.places(model, *self.roles)
        for site in sites:
            check_attention(site)
        return sites

    def size(self, part: Any) -> int:
        return int(part.num_heads)

    def sizes_by_magnitude(self, part: Any) -> Tensor:
        value, output = part.value.weight.detach().square(), part.output.weight.detach().square()
        value = reduce(value, "(heads size) hidden -> heads", "sum", heads=part.num_heads)
        output = reduce(output, "hidden (heads size) -> heads", "sum", heads=part.num_heads)
        return value.sqrt() * output.sqrt()

    def cut(self, part: Any, keep: Tensor) -> None:
        size = part.head_size
        rows = (keep[:, None] * size + torch.arange(size)).flatten()
        for linear in (part.query, part.key, part.value):
            _rows(linear, rows)
        _columns(part.output, rows)
        part.num_heads = len(keep)


@dataclass(frozen=True, kw_only=True)
class FeedForwardPruning(StructuredPruning):
    """Remove feed-forward units: rows of the first matrix, columns of the second. Those stay whose
    product of norms is larger; `remove_units` removes chosen ones.
    """

    def parts(self, model: Model) -> list[Site]:
        sites = self.places(model, "feed-forward")
        for site in sites:
            check_feed_forward(site)
        return sites

    def size(self, part: Any) -> int:
        return int(part.up.out_features)

    def sizes_by_magnitude(self, part: Any) -> Tensor:
        up, down = part.up.weight.detach(), part.down.weight.detach()
        return up.square().sum(1).sqrt() * down.square().sum(0).sqrt()

    def cut(self, part: Any, keep: Tensor) -> None:
        _rows(part.up, keep)
        _columns(part.down, keep)


class Gone(nn.Module):
    """Where a layer was removed: it holds the place, so that the others keep their names, and never
    runs.
    """


@dataclass(frozen=True, kw_only=True)
class LayerPruning(Technique):
    """Remove whole layers of a stack, by their numbers; the others keep their names. ``stack``: its
    path, where it is not the encoder.
    """

    layers: tuple[int, ...] = ()  # numbers of the layers that go
    stack: str = "encoder"  # its path

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        refuse_read_depths(self, model)
        stacks = {path: part for path, part in model.named_modules() if isinstance(part, Stack)}
        if self.stack not in stacks:
            have = ", ".join(stacks) or "none"
            raise TechniqueError(
                f"LayerPruning needs a plain stack of layers at {self.stack!r}; {type(model).__name__}'s are: {have}"
            )
        part = stacks[self.stack]
        gone = sorted(set(self.layers))
        if not gone or gone[0] < 0 or gone[-1] >= len(part.plan) or len(gone) == len(part.plan):
            raise TechniqueError(
                f"layers={self.layers} must be some but not all of {self.stack}'s 0..{len(part.plan) - 1}"
            )
        plan = tuple(index for layer, index in enumerate(part.plan) if layer not in gone)
        idle = sorted(set(part.plan) - set(plan))
        if not idle:
            raise TechniqueError(
                f"{self.stack} runs the same block at other depths too, so removing a layer frees nothing; use fewer "
                "layers"
            )
        shared = [
            index for index in idle if any(getattr(inner, "also_at", ()) for inner in part.blocks[index].modules())
        ]
        if shared:
            raise TechniqueError(
                f"layer {shared[0]} of {self.stack} owns parts that other layers borrow; it can't be removed"
            )
        part.plan = plan
        for index in idle:
            part.blocks[index] = Gone()
        return [f"{counted(len(plan), 'layer')} {'stays' if len(plan) == 1 else 'stay'} in {self.stack}"]


def check_attention(site: Site) -> None:
    """Refuse an attention whose heads can't be cut: another class, changed projections, a core with
    parameters for each head.
    """
    part: Any = site.module
    if type(part) is not Attention:
        raise TechniqueError(
            f"{site.path} is a {type(part).__name__}, whose heads depend on more than its four projections"
        )
    for name in ("query", "key", "value", "output"):
        if type(getattr(part, name)) is not nn.Linear:
            raise TechniqueError(f"{site.path}.{name} was changed by another technique; prune heads first")
    if next(part.core.parameters(), None) is not None:
        raise TechniqueError(f"the core of {site.path} has parameters for each head; prune heads first")


def check_feed_forward(site: Site) -> None:
    """Refuse a feed-forward part that is not two plain matrices."""
    if more := {name.split(".")[0] for name, _ in site.module.named_parameters()} - {"up", "down"}:
        raise TechniqueError(
            f"the units of {site.path} are fed by {', '.join(sorted(more))} too; leave its depths out with depths=(...)"
        )
    for name in ("up", "down"):
        if type(getattr(site.module, name, None)) is not nn.Linear:
            raise TechniqueError(
                f"{site.path}.{name} is not a plain linear layer; prune units before other techniques change it"
            )


def _take(tensor: Tensor, axis: int, keep: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().index_select(axis, keep.to(tensor.device)), tensor.requires_grad)


def _rows(linear: nn.Linear, keep: Tensor) -> None:
    linear.weight, linear.out_features = _take(linear.weight, 0, keep), len(keep)
    if linear.bias is not None:
        linear.bias = _take(linear.bias, 0, keep)


def _columns(linear: nn.Linear, keep: Tensor) -> None:
    linear.weight, linear.in_features = _take(linear.weight, 1, keep), len(keep)


def _remove(model: nn.Module, technique: StructuredPruning, gone: Mapping[str, Iterable[int]]) -> None:
    bare = bare_model(model)
    sites, keep = {site.path: site for site in technique.parts(bare)}, {}
    for path, some in gone.items():
        if out := list(some):
            if path not in sites:
                raise unknown(f"part for {type(technique).__name__}", path, sites)
            keep[path] = all_but(technique.size(sites[path].module), out, path)
    if keep:
        counts = tuple(len(kept) for kept in keep.values())
        apply_chosen(replace(technique, paths=tuple(keep), counts=counts), bare, keep)


def remove_heads(model: nn.Module, heads: Mapping[str, Iterable[int]], role: str = "self-attention") -> None:
    """Remove chosen heads, by the path of their attention; recorded as a `HeadPruning`."""
    _remove(model, HeadPruning(roles=(role,)), heads)


def remove_units(model: nn.Module, units: Mapping[str, Iterable[int]]) -> None:
    """Remove chosen feed-forward units, by the path of their part; recorded as a
    `FeedForwardPruning`.
    """
    _remove(model, FeedForwardPruning(), units)
