"""The house keeps its plan: what import-linter can't see is read from the source here.

``make lint`` holds the order of the rooms and that there is no circle; these tests hold the rest: nothing below the
api imports the package itself or names a module above it in a string, nothing lies loose, no room bears a public
name, model files leave packing to `Run`, and no internal function takes more than eight arguments.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import zoo

ROOT = Path(zoo.__file__).parent
FLOORS = (
    ("errors",),
    ("formats",),
    ("registry", "layers", "tokenization"),
    ("maps", "data"),
    ("models",),
    ("tasks", "inference"),
    ("techniques",),
    ("checkpoints",),
    ("training",),
    ("api",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))
# forwards with their halves, and public calls, may take more
PUBLIC = {"forward", "encode", "decode", "create", "load", "convert", "register", "save", "fit"}


def trees(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] in rooms:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_nothing_lies_loose_and_no_room_bears_a_public_name():
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms == set(FLOOR) - {"errors"}
    assert not rooms & set(zoo.__all__)


def test_nothing_below_the_api_imports_the_package_itself():
    below = [room for room in FLOOR if FLOOR[room] < FLOOR["api"]]
    for name, tree in trees(*below):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert "zoo" not in [alias.name for alias in node.names], f"{name}:{node.lineno} imports zoo"
            if isinstance(node, ast.ImportFrom):
                assert node.module != "zoo", f"{name}:{node.lineno} imports from zoo"


def test_no_module_is_imported_by_a_string_from_below():
    found = 0
    for name, tree in trees(*FLOOR):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args):
                continue
            found += 1
            text = node.args[0]
            if isinstance(text, ast.Constant) and str(text.value).startswith("zoo."):
                room = str(text.value).split(".")[1]
                assert FLOOR[room] <= FLOOR[name.split("/")[0]], f"{name}:{node.lineno} reaches up to {text.value}"
    assert found  # registry strings name classes; they are resolved, not written down, where they are imported


def test_model_files_leave_packing_to_the_run():
    for name, tree in trees("models"):
        if name.startswith("models/base/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                called = ast.unparse(node)
                wrong = called == "Padding.of" or node.attr in ("pack", "unpack")
                assert not wrong, f"{name}:{node.lineno} packs by hand: {called}"


def test_layers_hold_what_more_than_one_model_file_reads():
    """Directly, or through another layer; a part with one reader stands with that reader."""
    reads: dict[str, set[str]] = {}
    for name, tree in trees("layers", "models", "tasks", "inference", "techniques", "training", "checkpoints"):
        user = name.removesuffix(".py").replace("/", ".")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zoo.layers"):
                reads.setdefault(user, set()).update(sources_of(node))
    readers: dict[str, set[str]] = {}
    for user in reads:
        reached, todo = set(), list(reads[user])
        while todo:
            layer = todo.pop()
            if layer not in reached:
                reached.add(layer)
                todo += reads.get(layer.removeprefix("zoo."), ())
        if user.startswith("models."):
            for layer in reached:
                readers.setdefault(layer, set()).add(user)
    modules = {f"zoo.{name.removesuffix('.py').replace('/', '.')}" for name, _ in trees("layers")}
    lonely = {m for m in modules if not m.endswith("__init__") and len(readers.get(m, ())) < 2}
    assert lonely <= {"zoo.layers.extend"}, "only techniques and models' twins extend a class"


def sources_of(node: ast.ImportFrom) -> Iterator[str]:
    """The modules of layers that an import names, through the package's own re-exports."""
    for alias in node.names:
        value = getattr(importlib.import_module(node.module or ""), alias.name, None)
        module = getattr(value, "__module__", None) or node.module
        yield module if str(module).startswith("zoo.layers") else str(node.module)


def test_no_internal_function_takes_more_than_eight_arguments():
    wide = []
    for name, tree in trees(*(room for room in FLOOR if room != "cli")):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name not in PUBLIC:
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > 8:
                    wide.append(f"{name}:{node.lineno} {node.name} takes {count}")
    assert not wide, "\n".join(wide)


def test_a_mask_can_be_followed_without_crossing_its_own_path():
    """Calls run from the run to the stack, the block, the attention, its core: the mask itself calls nobody."""
    from zoo.layers.masks import Mask

    source = ast.parse((ROOT / "layers" / "masks.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
    assert not any((module or "").startswith("zoo.layers.attention") for module in imported)
    assert not hasattr(Mask, "attend")
