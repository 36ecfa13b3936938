"""`help` of a technique, config or model shows what a user needs, and that first."""

from __future__ import annotations

import inspect
import pydoc

import pytest

import zoo
from zoo.models.base.fields import described
from zoo.models.k_bert import KBert
from zoo.registry import variants as registry
from zoo.registry.techniques import TECHNIQUES

MODELS = [variants[0].model_class() for variants in registry.families().values()]
CONFIGS = [*dict.fromkeys(model.Config for model in MODELS), *(getattr(zoo, name) for name in TECHNIQUES)]


def help_of(cls: type) -> list[str]:
    return pydoc.render_doc(cls, renderer=pydoc.plaintext).splitlines()


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_help_explains_each_field_ahead_of_all_else(cls):
    shown = help_of(cls)
    fields = shown.index(" |  Fields:")
    assert fields <= 20
    rows = described(cls)
    for line, row in zip(shown[fields + 1 :], rows, strict=False):
        assert line.startswith(f" |      {row.name}: {row.type}")
        assert line.endswith(f"  # {row.meaning}"), row
        assert row.meaning, f"say what {cls.__name__}.{row.name} means by a comment on its line"
    assert not [line for line in shown if line.startswith(" |  __")]
    assert f"{cls.__name__}(*, {rows[0].name}: {rows[0].type}" in shown[3]


def test_a_docstring_shows_its_own_words_and_what_has_no_default():
    assert (zoo.AdapterFusion.__doc__ or "").startswith("Attention over adapters that are there")
    assert "    names: tuple[str, ...]  # of the adapters that are fused\n" in zoo.AdapterFusion.__doc__


@pytest.mark.parametrize("model", list(dict.fromkeys(MODELS)), ids=lambda model: model.__name__)
def test_help_of_a_model_begins_with_its_paper_and_its_traps(model):
    shown = help_of(model)
    order = next(n for n, line in enumerate(shown) if "Method resolution order" in line)
    assert order <= 60
    told = inspect.getmodule(model).__doc__ if model is not KBert else "The visible matrix is"  # it has its own
    assert inspect.cleandoc(told).splitlines()[0] in "\n".join(shown[:order])
