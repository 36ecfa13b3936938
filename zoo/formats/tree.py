"""From the value of a pickle to names, tensors, plain metadata and the list of what was refused.

The rules of naming:

- a tensor is called by the keys that lead to it, joined by dots; ``_modules``, ``_parameters`` and
  ``_buffers`` of modules are left out;
- where the top is a dict, its entries that hold tensors are the *groups*. The first of ``WRAPPERS``
  among them is the checkpoint: its tensors are called without its name, and the other groups
  (optimizer, ...) are only shown when asked for by name;
- without a wrapper, or with ``group=""``, every tensor is shown;
- everything else is metadata: plain numbers, strings, lists and dicts under the same keys. The
  attributes of a refused object (an ``argparse.Namespace``) are plain data as well, and its name is
  listed as refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import CheckpointError, unknown
from zoo.formats.limits import MAX_DEPTH, MAX_NAME, MAX_NODES, MAX_TEXT, printable
from zoo.formats.nodes import ArrayRef, Global, LongBytes, NumpyType, Refused, StorageRef, TensorRef

WRAPPERS: tuple[str, ...] = ("model", "state_dict", "model_state_dict", "model_state", "module", "learnable")
WRAPPERS += ("net", "network", "weights")
WRAPPERS += ("model_ema", "ema_model", "ema", "ema_state_dict", "state_dict_ema", "swa_model", "swa_state_dict")
MODULE_PARTS = ("_modules", "_parameters", "_buffers")
MAX_REFUSED_SHOWN = 200
MAX_REFUSED_NAMES = 2000

Leaf = TensorRef | ArrayRef | StorageRef
_PLAIN = (int, str, float, bool, type(None))


class _Nothing:
    """Stands for a branch that holds no plain data."""


_NOTHING = _Nothing()


@dataclass(frozen=True)
class Tree:
    tensors: dict[str, Leaf]
    metadata: dict[str, Any]
    refused: tuple[str, ...]
    groups: tuple[str, ...]
    group: str
    keys: tuple[str, ...]  # of the top level, by which formats are told apart


@dataclass
class _Walk:
    what: str
    tensors: list[tuple[tuple[str, ...], Leaf]] = field(default_factory=list)
    refused: dict[str, tuple[str, int]] = field(default_factory=dict)  # name -> (first place, count)
    seen: set[int] = field(default_factory=set)  # refused nodes that hang in the tree
    nodes: int = 0

    def count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise CheckpointError(f"{self.what} unfolds to more than {MAX_NODES} values")

    def refuse(self, name: str, path: tuple[str, ...]) -> None:
        if name in self.refused:
            place, count = self.refused[name]
            self.refused[name] = (place, count + 1)
        elif len(self.refused) < MAX_REFUSED_NAMES:
            self.refused[name] = (printable(".".join(path)) or "the top", 1)

    def visit(self, value: Any, path: tuple[str, ...], above: tuple[int, ...] = ()) -> Any:
        """The plain data of ``value``, or ``_NOTHING``; tensors and refused objects are noted on
        the way.
        """
        self.count(16)
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        if isinstance(value, (TensorRef, StorageRef)) or (isinstance(value, ArrayRef) and value.dtype is not None):
            self.tensors.append((path, value))
            return _NOTHING
        if isinstance(value, tuple) and [type(part) for part in value] == [str, ArrayRef]:
            return self.visit(value[1], path, above)  # Paddle stores the pair of a parameter's own name and its array
        if isinstance(value, LongBytes):
            return _text(value)
        if isinstance(value, Global):
            self.refuse(str(value), path)
            return _NOTHING
        if isinstance(value, (ArrayRef, NumpyType)):
            self.refuse("numpy.dtype" if isinstance(value, NumpyType) else "a numpy array of objects", path)
            return _NOTHING
        if id(value) in above or len(above) >= MAX_DEPTH:
            itself = id(value) in above
            self.refuse("a part that contains itself" if itself else f"a part nested deeper than {MAX_DEPTH}", path)
            return _NOTHING
        above = (*above, id(value))
        if isinstance(value, dict):
            return self.visit_items(value.items(), path, above)
        if isinstance(value, (list, tuple, set)):
            self.count(len(value))
            parts = [
                part if type(part) in _PLAIN else self.visit(part, (*path, str(i)), above)
                for i, part in enumerate(value)
            ]
            kept = [None if part is _NOTHING else part for part in parts]
            return kept if not parts or any(part is not _NOTHING for part in parts) else _NOTHING
        if isinstance(value, Refused):
            return self.visit_refused(value, path, above)
        raise AssertionError(f"an unknown node {type(value).__name__}")

    def visit_items(self, items: Iterable[tuple[Any, Any]], path: tuple[str, ...], above: tuple[int, ...]) -> Any:
        plain: dict[Any, Any] = {}
        empty = True
        for key, value in items:
            empty = False
            if type(value) in _PLAIN:  # by far the most frequent case: dictionaries of words
                plain[key] = value
                continue
            part = _part(key)
            result = self.visit(value, path if part in MODULE_PARTS else (*path, part), above)
            if result is not _NOTHING:
                plain[key] = result
        self.count(len(plain))
        return plain if plain or empty else _NOTHING

    def visit_refused(self, value: Refused, path: tuple[str, ...], above: tuple[int, ...]) -> Any:
        self.seen.add(id(value))
        self.refuse(f"{value.name} ({value.how})" if value.how else value.name, path)
        found = [
            self.visit(part, path, above) for part in (value.state, value.items, value.elements) if part is not None
        ]
        for i, argument in enumerate(value.arguments):
            self.visit(argument, (*path, str(i)), above)
        dicts = [part for part in found if isinstance(part, dict)]
        if dicts:
            return {key: part for plain in dicts for key, part in plain.items()}
        kept = [part for part in found if part is not _NOTHING]
        return kept[0] if kept else _NOTHING


def _part(key: Any) -> str:
    """A key as part of a name; one that is too long for a name stays so when it is cut."""
    if isinstance(key, (str, bytes)):
        key = key[: MAX_NAME + 1]
        return key if isinstance(key, str) else str(key, "latin-1")
    return str(key)[:100]


def _text(value: LongBytes) -> Any:
    if not value.text or len(value.data) > MAX_TEXT:
        return _NOTHING
    return str(value.data, "utf-8", "surrogatepass")


def _top(value: Any) -> dict[Any, Any] | None:
    """The top level as a dict, where it is one or an object with attributes."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Refused) and isinstance(value.state, dict):
        return value.state
    return None


