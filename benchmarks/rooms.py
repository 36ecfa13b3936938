"""Count what the order of the rooms is about, of this tree or of another one.

    python -m benchmarks.rooms [TREE]

Circles and imports against the order are counted over all imports, those inside functions too and
those under TYPE_CHECKING not. A tree from before the rooms has no order to hold, so its imports
against the order are not counted. Wide functions: more than eight arguments, forwards, public calls
and commands not counted.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import grimp

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PUBLIC = {"forward", "encode", "decode", "create", "load", "convert", "register", "save", "fit"}


def floors() -> dict[str, int]:
    """The floor of each room, and of the package, which only api, cli and users import."""
    contracts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    found = {room.strip(): floor for floor, line in enumerate(reversed(layers)) for room in line.split("|")}
    return found | {"__main__": found["cli"], "": found["api"]}


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach one another, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def siblings(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Circles among the children of each package, a child standing for all that lies in it."""
    parents = {module.rpartition(".")[0] for module in edges} - {""}
    found = []
    for parent in sorted(parents):
        depth = parent.count(".") + 2
        inside = [module for module in edges if module.startswith(f"{parent}.")]
        child = {module: ".".join(module.split(".")[:depth]) for module in inside}
        squashed: dict[str, set[str]] = {name: set() for name in child.values()}
        for module in inside:
            squashed[child[module]] |= {child[other] for other in edges[module] if other in child} - {child[module]}
        found += circles(squashed)
    return found


def width(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rooms", description=__doc__.split("\n")[0])
    parser.add_argument("tree", nargs="?", type=Path, default=Path(__file__).parents[1])
    tree = parser.parse_args(arguments).tree.resolve()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    graph = grimp.build_graph("zoo", exclude_type_checking_imports=True, cache_dir=None)
    edges = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    files = {path: path.read_text(encoding="utf-8") for path in sorted(Path("zoo").rglob("*.py"))}
    lines = sorted(((len(text.splitlines()), str(path)) for path, text in files.items()), reverse=True)
    rooms = sorted(path.parent.name for path in files if path.name == "__init__.py" and len(path.parts) == 3)
    wide = sorted(
        (
            (width(node), f"{path}:{node.name}")
            for path, text in files.items()
            if not {"cli", "cli.py", "commands"} & set(path.parts)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.name not in PUBLIC
        ),
        reverse=True,
    )
    print(f"modules {len(edges)}, imports {sum(map(len, edges.values()))}")
    print(f"rooms {len(rooms)}: {', '.join(rooms)}")
    print(f"loose files {sum(len(path.parts) == 2 for path in files)}")
    for circle in siblings(edges):
        print(f"circle: {', '.join(circle)}")
    print(f"circles {len(siblings(edges))} among siblings, {len(circles(edges))} among modules")
    known = floors()
    if {*rooms, "errors", "__main__", ""} == set(known):
        floor = {module: known[f"{module}.".split(".")[1]] for module in edges}
        up = sum(floor[other] > floor[module] for module in edges for other in edges[module])
        print(f"imports against the order {up}")
    print(f"wide functions {sum(count > 8 for count, _ in wide)}, the widest {wide[0][1]} with {wide[0][0]}")
    print(f"lines {sum(count for count, _ in lines)}, characters {sum(map(len, files.values()))}")
    print("longest: " + ", ".join(f"{name} {count}" for count, name in lines[:5]))
    models = [(path.stem, len(text.splitlines())) for path, text in files.items() if path.parts[1:-1] == ("models",)]
    print("model files: " + ", ".join(f"{name} {count}" for name, count in models if name != "__init__"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
