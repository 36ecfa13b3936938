"""The site of the documentation: it builds strictly, and a browser without a window reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from docs.site import navigation
from docs.site.check import problems
from docs.site.reference import entries
from docs.site.sources import ADOPTED, Links
from tests.browser import NAMES, Browser, found
from zoo.errors import ZooError
from zoo.registry.listing import PROOFS, overview

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built once."""
    pytest.importorskip("zensical", reason="the extra [docs] builds the site")
    done = subprocess.run([sys.executable, "-m", "docs.site"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return SITE


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if found() is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_pages_read_well_in_a_browser(site, browser):
    """No error and no request, nothing wider than the page, equations drawn, the finder filters and
    the search finds, all from a folder.
    """
    pages = ("index.html", "models/albert.html", "models/vilbert.html", "finder.html", "api/techniques.html")
    for page in (*pages, "techniques.html", "performance.html", "source/zoo/models/albert.py.html"):
        for width, dark in ((PHONE, False), (DESK, True)):
            browser.open(f"file://{site}/{page}", width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, f"{page} is wider than {width}"
            assert not browser.errors, f"{page}: {browser.errors}"
            light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c > 200)"
            assert browser.evaluate(light) is not dark, f"{page} does not follow the system's colors"

    browser.open(f"file://{site}/models/bert.html")
    browser.evaluate("document.querySelector('.equation').scrollIntoView({block: 'center'})")
    place = browser.evaluate(
        "(box => ({x: box.left + 20, y: box.top + box.height / 2}))"
        "(document.querySelector('.equation').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)
    assert browser.evaluate("new Promise(done => setTimeout(() => done(!!document.querySelector('.copied')), 200))")
    tall = "[...document.querySelectorAll('.equation math')].every(drawn => drawn.getBoundingClientRect().height > 10)"
    assert browser.evaluate(tall), "an equation is not drawn"

    browser.open(f"file://{site}/finder.html#pillar=cross-modal&streams=2&most=200")
    shown = "[...document.querySelectorAll('#models tbody tr')].filter(row => !row.hidden).map(row => row.dataset.name)"
    wanted = [
        name for name in zoo.list_models(pillar="cross-modal", streams=2) if zoo.info(name)["parameters"] <= 200e6
    ]
    assert browser.evaluate(shown) == wanted != []
    assert browser.evaluate("document.getElementById('found').textContent") == f"{len(wanted)} models"
    browser.evaluate("document.querySelector('#finder [type=reset]').click()")
    assert browser.evaluate(f"new Promise(done => setTimeout(() => done({shown}.length), 100))") == len(
        zoo.list_models()
    )

    browser.open(f"file://{site}/index.html")
    browser.evaluate("document.querySelector('.md-search__button').click()")
    root = "[...document.body.children].find(element => element.shadowRoot).shadowRoot"
    browser.evaluate(f"{root}.querySelector('input').focus()")
    browser.call("Input.insertText", text="movement pruning")
    hits = f"[...{root}.querySelectorAll('a')].map(a => a.href).filter(address => address.includes('pruning'))"
    until = "(async () => { for (let n = 0; n < 50; n++) { await new Promise(d => setTimeout(d, 100)); "
    assert browser.evaluate(until + f"if ({hits}.length) return true }} return false }})()"), "the search finds nothing"
    assert not browser.errors


def test_without_scripts_the_finder_is_a_whole_table(site):
    page = (site / "finder.html").read_text(encoding="utf-8")
    assert page.count('<tr data-name="') == len(zoo.list_models())
    assert '<form id="finder" class="finder" hidden' in page


def test_the_check_of_the_built_pages_sees_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="x">a</h1><p id="x"></p><img src="b.png"><a href="b.html#y">b</a><a href="c.html">c</a>'
        '<script src="https://example.org/x.js"></script><a href="https://example.org">fine</a>',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<a href="a.html#x">a</a>', encoding="utf-8")
    said = "\n".join(problems(tmp_path))
    assert said.count("\n") == 5
    for wrong in ("stands twice", "no text alternative", "b.png leads nowhere", "#y names a place", "c.html leads"):
        assert wrong in said
    assert "example.org/x.js" in said


def test_each_public_name_stands_in_the_reference_once():
    pages = (ROOT / "docs" / "api").glob("*.md")
    named = [name for page in pages for name in entries(page.read_text(encoding="utf-8"))]
    assert sorted(name for name in named if name.count(".") == 1) == sorted(f"zoo.{name}" for name in zoo.__all__)
    assert len(named) == len(set(named))
    assert {f"zoo.training.{name}" for name in zoo.training.__all__} <= set(named)


def test_every_page_has_its_place_in_the_navigation():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    entries = navigation.navigation()
    navigation.check(pages | set(ADOPTED.values()), entries)
    with pytest.raises(ZooError, match=r"guides/new\.md stand nowhere"):
        navigation.check({*pages, *ADOPTED.values(), "guides/new.md"}, entries)


def test_links_to_sources_and_to_pages_of_the_root_lead_into_the_site():
    links = Links()
    text = "[a](../../zoo/models/albert.py#L12) [b](../../CONTRIBUTING.md#tests) [c](bert.md)\n"
    assert links.relink(text, "models/albert.md").startswith(
        "[a](../source/zoo/models/albert.py.html#line-12) [b](../contributing.md#tests) [c](bert.md)"
    )
    assert links.sources == {"zoo/models/albert.py"}
    assert Links().relink("[x](docs/guides/convert.md)", "contributing.md") == "[x](guides/convert.md)"


def test_equations_become_mathml_that_carries_its_latex():
    pytest.importorskip("latex2mathml", reason="the extra [docs] typesets equations")
    from docs.site.mathml import mathml

    drawn = mathml(r"\mathrm{norm}(x) \begin{aligned} a &= b \\ c &= d \end{aligned}", display=True)
    assert "<mi>norm</mi>" in drawn
    assert drawn.count("<mtr>") == 2
    assert r"\begin{aligned} a &amp;= b" in drawn
    with pytest.raises(ZooError, match=r"can't typeset \\nosuch"):
        mathml(r"\nosuch{x}", display=False)


def test_every_family_says_its_languages_and_how_far_it_is_tested():
    for name in zoo.list_models():
        row = overview(name)
        assert row["languages"], f"{name}: say the languages in zoo/models/{row['family']}.toml"
        assert row["proof"] in PROOFS
    assert overview("xlm-mlm-enfr-1024")["languages"] == ["en", "fr"]
    assert overview("minilm-l6-h384.all-minilm-l6-v2")["proof"] == PROOFS[0]
    assert overview("albert-base.v2")["proof"] == PROOFS[1]
    assert overview("bert-xlarge")["proof"] == PROOFS[2]


def test_arguments_that_a_docstring_explains_stand_in_a_list():
    pytest.importorskip("griffe", reason="the extra [docs] reads docstrings")
    from docs.site.docstrings import listed

    text = "Do it.\n\nname: what it is. path, kind (a, b): where; of\nwhich kind: as said. ``task``: None."
    text += "\n\n    a: kept\n\n-> it."
    assert listed(text, ("name", "path", "kind", "task")).split("\n\n") == [
        "Do it.",
        "- `name`: what it is.\n- `path`, `kind` (a, b): where; of which kind: as said.\n- `task`: None.",
        "    a: kept",
        "Returns it.",
    ]
    assert listed("One: two.", ()) == "One: two."
