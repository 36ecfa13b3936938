"""The paper beside the code: each equation of a model's page has lines of the source, each marker of the source a page,
and every family's page tells the same things in the same order.
"""

from __future__ import annotations

import re

import pytest

from docs import beside, generate
from zoo.registry import variants as registry

PAGES = sorted((beside.ROOT / "docs").rglob("*.md"))
SOURCES = sorted(path.relative_to(beside.ROOT).as_posix() for path in (beside.ROOT / "zoo").rglob("*.py"))
SECTIONS = {  # in order, each with what it must hold
    "Equations": r"^```math$",
    "Use": r"^```python$",
    "Inputs": r"^<!-- table: inputs -->$",
    "Sizes": r"^<!-- table: sizes -->$",
    "Parameters by part": r"^<!-- table: parts -->$",
    "Heads and tasks": r"^<!-- table: heads -->$(?s:.*)^<!-- table: tasks -->$",
    "Checkpoints": r"^<!-- table: checkpoints -->$",
    "Traps": r"^- ",
    "Reported and reproduced": r"\S",
    "Proof": r"\S",
}
MADE_UP, LOST = "zoo" + "/thing.py", "zoo" + "/lost.py"  # in two, for they are no files of the repository
SOURCE = '''\
import torch


def wide(x):  # eq: wide
    """Doc.

    More.
    """

    y = x + 1  # one
    z = y  # (batch, length)  # eq: wide, other
    return y


class Thing:
    def __init__(self):
        self.a = torch.ones(  # eq: thing
            3,
        )

        self.b = 1  # eq: thing
        self.c = 2
        self.d = 3  # eq: thing

    @property
    def one(self):  # eq: one
        """Only this."""
        return 1
'''


def text_of(family):
    return (generate.PAGES / f"{family}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", registry.families())
def test_a_familys_page_has_the_agreed_sections_in_order(family):
    text = text_of(family)
    head, *sections = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    assert re.match(r"# .+\n", head)
    pictures = re.findall(r"!\[([^\]]+)\]\(\.\./images/[\w-]+\.svg\)", head)
    assert pictures
    assert all(len(alternative.split()) > 4 for alternative in pictures), "a picture needs words for who can't see it"
    held = dict(zip(sections[::2], sections[1::2], strict=True))
    assert len(held) == len(sections) / 2, "a section's name is used twice"
    assert [name for name in held if name in SECTIONS] == list(SECTIONS)
    for name, needed in SECTIONS.items():
        assert re.search(needed, held[name], re.MULTILINE), f"{name} lacks {needed}"


@pytest.mark.parametrize("family", registry.families())
def test_every_equation_of_a_models_page_has_lines_of_the_source(family):
    found = beside.equations(text_of(family))
    assert found
    assert [equation.latex for equation in found if not equation.places] == []


@pytest.mark.parametrize("page", sorted(generate.TECHNIQUE_PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_equation_of_a_techniques_page_has_lines_of_the_source(page):
    found = beside.equations(page.read_text(encoding="utf-8"))
    assert found or page.stem == "fine-tuning"
    assert [equation.latex for equation in found if not equation.places] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(beside.ROOT / "docs").as_posix())
def test_every_name_that_a_page_asks_for_is_marked_in_its_file(page):
    for equation in beside.equations(page.read_text(encoding="utf-8")):
        for path, name in equation.places:
            assert beside.pieces(path, name)


def test_every_marker_of_the_source_is_shown_by_a_page():
    marked = {(path, name) for path in SOURCES for name in beside.markers(path)}
    shown = {place for page in PAGES for e in beside.equations(page.read_text(encoding="utf-8")) for place in e.places}
    assert sorted(marked - shown) == []


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "ROOT", tmp_path)
    file = tmp_path / "zoo" / "thing.py"
    file.parent.mkdir()
    file.write_text(SOURCE, encoding="utf-8")
    return file


def test_a_marked_function_is_shown_without_its_docstring_and_its_markers(source):
    shown = beside.pieces(MADE_UP, "wide")
    assert [(piece.first, piece.last, piece.after_gap) for piece in shown] == [(4, 4, False), (10, 12, False)]
    assert [piece.text for piece in shown] == [
        "def wide(x):",
        "    y = x + 1  # one\n    z = y  # (batch, length)\n    return y",
    ]


def test_adjacent_statements_of_one_name_are_shown_in_one_piece_and_others_behind_a_gap(source):
    shown = beside.pieces(MADE_UP, "thing")
    assert [piece.text for piece in shown] == ["self.a = torch.ones(\n    3,\n)\n\nself.b = 1", "self.d = 3"]
    assert [piece.after_gap for piece in shown] == [False, True]
    assert [piece.text for piece in beside.pieces(MADE_UP, "other")] == ["z = y  # (batch, length)"]
    assert [piece.text for piece in beside.pieces(MADE_UP, "one")] == [
        "@property\ndef one(self):",
        "    return 1",
    ]


def test_the_lines_stand_beside_the_equation_with_the_numbers_of_the_file(source):
    page = f"Before.\n\n```math\na\n```\n<!-- code: {MADE_UP}#thing, {MADE_UP}#other -->\n\n```math\nb\n```\nAfter."
    made = beside.expand(page, lambda path, first, last: f"https://example.org/{path}#L{first}-L{last}")
    assert made.startswith('Before.\n\n<div class="beside" markdown>\n<div class="beside-math" markdown>\n\n```math\na')
    assert f'<a href="https://example.org/{MADE_UP}#L17-L23">{MADE_UP}, lines 17–23</a>' in made
    assert '```python linenums="17"\nself.a = torch.ones(\n' in made
    assert '```python linenums="23"\nself.d = 3\n```' in made
    assert made.count('<p class="beside-gap">') == 1
    assert made.index(f"{MADE_UP}, line 11<") > made.index("self.d = 3")
    assert made.endswith("</div>\n</div>\n\n```math\nb\n```\nAfter.")
    assert "<!-- code" not in made
    assert "eq:" not in made


def test_a_fence_inside_another_is_no_equation():
    page = f"````markdown\n```math\na\n```\n<!-- code: {MADE_UP}#thing -->\n````\n"
    assert beside.equations(page) == []
    assert beside.expand(page) == page


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (f"```math\na\n```\n<!-- code: {MADE_UP}#lost -->", "has no `# eq: lost`; it has one, other, thing, wide"),
        (f"```math\na\n```\n<!-- code: {LOST}#thing -->", f"there is no file {LOST}"),
        ("```math\na\n```\n<!-- code: thing.py#thing -->", "must be a file of zoo/ and a name"),
        (f"```math\na\n```\n\n<!-- code: {MADE_UP}#thing -->", "must stand directly below"),
    ],
)
def test_what_a_page_gets_wrong_is_refused(source, page, reason):
    with pytest.raises(beside.BesideError, match=re.escape(reason)):
        beside.expand(page)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a = [\n    1,  # eq: one\n]\n", "stands on the first line of a statement"),
        ("a = 1  # eq: One\n", "lower-case words"),
        ("# eq: one\na = 1\n", "stands on the first line of a statement"),
    ],
)
def test_a_marker_that_marks_nothing_is_refused(source, line, reason):
    source.write_text(line, encoding="utf-8")
    with pytest.raises(beside.BesideError, match=reason):
        beside.markers(MADE_UP)