def gather(value: Any, refused: Iterable[Refused], group: str | None, what: str) -> Tree:
    """Name the tensors of a pickle's value; ``group`` as in ``open_archive``."""
    walk = _Walk(what)
    metadata = walk.visit(value, ())
    for node in refused:
        if id(node) not in walk.seen:
            walk.refuse(f"{node.name} ({node.how or 'made'}), then discarded", ())
    top = _top(value)
    keys = tuple(dict.fromkeys(_part(key) for key in top)) if top is not None else ()
    bare = [path for path, _ in walk.tensors if len(path) == 1]
    groups = tuple(dict.fromkeys(path[0] for path, _ in walk.tensors if len(path) > 1)) if top is not None else ()
    if group is None:
        wrappers = WRAPPERS if isinstance(value, dict) else ()
        group = next((name for name in wrappers if name in groups and name not in (path[0] for path in bare)), "")
    elif group and group not in groups:
        raise unknown("group", group, groups, hint=f"(in {what})")
    tensors: dict[str, Leaf] = {}
    for path, leaf in walk.tensors:
        if group and (path[0] != group or len(path) == 1):
            continue
        name = ".".join(path[1:] if group else path) or "tensor"
        if len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointError(
                f"{what} names a tensor {printable(name)!r}, which is no printable name of at most {MAX_NAME} "
                "characters"
            )
        if name in tensors:
            raise CheckpointError(f"{what} holds two tensors called {name!r}")
        tensors[name] = leaf
    if not isinstance(metadata, dict):
        metadata = {} if metadata is _NOTHING else {"value": metadata}
    shown = [
        f"{name} at {place}" + (f" and {count - 1} more" if count > 1 else "")
        for name, (place, count) in walk.refused.items()
    ]
    if len(shown) > MAX_REFUSED_SHOWN:
        shown = [*shown[:MAX_REFUSED_SHOWN], f"{len(shown) - MAX_REFUSED_SHOWN} other kinds"]
    return Tree(tensors, {_part(key): part for key, part in metadata.items()}, tuple(shown), groups, group, keys)
