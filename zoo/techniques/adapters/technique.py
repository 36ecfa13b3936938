"""Bottleneck adapters: Houlsby et al. (2019), Pfeiffer et al. (2020), parallel (He et al., 2022),
AdapterFusion (2021), invertible (2020).

Equations and wirings stand in `zoo.techniques.adapters.layers`. An adapter sits at the residual of
a sublayer and belongs to the norm there, so it is found by the norm's role in every family. In a
block that runs at several depths (ALBERT) there is one adapter for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.extend import extend
from zoo.layers.feed_forward import check_activation, check_choice
from zoo.models.base.model import Model, bare_model
from zoo.models.base.sites import Site
from zoo.techniques.adapters import layers as layers
from zoo.techniques.base import M, PlacedTechnique, Technique, fresh

ROLES = {"attention": "attention-norm", "cross-attention": "cross-attention-norm", "feed-forward": "feed-forward-norm"}
KINDS: dict[str, dict[str, Any]] = {  # eq: kinds
    "houlsby": {"after": ("attention", "feed-forward"), "activation": "silu"},
    "pfeiffer": {"after": ("feed-forward",), "activation": "relu", "norm_before": True},
    "parallel": {
        "after": ("feed-forward",),
        "activation": "relu",
        "parallel": True,
        "scaling": 4.0,
        "initialization": "mam",
    },
}


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(PlacedTechnique):
    """``W_up f(W_down x)`` at the residual of sublayers, of width hidden / ``reduction``.

    kind: "houlsby", "pfeiffer" or "parallel" sets what is left None: ``after`` which sublayers,
    ``activation``, ``norm_before`` (the input is N(d + r) instead of d), ``parallel``, ``scaling``
    (a number, "learned", "channel"), ``initialization`` ("bert", "houlsby", "mam"). norm_after: the
    block's norm follows. residual: "result", "sum" or "input", see
    `zoo.techniques.adapters.layers.Wiring`. input_norm, output_norm, own_residual_first, gate:
    norms of the adapter's own, its residual before the second of them, a gate for each text.

    Adapters of other names that stand there already run before it; `ActiveAdapters` and
    `AdapterFusion` change that.
    """

    kind: str = "pfeiffer"  # "houlsby", "pfeiffer" or "parallel"
    reduction: float = 16.0  # hidden_size / width of the bottleneck
    after: tuple[str, ...] | None = None  # sublayers; None: as `kind` says
    activation: str | None = None  # f; None: as `kind` says
    norm_before: bool | None = None  # the input is normed; None: as `kind` says
    norm_after: bool = True  # the block's norm follows
    residual: str = "result"  # "result", "sum" or "input"
    parallel: bool | None = None  # beside the sublayer; None: as `kind` says
    scaling: float | str | None = None  # s: a number, "learned" or "channel"
    input_norm: bool = False  # a norm of its own ahead
    output_norm: bool = False  # a norm of its own behind
    own_residual_first: bool = False  # its residual comes before that norm
    gate: bool = False  # each text weighs it
    dropout: float = 0.0  # behind W_up
    initialization: str | None = None  # "bert", "houlsby" or "mam"; None: as `kind` says
    name: str = "default"  # of the adapter

    def check(self) -> None:
        check_choice("kind", self.kind, KINDS)
        for place in self.after or ():
            check_choice("place of an adapter", place, ROLES)
        if self.activation is not None:
            check_activation(self.activation)
        check_choice("residual", self.residual, ("result", "sum", "input"))
        check_choice("initialization", self.value("initialization", "bert"), ("bert", "houlsby", "mam"))
        scaling = self.value("scaling", 1.0)
        if isinstance(scaling, str):
            check_choice("scaling", scaling, ("learned", "channel"))
        if self.reduction <= 0:
            raise ConfigError(f"reduction={self.reduction} must be positive: the width is hidden_size / reduction")
        if "." in self.name or "," in self.name or not self.name:
            raise ConfigError(f"an adapter's name can't hold a dot or a comma, got {self.name!r}")

    def value(self, field: str, default: Any) -> Any:
        """A field's own value, or its kind's."""
        own = getattr(self, field)
        return KINDS[self.kind].get(field, default) if own is None else own

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites = self.places(model, *(ROLES[place] for place in self.value("after", ())))
        for site in sites:
            if isinstance(site.module, layers.AdaptedNorm) and self.name in site.module.adapters:
                raise TechniqueError(
                    f"{site.path} has an adapter named {self.name!r} already; give this one another name"
                )
        for site in sites:
            norm: Any = site.module
            weight = norm_weight(site)
            adapter = fresh(self.adapter(weight.numel()), weight, model.config.initializer_range, generator)
            adapter.train(norm.training)
            if extend(norm, layers.AdaptedNorm):
                norm.adapters, norm.fusions = nn.ModuleDict(), nn.ModuleDict()
                norm.active, norm.how, norm.weights = (), "stack", {}
            norm.adapters[self.name] = adapter
            norm.active, norm.how = ((*norm.active, self.name) if norm.how == "stack" else (self.name,)), "stack"
        return None

    def adapter(self, size: int) -> layers.Adapter:
        """One adapter for a stream of this width."""
        scaling = self.value("scaling", 1.0)
        norm_before, parallel = self.value("norm_before", False), self.value("parallel", False)
        bottleneck = max(1, int(size // self.reduction))
        return layers.Adapter(
            layers.projections(size, bottleneck, self.value("initialization", "bert")),
            self.value("activation", "relu"),
            layers.Wiring(norm_before, self.norm_after, self.residual, parallel, self.own_residual_first),
            scaling=scaling if isinstance(scaling, str) else float(scaling),
            norms=(self.input_norm, self.output_norm),
            gate=self.gate,
            dropout=self.dropout,
        )


def norm_weight(site: Site) -> torch.Tensor:
    """A norm's weight, which tells the width there."""
    weight = getattr(site.module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise TechniqueError(
            f"{site.path} is a {type(site.module).__name__} without a weight; an adapter can't tell its width there"
        )
    return weight


@dataclass(frozen=True, kw_only=True)
class ActiveAdapters(PlacedTechnique):
    """Which adapters act, in this order: one after the other ("stack") or their mean ("average";
    ``Σ w_i A_i`` with ``weights``, one for each name). Those that are not named rest.

    The switch from batch to batch: ``zoo.apply(model, zoo.ActiveAdapters(names=("german",)))``.
    Inside of a batch: "parallel", where the batch holds one equal part for each name, in order;
    `repeated` makes such a batch of one that all of them are to see.
    """

    adds_tensors = False

    names: tuple[str, ...] = ()  # of the adapters that act, in order
    how: str = "stack"  # "stack", "average" or "parallel"
    weights: tuple[float, ...] = ()  # of the average, one for each name

    def check(self) -> None:
        if self.weights and (self.how != "average" or len(self.weights) != len(self.names)):
            raise ConfigError(
                f"weights={self.weights} are for an average, one for each of {len(self.names)} names; got "
                f"how={self.how!r}"
            )
        check_choice("composition", self.how, ("stack", "average", "parallel"))
        if self.how == "parallel" and not self.names:
            raise ConfigError("parallel adapters need their names: the batch has one part for each")

    def apply(self, model: M, generator: torch.Generator | None = None) -> M:
        """As every technique; a switch just before this one that has no effect any more leaves the
        record.
        """
        bare = bare_model(model)
        before, changes = bare.techniques, getattr(bare, "changes", ())
        super().apply(model, generator)
        last = before[-1] if before else None
        if isinstance(last, ActiveAdapters) and last._paths(bare) <= self._paths(bare):
            bare.techniques = (*before[:-1], self)
            if changes:
                bare.changes = (*changes[:-1], bare.changes[-1])  # type: ignore[index, operator, assignment]
        return model

    def _paths(self, model: Model) -> set[str]:
        return {site.path for site, _ in adapted(self, model, self.names)}

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        for site, names in adapted(self, model, self.names):
            norm: Any = site.module
            norm.active, norm.how = self.names if self.how == "parallel" else names, self.how
            norm.weights = dict(zip(self.names, self.weights, strict=True)) if self.weights else {}
        whole: Any = model
        parallel = any(isinstance(part, layers.AdaptedNorm) and part.how == "parallel" for part in model.modules())
        if parallel:
            extend(whole, layers.RunsPadded)
        if isinstance(whole, layers.RunsPadded):
            whole.runs_padded = parallel
        return None


@dataclass(frozen=True, kw_only=True)
class AdapterFusion(PlacedTechnique):
    """Attention over adapters that are there: ``Σ_i p_i V A_i(z)``. Switch query, key or value off
    for the static forms.

    value_first: V before the sum. query_before_norm: the query is d, not z. residual_first: the
    residual is added to each A_i.
    """

    names: tuple[str, ...]  # of the adapters that are fused
    query: bool = True  # a learned matrix; False: none
    key: bool = True  # the same for keys
    value: bool = True  # the same for values
    value_first: bool = True  # V before the sum
    query_before_norm: bool = False  # the query is d, not z
    residual_first: bool = False  # the residual is added to each A_i
    temperature: float = 1.0  # of the softmax over adapters
    dropout: float = 0.0  # on its scores

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        if len(self.names) < 2:
            raise TechniqueError(f"fusion needs at least two adapters, got {self.names}")
        places = [(site, names) for site, names in adapted(self, model, self.names) if names]
        for site, names in places:
            if ",".join(names) in site.module.fusions:  # type: ignore[operator]
                raise TechniqueError(f"{site.path} fuses {', '.join(names)} already")
        for site, names in places:
            norm: Any = site.module
            weight = norm_weight(site)
            fusion = layers.Fusion(
                weight.numel(),
                [name for name in ("query", "key", "value") if getattr(self, name)],
                value_first=self.value_first,
                query_before_norm=self.query_before_norm,
                residual_first=self.residual_first,
                temperature=self.temperature,
                dropout=self.dropout,
            )
            norm.fusions[",".join(names)] = fresh(fusion, weight, model.config.initializer_range, generator).train(
                norm.training
            )
            norm.active, norm.how = names, "fuse"
        return None


def repeated(batch: Mapping[str, torch.Tensor], times: int) -> dict[str, torch.Tensor]:
    """A batch so many times in a row, for parallel adapters: ``model(**repeated(batch,
    2)).logits.chunk(2)``.
    """
    return {name: tensor.repeat(times, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}


def adapted(technique: PlacedTechnique, model: Model, names: Sequence[str]) -> list[tuple[Site, tuple[str, ...]]]:
    """The norms that have adapters, each with those of ``names`` that it has; a name that nobody
    has is an error.
    """
    sites = [site for site in technique.places(model, *ROLES.values()) if isinstance(site.module, layers.AdaptedNorm)]
    known = {name for site in sites for name in site.module.adapters}  # type: ignore[union-attr]
    if missing := [name for name in names if name not in known]:
        have = ", ".join(sorted(known)) or "none"
        raise TechniqueError(f"there is no adapter named {missing[0]!r} here; the adapters are: {have}")
    if not sites:
        raise TechniqueError(f"{type(model).__name__} has no adapters yet; apply a zoo.BottleneckAdapter first")
    return [(site, tuple(name for name in names if name in site.module.adapters)) for site in sites]  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class InvertibleAdapter(Technique):
    """``y_1 = x_1 + F(x_2)``, ``y_2 = x_2 + G(y_1)`` behind the text's embeddings (MAD-X)."""

    reduction: float = 2.0  # half the width / width inside F and G
    activation: str = "relu"  # inside F and G
    name: str = "default"  # of the adapter

    needs = ("embeddings", "embedding-norm", "token-embedding")

    def check(self) -> None:
        check_activation(self.activation)

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        embeddings: Any = next(site.module for site in model.sites() if site.role == "embeddings")
        last: Any = embeddings.norm
        if type(embeddings).forward is TextEmbeddings.forward and embeddings.projection is not None:
            last = embeddings.projection  # ALBERT's order; others project before the norm
        if isinstance(last, layers.Coupled) and self.name in last.couplings:
            raise TechniqueError(
                f"the embeddings have an invertible adapter named {self.name!r} already; give this one another name"
            )
        coupling = layers.Coupling(model.hidden_size, self.activation, self.reduction)
        coupling = fresh(coupling, embeddings.token.weight, model.config.initializer_range, generator)
        if extend(last, layers.Coupled):
            last.couplings = nn.ModuleDict()
        last.couplings[self.name] = coupling
        return None
