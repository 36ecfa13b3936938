"""What is said once: the names of `zoo`, its techniques, its classes."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import zoo
import zoo.techniques
from docs import generate
from zoo.registry.techniques import TECHNIQUES
from zoo.techniques.base import Technique, technique_class

PACKAGE = Path(zoo.__file__).parent


def test_a_class_has_its_public_name_for_itself():
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(PACKAGE)))
    assert len(found) > 400
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_the_names_of_zoo_are_the_same_to_users_to_dir_and_to_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {(alias.asname, node.module) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert typed == set(zoo._WHERE.items()), "run python -m docs.generate"
    assert generate.typed_names() == generate.PACKAGE.read_text(encoding="utf-8"), "run python -m docs.generate"
    assert dir(zoo) == sorted(zoo.__all__)
    assert {name for name in zoo.__all__ if hasattr(zoo, name)} == {"__version__", *zoo._WHERE}


def test_importing_zoo_and_its_table_of_techniques_loads_no_torch():
    code = "import sys, zoo, zoo.registry.techniques; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_technique_is_declared_and_every_declaration_is_one():
    written = set()
    for info in pkgutil.walk_packages(zoo.techniques.__path__, "zoo.techniques."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(value) and issubclass(value, Technique) and value.__module__ == info.name:
                written.add(name)
    assert written - {"Technique", "PlacedTechnique", "SparseTechnique", "StructuredPruning"} == set(TECHNIQUES)
    for name, declared in TECHNIQUES.items():
        assert getattr(zoo, name) is technique_class(name)
        assert (generate.TECHNIQUE_PAGES / f"{declared.page}.md").exists()
