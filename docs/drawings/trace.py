"""What a model does in a pass, as a graph: which part reads what from which.

The model runs on the meta device, so nothing is computed and the largest costs no more than the
smallest. Every tensor carries the names of the parts that it comes from; an operation with the
parameters of a part is an edge into that part, and an addition of what different parts gave is a
sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zoo
from zoo.data.candidates import Candidates
from zoo.inference.export import example_inputs
from zoo.layers.attention import Attention
from zoo.layers.embeddings import SinusoidalPositions
from zoo.layers.feed_forward import FeedForward
from zoo.layers.pooler import Pooler
from zoo.layers.schedule import Schedule
from zoo.layers.stack import Stack
from zoo.models.base.model import Model

SUM, JOIN = "sum", "join"


@dataclass(frozen=True)
class Node:
    """A part in one of its runs, a sum, a concatenation, or an input. ``run``: which run of a block
    it belongs to, -1 outside of blocks.
    """

    path: str
    run: int = -1
    kind: str = "part"


@dataclass
class Graph:
    """The nodes in the order in which they ran, who reads whom, and the runs of blocks: each with
    its path.
    """

    model: Model
    nodes: dict[Node, None] = field(default_factory=dict)
    edges: dict[tuple[Node, Node], None] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    def add(self, node: Node) -> None:
        self.nodes.setdefault(node)

    def connect(self, one: Node, other: Node) -> None:
        if one != other:
            self.add(one)
            self.add(other)
            self.edges[one, other] = None

    def into(self, node: Node) -> list[Node]:
        return [one for one, other in self.edges if other == node]

    def out_of(self, node: Node) -> list[Node]:
        return [other for one, other in self.edges if one == node]


def is_table(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, SinusoidalPositions))


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are drawn as one box, by their paths."""
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, path: str) -> None:
        whole = isinstance(module, (Attention, FeedForward, Pooler)) or is_table(module)
        whole = whole or type(module).__name__ in ("Bottleneck", "EntityLinker")
        own = any(True for _ in module.parameters(recurse=False))
        if path and (whole or own):
            found[path] = module
            return
        for name, child in module.named_children():
            walk(child, f"{path}.{name}" if path else name)

    walk(model, "")
    return found


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of every stack, schedule and decoder."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            parent = model.get_submodule(path.rpartition(".")[0])
            if isinstance(parent, (Stack, Schedule)) or path.endswith(".blocks"):
                for index, child in enumerate(module):
                    if not isinstance(child, Stack) and "linker" not in path:
                        yield f"{path}.{index}", child


def _shaped(name: str, args: tuple[Any, ...]) -> Any:
    """What the most frequent operations give, by shape: on the meta device torch computes shapes in
    Python, which takes most of a pass. None for all others.
    """
    if name == "addmm":
        return args[1].new_empty(args[1].shape[0], args[2].shape[1])
    if name == "native_layer_norm":
        stats = args[0].new_empty(*args[0].shape[:-1], 1)
        return torch.empty_like(args[0]), stats, stats
    if name == "gelu":
        return torch.empty_like(args[0])
    if name in ("add", "mul") and all(isinstance(each, Tensor) and each.is_floating_point() for each in args[:2]):
        return args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape))
    return None


def ordered(nodes: frozenset[Node]) -> list[Node]:
    """A set in an order that does not depend on hashes."""
    return sorted(nodes, key=lambda node: (node.run, node.path))


