"""Hidden width: dimensions of the residual stream go, in every part that reads or writes it (McCarley,
Chakravarti, Sil, 2019).

    zoo.apply(model, zoo.WidthPruning(kept=0.75))                    # three quarters stay, by the matrices' norms
    score = importance.width_importance(model, batches, loss)        # or by what the loss feels
    width.remove_dimensions(model, score.argsort()[:192].tolist())

One set of dimensions is kept through the whole model: rows and columns of tables, projections, norms,
pooler and heads. Which axes of which tensors run along the stream is seen by building the model
once more, on the meta device, with the width doubled. Inside an attention the heads keep their
size, inside a feed-forward part the units theirs.

A norm behind takes its mean and variance over what is left. So the smaller model is not the one
with these dimensions silenced, except where norms are only scales and shifts (MobileBERT); train it
further.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.attention import Attention
from zoo.layers.feed_forward import FeedForward
from zoo.models.base.model import bare_model, on_meta
from zoo.techniques.base import Technique, all_but, apply_chosen
from zoo.techniques.blueprint import Blueprint
from zoo.techniques.pruning.weights import check_share

Axes = Mapping[str, tuple[int, ...]]
BEFORE = (
    "HeadPruning",
    "FeedForwardPruning",
    "LayerPruning",
    "WidthPruning",
)  # what may have been applied: no tensor is new after them


@dataclass(frozen=True, kw_only=True)
class WidthPruning(Technique):
    """Keep a share of the hidden width, or exactly ``count`` dimensions; those whose rows and columns
    have the larger norms. ``width``: the config's name for it ("image_hidden_size" for a picture's
    stream). `remove_dimensions` removes chosen ones.
    """

    kept: float = 0.75  # share of the dimensions that stays
    count: int | None = None  # how many stay, in place of a share
    width: str = "hidden_size"  # the config's name for the width

    def check(self) -> None:
        check_share("kept", self.kept)
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count={self.count} must be at least 1")

    def change_with_heads(self, model: nn.Module, generator: torch.Generator | None) -> Sequence[str] | None:
        found = Stream.of(model, self.width)
        size = found.size
        count = max(1, round(self.kept * size)) if self.count is None else self.count
        if count >= size:
            raise TechniqueError(f"{self.width} is {size} wide, of which {count} stay: nothing would go")
        if self.chosen is not None:
            keep = self.chosen[self.width]
        elif on_meta(model):
            keep = torch.arange(count)
        else:
            keep = found.norms_of_dimensions().argsort(descending=True, stable=True)[:count].sort().values
        found.cut(keep)
        bare_model(model).pruned_widths = {**bare_model(model).pruned_widths, self.width: count}
        return [f"{self.width}: {count} of {size} stay"]


@dataclass
class Stream:
    """Where a model's tensors run along one hidden width. ``axes``: by the tensor's name."""

    model: nn.Module
    width: str
    axes: Axes
    plain: nn.Module  # the model as its config has it, on meta
    wide: nn.Module  # the same with the width doubled

    @classmethod
    def of(cls, model: nn.Module, width: str = "hidden_size") -> Stream:
        """Find it; a TechniqueError where some axis can't be told."""
        bare = bare_model(model)
        if width not in bare.config.field_names():
            raise TechniqueError(f"{type(bare).__name__} has no width {width!r}")
        if other := next((str(t) for t in bare.techniques if type(t).__name__ not in BEFORE), None):
            raise TechniqueError(
                f"the hidden width is pruned before other techniques change the parts; this model has {other}"
            )
        size = getattr(bare.config, width)
        blueprint = replace(Blueprint.of(model), techniques=())
        plain = blueprint.on_meta()
        try:
            wide = replace(blueprint, config=bare.config.replace(**{width: 2 * size})).on_meta()
        except ConfigError as error:
            raise TechniqueError(f"the {width} of {type(bare).__name__} hangs on other sizes: {error}") from error
        axes: dict[str, tuple[int, ...]] = {}
        inner, shapes = _inner_axes(plain), {name: tensor.shape for name, tensor in _tensors(wide).items()}
        own = _tensors(model)
        for name, tensor in _tensors(plain).items():
            along = []
            for axis, (narrow, doubled) in enumerate(zip(tensor.shape, shapes[name], strict=True)):
                if narrow == doubled or (name, axis) in inner:
                    continue
                if (narrow, doubled) != (size, 2 * size):
                    raise TechniqueError(
                        f"axis {axis} of {name} is {narrow}, several hidden widths whose dimensions can't be told apart"
                    )
                along.append(axis)
            if along and name in own:
                axes[name] = tuple(along)
        if not axes:
            raise TechniqueError(f"no tensor of {type(bare).__name__} is {width} wide")
        return cls(model, width, axes, plain, wide)

    @property
    def tensors(self) -> dict[str, Tensor]:
        own = _tensors(self.model)
        return {name: own[name] for name in self.axes}

    @property
    def size(self) -> int:
        """How wide the stream is now."""
        name, axes = next(iter(self.axes.items()))
        return self.tensors[name].shape[axes[0]]

    def norms(self) -> dict[str, Any]:
        """The norms that the stream passes, by path: parts with a weight, and mostly a bias, along
        it and nothing else.
        """
        found = {}
        for path, part in self.model.named_modules():
            names = [name for name, _ in part.named_parameters(recurse=False)]
            if names in (["weight"], ["weight", "bias"]) and all(
                self.axes.get(f"{path}.{name}") == (0,) and getattr(part, name).dim() == 1 for name in names
            ):
                found[path] = part
        return found

    def norms_of_dimensions(self) -> Tensor:
        """Σ over matrices of ||rows or columns of the dimension||² / ||matrix||²: each matrix has one
        vote. -> (width).
        """
        total = torch.zeros(self.size, dtype=torch.float64)
        for name, tensor in self.tensors.items():
            if tensor.dim() < 2:
                continue
            squares = tensor.detach().double().square()
            for axis in self.axes[name]:
                mass = squares.sum([other for other in range(tensor.dim()) if other != axis])
                total += (mass / mass.sum().clamp_min(1e-30)).cpu()
        return total

    @torch.no_grad()
    def cut(self, keep: Tensor) -> None:
        """Leave these dimensions, in their order, in every tensor and in the sizes that parts
        remember.
        """
        size = getattr(bare_model(self.model).config, self.width)
        made: dict[int, Tensor] = {}
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            if id(tensor) not in made:
                new = tensor.detach()
                for axis in self.axes[name]:
                    new = new.index_select(axis, keep.to(new.device))
                made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
            setattr(self.model.get_submodule(path), leaf, made[id(tensor)])
        parts, doubled = dict(self.model.named_modules()), dict(self.wide.named_modules())
        for path, plain in self.plain.named_modules():
            part: Any = parts.get(path)
            if isinstance(part, nn.Linear):
                part.out_features, part.in_features = part.weight.shape
            elif type(part) is type(plain) and not isinstance(plain, Attention):
                for key, value in vars(plain).items():
                    if (value, getattr(doubled[path], key)) == (size, 2 * size):
                        setattr(part, key, len(keep))
                    elif (value, getattr(doubled[path], key)) == ((size,), (2 * size,)):
                        setattr(part, key, (len(keep),))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _inner_axes(model: nn.Module) -> set[tuple[str, int]]:
    """Axes that run along an attention's heads or a feed-forward part's units, whatever their
    sizes.
    """
    found = set()
    for path, part in model.named_modules():
        if isinstance(part, Attention):
            found |= {(f"{path}.{name}.{p}", 0) for name in ("query", "key", "value") for p in ("weight", "bias")}
            outputs = [f"{name}." for name, _ in part.output.named_children()] or [""]  # MASS has one per language
            found |= {(f"{path}.output.{name}weight", 1) for name in outputs}
        elif hasattr(part, "num_heads"):
            raise TechniqueError(f"{path} is a {type(part).__name__}, whose axes are not known")
        elif isinstance(part, FeedForward):
            found |= {(f"{path}.up.weight", 0), (f"{path}.up.bias", 0), (f"{path}.down.weight", 1)}
    return found


def remove_dimensions(model: nn.Module, dimensions: Iterable[int], width: str = "hidden_size") -> None:
    """Remove chosen dimensions of the hidden width; recorded as a `WidthPruning`."""
    size, gone = Stream.of(model, width).size, list(dimensions)
    keep = all_but(size, gone, width)
    if not len(keep):
        raise TechniqueError(f"all {size} dimensions of {width} would go")
    if gone:
        apply_chosen(WidthPruning(count=len(keep), width=width), model, {width: keep})
