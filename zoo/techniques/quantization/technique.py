"""Quantisation as techniques: training on a grid (Q8BERT, Q-BERT, FullyQT), and weights stored and
multiplied as integers.

    train   zoo.Q8Bert(), zoo.QBert(bits=4), zoo.FullyQt()   weights in floating point, seen rounded; activations
                                                             rounded to ranges
    store   zoo.Int8(), zoo.WeightOnly(bits=4)               weights as integers in memory and in the file; of
                                                             trained parts their own

A linear layer is taken where it stands as a part of the model's blocks or embeddings; poolers and
task heads stay in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import TechniqueError
from zoo.layers.extend import extend
from zoo.layers.feed_forward import ACTIVATIONS, check_choice
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model
from zoo.models.base.sites import Site
from zoo.tasks.base import canonical_state
from zoo.techniques.base import PlacedTechnique, plain_attentions, put_core
from zoo.techniques.quantization.grids import Grid
from zoo.techniques.quantization.integer import IntegerCore, IntegerLinear, IntegerNorm, IntGelu, QuantAct
from zoo.techniques.quantization.ranges import RangedCore, RangedNorm
from zoo.techniques.quantization.stored import CodedEmbedding, CodedLinear, int8_of
from zoo.techniques.quantization.trained import (
    CallCount,
    LateTable,
    LowHighRange,
    MovingRange,
    OnGrid,
    OnGridLinear,
    SymmetricLinear,
)

ROUNDS = "rounding takes plain attention"
TABLES = ("token-embedding", "position-embedding", "segment-embedding")


def linears(technique: PlacedTechnique, model: Model, *also: type) -> list[Site]:
    """The places of plain linear layers (or of these kinds), each once; a TechniqueError where
    there is none or where they are changed.
    """
    sites = list(model.sites())
    roles = sorted({site.role for site in sites if isinstance(site.module, nn.Linear)})
    if not roles:
        raise TechniqueError(
            f"{type(model).__name__} has no linear layers left for {type(technique).__name__}; are they stored as "
            "integers?"
        )
    found: dict[int, Site] = {}
    for site in technique.places(model, *roles):
        kind = type(site.module)
        if kind is nn.Linear or isinstance(site.module, also):
            found.setdefault(id(site.module), site)
        elif isinstance(site.module, nn.Linear):
            raise TechniqueError(
                f"{site.path} is a {kind.__name__}; {type(technique).__name__} takes plain linear layers: merge or "
                "leave out what was applied to it before"
            )
    return list(found.values())


def tables(technique: PlacedTechnique, model: Model, *also: type) -> list[Site]:
    """The places of plain embedding tables (or of these kinds), each once; none where the technique
    is restricted to depths.
    """
    sites = [site for site in model.sites() if site.role in TABLES and technique.wants(site) and not technique.depths]
    found = {id(s.module): s for s in sites if type(s.module) is nn.Embedding or isinstance(s.module, also)}
    return list(found.values())


def norms_of(technique: PlacedTechnique, model: Model) -> list[Any]:
    """The plain layer norms in the wanted places, each once."""
    sites = [site for site in model.sites() if site.role.endswith("-norm") and type(site.module) is nn.LayerNorm]
    return list({id(site.module): site.module for site in sites if technique.wants(site)}.values())


def put_on_grid(part: Any, kind: type, grid: Grid, **ranges: nn.Module | None) -> None:
    """Extend a layer or table to be seen on a grid, with the ranges of what enters and leaves
    it.
    """
    like = part.weight
    extend(part, kind)
    part.grid = grid
    for name, module in ranges.items():
        part.add_module(name, None if module is None else placed(module, like, part))


def placed(module: nn.Module, like: Tensor, part: nn.Module) -> nn.Module:
    """What has no weights of its own, on the device and in the dtype of ``like``, in the mode of
    the ``part`` it is for.
    """
    module = module.to_empty(device="meta") if like.is_meta else module.to(like.device, like.dtype)
    return module.train(part.training)


@dataclass(frozen=True, kw_only=True)
class Q8Bert(PlacedTechnique):
    """Symmetric 8-bit training (Zafrir et al., 2019): one step for each weight matrix, found at
    every call; inputs rounded to a range that follows them ("ema") or to their own largest value
    ("dynamic"); gradients pass as if nothing were rounded.

    requantize: roles whose outputs are rounded too. After training `Int8` makes it run in integers.
    """

    bits: int = 8  # of the weights
    activation_bits: int = 8  # of the activations
    mode: str = "ema"  # range of activations: "ema" or "dynamic"
    decay: float = 0.9999  # of the moving range
    start_step: int = 0  # calls before rounding begins
    requantize: tuple[str, ...] = (
        "attention-query",
        "attention-key",
        "attention-value",
    )  # roles whose outputs are rounded too
    embeddings: bool = True  # round the tables too

    def check(self) -> None:
        check_choice("mode", self.mode, ("ema", "dynamic"))
        Grid(self.bits)
        Grid(self.activation_bits)

    def range(self) -> MovingRange:
        return MovingRange(self.activation_bits, self.decay, self.start_step, dynamic=self.mode == "dynamic")

    def on_linear(self, linear: nn.Module, *, requantize: bool) -> None:
        """Do it to one layer."""
        output = self.range() if requantize else None
        put_on_grid(linear, SymmetricLinear, Grid(self.bits), input_range=self.range(), output_range=output)

    def on_embedding(self, table: nn.Module) -> None:
        """Do it to one table."""
        if self.start_step:
            put_on_grid(table, LateTable, Grid(self.bits), calls=CallCount(self.start_step))
        else:
            put_on_grid(table, OnGrid, Grid(self.bits))

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites, found = linears(self, model), tables(self, model) if self.embeddings else []
        for site in sites:
            self.on_linear(site.module, requantize=site.role in self.requantize)
        for site in found:
            self.on_embedding(site.module)
        return (f"{len(sites)} linear layers and {len(found)} tables are seen in {self.bits} bits",)


@dataclass(frozen=True, kw_only=True)
class QBert(PlacedTechnique):
    """Group-wise training in few bits (Shen et al., 2020): each weight matrix in up to ``groups``
    groups of outputs with a range of their own, min-max; activations to a range that follows them.

    bits: of the weights, one number or one for each depth (see
    `zoo.techniques.quantization.hessian.choose_bits`). embedding_bits 0 leaves the tables.
    """

    bits: int | tuple[int, ...] = 4  # of the weights, one number or one for each depth
    groups: int = 128  # of outputs, each with its own range
    embedding_bits: int = 8  # of the tables; 0: not rounded
    activation_bits: int = 8  # of the activations
    momentum: float = 0.95  # of the moving range

    def check(self) -> None:
        check_positive(self, "groups")
        for bits in self.bits if isinstance(self.bits, tuple) else (self.bits,):
            Grid(bits, symmetric=False)

    def bits_at(self, depths: Sequence[int]) -> int:
        """A part's bits; one that runs at several depths takes the most of theirs, one outside the
        layers the most of all.
        """
        if isinstance(self.bits, int):
            return self.bits
        return max(self.bits[depth] for depth in depths) if depths else max(self.bits)

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites = linears(self, model)
        deepest = max((depth for site in sites for depth in site.depths), default=0)
        if isinstance(self.bits, tuple) and len(self.bits) <= deepest:
            raise TechniqueError(
                f"bits are given for {len(self.bits)} depths, and {type(model).__name__} has parts at depth {deepest}"
            )
        found = tables(self, model) if self.embedding_bits else []
        for site in sites:
            grid = Grid(self.bits_at(site.depths), symmetric=False, rows=self.groups)
            inputs = LowHighRange(self.activation_bits, self.momentum)
            put_on_grid(site.module, OnGridLinear, grid, input_range=inputs, output_range=None)
        for site in found:
            put_on_grid(site.module, OnGrid, Grid(self.embedding_bits, symmetric=False, rows=self.groups))
        return (f"{len(sites)} linear layers in up to {self.groups} groups each, {len(found)} tables",)


@dataclass(frozen=True, kw_only=True)
class FullyQt(PlacedTechnique):
    """Everything rounded (Prato et al., 2020): weights min-max with a range for each output, what
    enters and leaves each product, scores, the softmax's numerator, denominator and result, and the
    norm's numerator, denominator and quotient; no gradient for what is cut.
    """

    bits: int = 8  # of everything
    momentum: float = 0.9  # of the moving ranges
    embeddings: bool = True  # round the tables too

    def check(self) -> None:
        Grid(self.bits, symmetric=False)

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites, attentions = linears(self, model), plain_attentions(self, model, ROUNDS, prefixes=False)
        found, norms = tables(self, model) if self.embeddings else [], norms_of(self, model)
        like: Any = sites[0].module.weight
        grid = Grid(self.bits, symmetric=False, rows=0)
        for site in sites:
            ranges = (LowHighRange(self.bits, self.momentum) for _ in range(2))
            put_on_grid(site.module, OnGridLinear, grid, input_range=next(ranges), output_range=next(ranges))
        for site in found:
            put_on_grid(site.module, OnGrid, grid)
        for attention in attentions:
            put_core(attention, placed(RangedCore(self.bits, self.momentum), like, attention))
        for norm in norms:
            extend(norm, RangedNorm)
            norm.ranges = placed(RangedNorm.new_ranges(self.bits, self.momentum), like, norm)
        return (f"{len(sites)} linear layers, {len(found)} tables, {len(attentions)} attentions, {len(norms)} norms",)


@dataclass(frozen=True, kw_only=True)
class IBert(PlacedTechnique):
    """Integers all the way (Kim et al., 2021): 8-bit products with 32-bit biases, GELU and softmax
    by polynomials of integers, the norm by integer mean, sum of squares and root. Each part rounds
    what enters it to a range that follows it; values between parts are floats that stand for
    integers. GELU is the error function's; ReLU needs nothing; a model of another activation is
    refused.
    """

    bits: int = 8  # of the weights
    activation_bits: int = 8  # of the activations
    gelu_bits: int = 16  # what enters GELU comes from a 32-bit product; in 8 bits its polynomial would vanish
    norm_bits: int = 22  # of what enters a norm
    momentum: float = 0.95  # of the moving ranges

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites, norms = linears(self, model), norms_of(self, model)
        attentions = plain_attentions(self, model, ROUNDS, prefixes=False)
        feed_forwards = [site for site in self.places(model, "feed-forward") if hasattr(site.module, "activation")]
        known = {ACTIVATIONS["gelu"]: True, ACTIVATIONS["relu"]: False}
        for site in feed_forwards:
            if site.module.activation not in known:
                raise TechniqueError(
                    f"{site.path} has an activation for which I-BERT gives no integers; it has GELU (erf) and ReLU"
                )
        like: Any = sites[0].module.weight
        for site in sites:
            linear: Any = site.module
            extend(linear, IntegerLinear)
            linear.bits, linear.act = self.bits, placed(QuantAct(self.activation_bits, self.momentum), like, linear)
        for attention in attentions:
            put_core(attention, placed(IntegerCore(self.activation_bits, self.momentum), like, attention))
        for site in feed_forwards:
            part: Any = site.module
            if known[part.activation]:
                del part.activation
                part.activation = placed(IntGelu(QuantAct(self.gelu_bits, self.momentum)), like, part)
        for norm in norms:
            extend(norm, IntegerNorm)
            norm.act = placed(QuantAct(self.norm_bits, self.momentum), like, norm)
            norm.register_buffer("shift", like.new_zeros(()))
        return (f"{len(sites)} linear layers, {len(attentions)} attentions, {len(norms)} norms",)


@dataclass(frozen=True, kw_only=True)
class Int8(PlacedTechnique):
    """Weights stored as int8 and multiplied as int8. Plain layers: a step for each output, and one
    for each row of activations, found as they come. Layers trained with `Q8Bert` keep their own
    ranges. Tables: int8 with a step for each row. For inference: no gradient passes a product.
    """

    embeddings: bool = True  # store the tables in int8 too

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites = linears(self, model, SymmetricLinear)
        for site in sites:
            linear: Any = site.module
            if isinstance(linear, SymmetricLinear):
                if max(linear.grid.bits, linear.input_range.bits) > 8:
                    raise TechniqueError(f"{site.path} was trained with more than 8 bits")
                ranged = [r for r in (linear.input_range, linear.output_range) if r is not None and not r.dynamic]
                if any(not r.largest.is_meta and not float(r.largest) > 0 for r in ranged):
                    raise TechniqueError(
                        f"{site.path} has seen no training step, so its inputs have no range yet; train it, or use "
                        "mode='dynamic'"
                    )
        found = tables(self, model, OnGrid) if self.embeddings else []
        for site in sites:
            site.replace(int8_of(site.module).train(site.module.training))
        for site in found:
            put_codes(site, CodedEmbedding, Grid(8, rows=0))
        return (f"{len(sites)} linear layers and {len(found)} tables in int8",)


@dataclass(frozen=True, kw_only=True)
class WeightOnly(PlacedTechnique):
    """Weights stored in ``bits`` (4: two to a byte), in blocks of ``block`` inputs with a range of
    their own; written out in floating point for each product, so it saves memory and not time.
    Layers trained with `QBert` keep the grid that they were trained on. The biases and all else can
    be trained further.
    """

    bits: int = 4  # of the weights
    block: int = 32  # inputs that share a range
    symmetric: bool = False  # zero stays zero: a step without an offset
    embeddings: bool = False  # store the tables so too

    def check(self) -> None:
        check_positive(self, "block")
        Grid(self.bits, symmetric=self.symmetric)

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites, found = linears(self, model, OnGridLinear), tables(self, model, OnGrid) if self.embeddings else []
        plain = Grid(self.bits, symmetric=self.symmetric, rows=0, block=self.block)
        for site in sites:
            put_codes(site, CodedLinear, plain)
        for site in found:
            put_codes(site, CodedEmbedding, plain)
        return (f"{len(sites)} linear layers and {len(found)} tables in {self.bits} bits",)


def put_codes(site: Site, kind: type[CodedLinear | CodedEmbedding], grid: Grid) -> None:
    """Put a part's codes in its place, on the grid that it was trained on if it was."""
    part: Any = site.module
    site.replace(kind(part, part.grid if isinstance(part, OnGrid) else grid).train(part.training))


def stored_bytes(model: nn.Module) -> int:
    """The bytes of a model's tensors as `zoo.save` writes them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in canonical_state(model).values())