class _Watch(TorchDispatchMode):
    """Follows the tensors of one pass."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.parts = parts(graph.model)
        self.data: dict[int, frozenset[Node]] = {}
        self.weights: dict[int, frozenset[str]] = {}
        self.tables: set[str] = set()
        self.alive: list[Any] = []
        self.run = -1
        for path, module in self.parts.items():
            owners = {path}
            self.tables |= {path} if is_table(module) else set()
            for tensor in (*module.parameters(), *module.buffers()):
                self.weights[id(tensor)] = frozenset(owners)
                self.alive.append(tensor)

    def see(self, tensor: Tensor, name: str) -> None:
        """An input by its name."""
        self.data[id(tensor)] = frozenset({Node(name, kind="input")})
        self.alive.append(tensor)

    def node(self, path: str) -> Node:
        inside = self.run >= 0 and path.startswith(self.graph.runs[self.run] + ".")
        return Node(path, self.run if inside else -1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        out = _shaped(name, args)
        out = func(*args, **(kwargs or {})) if out is None else out
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        weights = frozenset().union(*(self.weights.get(id(t), frozenset()) for t in given))
        sets = [self.data.get(id(t), frozenset()) for t in given]
        if name != "embedding":
            sets = [s for s, t in zip(sets, given, strict=True) if t.is_floating_point()]
        data = frozenset().union(*sets)
        tables = weights & self.tables
        if tables and not (weights - self.tables):
            nodes = frozenset(self.node(path) for path in tables)
            if name == "embedding":
                self.read(nodes, data)
                data = nodes
            else:
                data = self.joined(name, [*[s for s in sets if s], nodes])
        elif weights and data:
            nodes = frozenset(self.node(path) for path in weights)
            self.read(nodes, data)
            data = nodes
        elif weights:
            for tensor in made:
                self.weights[id(tensor)] = weights
        else:
            data = self.joined(name, [s for s in sets if s])
        for tensor in made:
            self.data[id(tensor)] = data
        self.alive.append(out)
        return out

    def read(self, nodes: frozenset[Node], data: frozenset[Node]) -> None:
        """Parts read what these sources gave."""
        for node in ordered(nodes):
            for source in ordered(data):
                self.graph.connect(source, node)
            self.graph.add(node)

    def joined(self, name: str, sets: list[frozenset[Node]]) -> frozenset[Node]:
        """What comes of tensors from different parts: a sum, a concatenation, or just both."""
        different = list(dict.fromkeys(sets))
        if len(different) < 2:
            return different[0] if different else frozenset()
        kind = SUM if name in ("add", "add_") else JOIN if name == "cat" else ""
        everything = frozenset().union(*different)
        if not kind:
            return everything
        node = Node(f"{kind}{len(self.graph.nodes)}", self.run, kind)
        self.read(frozenset({node}), everything)
        return frozenset({node})


def inputs_for(model: Model, *, rows: int = 2, length: int = 6, device: str = "meta") -> dict[str, Any]:
    """A batch with all that the model reads, the optional streams included, everything real."""
    given: dict[str, Any] = dict(example_inputs(model, rows=rows, length=length, regions=length // 2))
    for mask in [name for name in given if name.endswith("_mask")]:
        del given[mask]
    config = model.config
    if "task_type_ids" in model.inputs and getattr(config, "task_embeddings", False):
        given["task_type_ids"] = torch.zeros(rows, length, dtype=torch.int64)
    if "entity_embeds" in model.inputs:
        given["entity_embeds"] = torch.rand(rows, length, config.entity_size)
        given["entity_mask"] = torch.ones(rows, length, dtype=torch.bool)
    if "ngram_ids" in model.inputs:
        given["ngram_ids"] = torch.ones(rows, length // 2, dtype=torch.int64)
        given["ngram_positions"] = torch.ones(rows, length, length // 2, dtype=torch.int64)
    if "entity_candidates" in model.inputs:
        spans, ids = torch.zeros(rows, 2, 2, dtype=torch.int64), torch.ones(rows, 2, 3, dtype=torch.int64)
        made = (spans.to(device), ids.to(device), torch.full((rows, 2, 3), 1 / 3).to(device))
        given["entity_candidates"] = {name: Candidates(*made) for name in config.knowledge}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}


def trace(model: Model) -> Graph:
    """What happens in one pass of a model on the meta device."""
    graph = Graph(model)
    given = inputs_for(model)
    watch = _Watch(graph)
    by_path = dict(blocks(model))
    handles = []
    for path, block in by_path.items():

        def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
            graph.runs.append(path)
            watch.run = len(graph.runs) - 1

        def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
            watch.run = -1

        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    for name, value in given.items():
        if isinstance(value, Tensor):
            watch.see(value, name)
        else:
            for candidates in value.values():
                watch.see(candidates.priors, name)
    try:
        with torch.no_grad(), zoo.packing(False), watch:
            model(**given)
    finally:
        for handle in handles:
            handle.remove()
    return _simplified(graph)


def _simplified(graph: Graph) -> Graph:
    """Sums of sums are one sum; a sum within a part is the part's own affair."""
    for node in [each for each in graph.nodes if each.kind == SUM]:
        around = set(graph.into(node)) & set(graph.out_of(node))
        if around and len(graph.out_of(node)) == 1:
            (part,) = around
            for source in graph.into(node):
                graph.edges.pop((source, node))
                if source != part:
                    graph.edges[source, part] = None
            graph.edges.pop((node, part))
            graph.nodes.pop(node)
    merged = True
    while merged:
        merged = False
        for node in list(graph.nodes):
            after = graph.out_of(node)
            if node.kind == SUM and len(after) == 1 and after[0].kind == SUM and after[0].run == node.run:
                for source in graph.into(node):
                    graph.edges.pop((source, node))
                    graph.edges[source, after[0]] = None
                graph.edges.pop((node, after[0]))
                graph.nodes.pop(node)
                merged = True
    return graph
