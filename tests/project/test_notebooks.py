"""The rendered notebooks: pages show the scripts as they are, with outputs of that code; what the
quickest two print is still what their pages show; Jupyter can open all five.
"""

from __future__ import annotations

import json
import re

import pytest

from docs import notebooks
from zoo.errors import FetchError

NAMES = notebooks.names()
QUICK = ("tour", "convert")
SCRIPT = """'''What stands before the first cell is left out.'''

# %% [markdown]
# # A title
# Some text.

# %%
from matplotlib import pyplot

print("printed")
6 * 7

# %%
pyplot.figure().set_label("nothing")
"""


def script(name):
    return (notebooks.SCRIPTS / f"{name}.py").read_text(encoding="utf-8")


def test_the_notebooks_are_these():
    assert NAMES == ["compress", "convert", "fine_tune", "tour", "vision_language"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_its_script_with_outputs_of_that_code(name):
    cells, record = notebooks.cells(script(name)), notebooks.stored(name)
    assert record.digest == notebooks.digest(cells), f"run python -m docs.notebooks {name}"
    written = (notebooks.PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert notebooks.page(name, cells, record) == written, f"run python -m docs.notebooks --text {name}"
    assert re.match(r"Run on \d{4}-\d\d-\d\d in \d+ s of processor time, .*zoo .*torch .*Python ", record.ran)


@pytest.mark.weights
@pytest.mark.parametrize("name", QUICK)
def test_a_quick_notebook_runs_and_prints_what_its_page_shows(name):
    try:
        ran = notebooks.run(name, script(name))
    except FetchError as error:
        pytest.skip(f"its weights can't be had here: {error}")
    stored = notebooks.stored(name)
    assert ran.digest == stored.digest
    for new, old in zip(ran.outputs, stored.outputs, strict=True):
        assert without_figures(new.text) == without_figures(old.text)
        assert [figure.label for figure in new.figures] == [figure.label for figure in old.figures]


def without_figures(text):
    """Printed text without digits, which differ in the last place between machines, and hashes."""
    return re.sub(r"\b[0-9a-f]{12,}\b|[\d.,e+-]*\d", "#", text)


def test_a_cell_gives_what_it_prints_then_its_last_value_then_its_figures():
    cells = notebooks.cells(SCRIPT)
    assert [(cell.code, cell.source.splitlines()[0]) for cell in cells] == [
        (False, "# A title"),
        (True, "from matplotlib import pyplot"),
        (True, 'pyplot.figure().set_label("nothing")'),
    ]
    record = notebooks.run("tiny", SCRIPT)
    assert not notebooks.pyplot.get_fignums()
    assert [output.text for output in record.outputs] == ["printed\n42", ""]
    (figure,) = record.outputs[1].figures
    assert figure.label == "nothing"
    assert figure.png.startswith(b"\x89PNG")
    page = notebooks.page("tiny", cells, record)
    assert page.startswith("# A title\n\n<!-- notebook: ")
    assert "```text\nprinted\n42\n```\n" in page
    assert "![nothing](images/tiny-1.png)" in page


def test_a_figure_without_a_label_and_an_error_in_a_cell_stop_the_run():
    with pytest.raises(ValueError, match="no text that can stand in for it"):
        notebooks.run("tiny", SCRIPT.replace('.set_label("nothing")', ""))
    with pytest.raises(ZeroDivisionError) as raised:
        notebooks.run("tiny", SCRIPT.replace("6 * 7", "6 / 0"))
    assert raised.traceback[-1].lineno + 1 == SCRIPT.splitlines().index("6 * 7") + 1


def test_a_change_of_code_changes_the_digest_and_a_change_of_text_does_not():
    digests = [
        notebooks.digest(notebooks.cells(text))
        for text in (SCRIPT, SCRIPT.replace("Some text", "Other text"), SCRIPT.replace("6 * 7", "6 * 8"))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_changed_code_is_refused_where_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "digest", lambda cells: "another")
    assert notebooks.main(["--text", "tour"]) == 1
    assert "the code of tour has changed" in capsys.readouterr().err


def test_jupyter_gets_every_cell_with_its_outputs(tmp_path):
    assert notebooks.main(["--ipynb", str(tmp_path)]) == 0
    drawn = 0
    for name in NAMES:
        book = json.loads((tmp_path / f"{name}.ipynb").read_text(encoding="utf-8"))
        assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
        cells, code = notebooks.cells(script(name)), [c for c in book["cells"] if c["cell_type"] == "code"]
        assert ["".join(cell["source"]) for cell in book["cells"]] == [cell.source for cell in cells]
        assert len({cell["id"] for cell in book["cells"]}) == len(cells)
        stored = notebooks.stored(name)
        for cell, output in zip(code, stored.outputs, strict=True):
            texts = ["".join(one["text"]) for one in cell["outputs"] if one["output_type"] == "stream"]
            images = [one["data"]["image/png"] for one in cell["outputs"] if one["output_type"] == "display_data"]
            assert texts == ([output.text] if output.text else [])
            assert len(images) == len(output.figures)
            drawn += len(images)
    assert drawn == 8
