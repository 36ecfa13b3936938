"""The model finder: a table of every variant, made from what `zoo list --long --json` says, and the
form that filters it. The script beside it (`finder.js`) shows the form; without it the table is whole.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import zoo
from docs.site.navigation import page_of
from zoo.layers.init import shapes_only
from zoo.registry import variants as registry
from zoo.registry.listing import PROOFS, overview
from zoo.registry.variants import PILLARS

PLACE = "<!-- finder -->"
LANGUAGES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "de": "German", "el": "Greek", "en": "English", "es": "Spanish"},
    **{"fr": "French", "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch"},
    **{"pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "sw": "Swahili"},
    **{"th": "Thai", "tr": "Turkish", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese"},
}


def fill(text: str) -> str:
    """A page with the finder in its place."""
    return text.replace(PLACE, finder()) if PLACE in text else text


def rows() -> list[dict[str, Any]]:
    """Every variant as `zoo list --long --json` has it; what no paper counts is counted here."""
    found = [overview(name) for name in zoo.list_models()]
    for row in found:
        if row["parameters"] is None:
            variant = registry.variant(row["name"])
            with shapes_only():
                row["parameters"] = variant.model_class()(registry.config(row["name"])).num_parameters()
    return found


def finder() -> str:
    """Form and table."""
    found = rows()
    languages = sorted({_language(each) for row in found for each in row["languages"]}, key=_languages_first)
    licences = sorted({each for row in found for each in row["licences"]})
    tasks = sorted({each for row in found for each in row["tasks"]})
    streams = sorted({str(row["streams"]) for row in found})
    form = [
        '<form id="finder" class="finder" hidden aria-label="Filter the models">',
        '<label>Name<input type="search" name="name" autocomplete="off"></label>',
        _select("pillar", "Pillar", [pillar for pillar in PILLARS if any(row["pillar"] == pillar for row in found)]),
        _select("streams", "Streams", streams),
        _select("language", "Language", languages),
        _select("licence", "Licence", licences),
        _select("task", "Task", tasks),
        _select("proof", "Tested", [proof for proof in PROOFS if any(row["proof"] == proof for row in found)]),
        _size("least", "At least, million parameters"),
        _size("most", "At most, million parameters"),
        '<button type="reset" class="md-button">Clear</button>',
        "</form>",
        f'<p id="found" role="status">{len(found)} models</p>',
    ]
    columns = ("Model", "Parameters", "Pillar", "Streams", "Languages", "Licence", "Tested", "Tasks")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    table = [
        '<div class="md-typeset__scrollwrap" tabindex="0" role="region" aria-label="Models">',
        '<div class="md-typeset__table">',
        f'<table id="models"><thead><tr>{head}</tr></thead><tbody>',
        *map(_row, found),
        "</tbody></table></div></div>",
        '<script src="site/finder.js" defer></script>',
    ]
    return "\n".join([*form, *table])


def _row(row: dict[str, Any]) -> str:
    languages = [_language(each) for each in row["languages"]]
    data = {
        **{key: row[key] for key in ("name", "pillar", "streams", "parameters", "proof")},
        **{"language": "|".join(languages), "licence": "|".join(row["licences"]), "task": "|".join(row["tasks"])},
    }
    attributes = " ".join(f'data-{key}="{html.escape(str(value))}"' for key, value in data.items())
    page = page_of(row["family"]).replace(".md", ".html")
    cells = (
        f"{row['parameters'] / 1e6:,.1f} M",
        row["pillar"],
        str(row["streams"]),
        ", ".join(languages) if len(languages) < 4 else f"{len(languages)} languages",
        ", ".join(row["licences"]) or "none",
        row["proof"],
        str(len(row["tasks"])),
    )
    tds = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr {attributes}><th scope="row"><a href="{page}"><code>{row["name"]}</code></a></th>{tds}</tr>'


def _select(name: str, label: str, options: Iterable[str]) -> str:
    each = "".join(f"<option>{html.escape(option)}</option>" for option in options)
    return f'<label>{label}<select name="{name}"><option value="">any</option>{each}</select></label>'


def _size(name: str, label: str) -> str:
    return f'<label>{label}<input type="number" name="{name}" min="0" step="any" inputmode="decimal"></label>'


def _language(code: str) -> str:
    return LANGUAGES.get(code, code)


def _languages_first(name: str) -> tuple[bool, str]:
    return name not in LANGUAGES.values(), name
