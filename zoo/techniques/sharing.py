"""Sharing across layers and factorised embeddings (ALBERT; Lan et al., 2020) on any model.

    layer i uses the parts of layer first(g), g = floor(i · groups / layers)    all of a block, or one kind of part
    token table  E (vocabulary, size) · P (size, hidden)                        instead of (vocabulary, hidden)

Each shared part keeps the name that it has in the first layer of its group; the others' tensors go.
A sublayer takes its norm along. From trained weights a group starts as its first layer or as the
mean of its layers, and the table as its truncated singular value decomposition, which is the best
approximation of that rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import TechniqueError
from zoo.layers.blocks import Side
from zoo.layers.embeddings import FactorizedTable, NarrowTable, TextEmbeddings
from zoo.layers.feed_forward import check_choice
from zoo.layers.schedule import Schedule
from zoo.layers.stack import Stack
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model, on_meta
from zoo.techniques.base import Technique, fresh

WHAT = ("all", "attention", "feed-forward")


@dataclass(frozen=True, kw_only=True)
class Sharing(Technique):
    """``share`` "all", "attention" or "feed-forward" across the layers of each stack and of each
    stream, in so many ``groups``.

    start: with trained weights a group starts as its "first" layer or as the "average" of its
    layers.
    """

    share: str = "all"  # "all", "attention" or "feed-forward"
    groups: int = 1  # of layers, each with one set of weights
    start: str = "first"  # weights of a group: its "first" layer or the "average"
    streams: tuple[str, ...] = ()

    def check(self) -> None:
        check_choice("share", self.share, WHAT)
        check_choice("start", self.start, ("first", "average"))
        check_positive(self, "groups")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        runs = {name: blocks for name, blocks in runs_of(model).items() if self._wanted(name, model)}
        if not any(len(blocks) > 1 for blocks in runs.values()):
            raise TechniqueError(
                f"{type(model).__name__} has no layers to share parts between: its stacks run one block each"
            )
        plan = [
            (name, group)
            for name, blocks in runs.items()
            for alike in self._alike(blocks)
            for group in self._groups(alike)
        ]
        if not any(self._parts(group[0]) for _, group in plan):
            raise TechniqueError(
                f"no layer of {type(model).__name__} has a {self.share} part of its own; are they shared already?"
            )
        if all(len(group) == 1 for _, group in plan):
            raise TechniqueError(
                f"no two neighboring layers of {type(model).__name__} are alike, or groups={self.groups} leaves each "
                "alone"
            )
        depths = {id(site.module): site.depths for site in model.sites()}
        for _, group in plan:
            for places in zip(*(self._parts(block) for block in group), strict=True):
                self._share(places, depths)
        return tuple(
            f"{name}: {len(blocks)} layers in {min(self.groups, len(blocks))} groups" for name, blocks in runs.items()
        )

    def _wanted(self, name: str, model: Model) -> bool:
        return (
            not self.streams or name.rpartition(".")[2] in self.streams or ("text" in self.streams and "." not in name)
        )

    def _groups(self, blocks: Sequence[nn.Module]) -> list[list[nn.Module]]:
        count = min(self.groups, len(blocks))
        groups: list[list[nn.Module]] = [[] for _ in range(count)]
        for layer, block in enumerate(blocks):
            groups[layer * count // len(blocks)].append(block)  # eq: groups
        return groups

    def _parts(self, block: nn.Module) -> list[tuple[nn.Module, str]]:
        """(holder, name) of each part that is shared, in order."""
        found = []
        for holder in [block, *(part for part in block.children() if isinstance(part, Side))]:
            roles: Mapping[str, str] = getattr(holder, "roles", {})
            for name, child in holder.named_children():
                if isinstance(child, Side) or not any(True for _ in child.parameters()):
                    continue
                kind = roles.get(name, "").removeprefix("self-").removeprefix("cross-").removesuffix("-norm")
                if self.share in ("all", kind):
                    found.append((holder, name))
        return found

    def _alike(self, blocks: Sequence[nn.Module]) -> list[list[nn.Module]]:
        """Runs of neighboring layers whose parts are of the same kinds and shapes: only those can
        share.
        """

        def shapes(block: nn.Module) -> list[Any]:
            parts = [(key, getattr(holder, key)) for holder, key in self._parts(block)]
            return [(key, type(part), {n: tuple(t.shape) for n, t in part.state_dict().items()}) for key, part in parts]

        runs: list[list[nn.Module]] = []
        for block in blocks:
            if runs and shapes(runs[-1][0]) == shapes(block):
                runs[-1].append(block)
            else:
                runs.append([block])
        return runs

    @torch.no_grad()
    def _share(self, places: Sequence[tuple[nn.Module, str]], depths: Mapping[int, tuple[int, ...]]) -> None:
        (holder, name), rest = places[0], places[1:]
        owner = getattr(holder, name)
        if self.start == "average" and rest and not on_meta(owner):
            for key, tensor in owner.state_dict(keep_vars=True).items():
                others = [getattr(h, n).state_dict()[key] for h, n in rest]
                if tensor.is_floating_point():
                    tensor.copy_(torch.stack([tensor, *others]).double().mean(0))
        owner.also_at = tuple(depth for h, n in rest for depth in depths.get(id(getattr(h, n)), ()))
        for other, key in rest:
            borrow(other, key, owner)


def runs_of(model: Model) -> dict[str, list[nn.Module]]:
    """The innermost blocks of each stack and of each part of a schedule, each once, in the order in
    which they run.
    """
    runs: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Stack) and not any(path.startswith(f"{name}.") for name in runs):
            runs[path] = list(dict.fromkeys(_leaves(module)))
        elif isinstance(module, Schedule):
            for part, blocks in module.named_children():
                ran = [module.block(step) for step in module.steps if step.part == part]
                runs[f"{path}.{part}"] = list(dict.fromkeys(ran)) if ran else list(blocks.children())
    return runs


def _leaves(stack: Stack) -> list[nn.Module]:
    found: list[nn.Module] = []
    for index in stack.plan:
        block = stack.blocks[index]
        found += _leaves(block) if isinstance(block, Stack) else [block]
    return found


@dataclass(frozen=True, kw_only=True)
class FactorizedEmbedding(Technique):
    """The token table as a product of width ``size``; with ``whole`` positions, segments and the
    norm are as narrow and one projection widens their sum, as in ALBERT.
    """

    size: int = 128  # width of the narrow table
    whole: bool = False  # positions, segments and norm are narrow too

    needs = ("token-embedding",)

    def check(self) -> None:
        check_positive(self, "size")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        site = next(site for site in model.sites() if site.role == "token-embedding")
        token, std = site.module, model.config.initializer_range
        if not isinstance(token, nn.Embedding) or isinstance(token, FactorizedTable | NarrowTable):
            raise TechniqueError(f"{site.path} is a {type(token).__name__}, not a plain table")
        if self.size >= token.embedding_dim:
            raise TechniqueError(f"size={self.size} must be less than the table's width {token.embedding_dim}")
        if self.whole:
            return self._whole(site.parent, token, std, generator)
        table = fresh(
            FactorizedTable(token.num_embeddings, self.size, token.embedding_dim), token.weight, std, generator
        )
        notes = []
        if not token.weight.is_meta:
            left, right, kept = factors(token.weight, self.size)
            with torch.no_grad():
                table.weight.copy_(left)
                table.projection.weight.copy_(right)
            notes.append(f"the product keeps {kept:.2%} of the table's squared norm")
        site.replace(table)
        return notes

    def _whole(self, part: Any, token: nn.Embedding, std: float, generator: torch.Generator | None) -> Sequence[str]:
        if (
            type(part).forward is not TextEmbeddings.forward
            or part.projection is not None
            or not isinstance(part.position, nn.Embedding)
        ):
            raise TechniqueError(
                f"{type(part).__name__} adds up its tables in its own way; use whole=False, which narrows the token "
                "table"
            )
        if not isinstance(part.norm, nn.LayerNorm):
            raise TechniqueError(
                f"the norm of the embeddings is a {type(part.norm).__name__}, whose narrow form is not known"
            )
        like, size, hidden = token.weight, self.size, token.embedding_dim
        projection = fresh(nn.Linear(size, hidden), like, std, generator)
        narrow = fresh(NarrowTable(token.num_embeddings, size, projection), like, std, generator)
        tables: dict[str, nn.Embedding] = {
            name: fresh(nn.Embedding(old.num_embeddings, size), like, std, generator)
            for name in ("position", "segment")
            if (old := getattr(part, name)) is not None
        }
        notes = []
        if not like.is_meta:
            left, right, kept = factors(like, size)
            with torch.no_grad():
                narrow.weight.copy_(left)
                projection.weight.copy_(right)
                for name, table in tables.items():
                    table.weight.copy_(getattr(part, name).weight.double() @ right.double())
            notes.append(
                f"the product keeps {kept:.2%} of the table's squared norm; the norm at width {size} starts anew"
            )
        part.token, part.projection = narrow, projection
        part.norm = fresh(nn.LayerNorm(size, part.norm.eps), like, std, generator)
        for name, table in tables.items():
            setattr(part, name, table)
        return notes


def factors(table: Tensor, size: int) -> tuple[Tensor, Tensor, float]:
    """``table ≈ left · rightᵀ`` of rank ``size``: left (rows, size), right (width, size), and the
    share of the squared norm kept.
    """
    u, s, v = torch.linalg.svd(table.detach().double(), full_matrices=False)  # eq: svd
    squares = s.square()
    kept = float(squares[:size].sum() / squares.sum().clamp(min=torch.finfo(s.dtype).tiny))
    left, right = table.new_zeros(table.shape[0], size), table.new_zeros(table.shape[1], size)
    rank = min(size, len(s))
    left[:, :rank], right[:, :rank] = (u[:, :rank] * s[:rank]).to(table.dtype), v[:rank].T.to(table.dtype)  # eq: svd
    return left, right, kept


def borrow(holder: nn.Module, name: str, part: nn.Module) -> None:  # eq: groups
    """Let ``holder.name`` be a part that another module owns; what stood there goes.

    Nothing is registered a second time: the part's tensors have the owner's names alone, and
    moving, saving or training reaches them there. Whoever changes a part that is borrowed changes
    it in place.
    """
    delattr(holder, name)
    object.__setattr__(holder, name, part)
