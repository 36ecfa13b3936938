"""Fill what is generated from the code: the tables of the docs (sizes, parameters, checkpoints with
licence and proof, tasks, techniques, other libraries), and the names of `zoo` for type checkers.

    python -m docs.generate            rewrite what stands between the markers
    python -m docs.generate --check    exit code 1 where a page is out of date

A page asks for a table by a line ``<!-- table: sizes -->``; the table stands between it and
``<!-- end -->``. Those of a family's page are in `docs.family_tables`. The drawings of
`docs.drawings` are written into `docs/images/`.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import zoo
from docs.drawings import drawings
from docs.family_tables import MEANINGS, TABLES, table
from zoo.registry import variants as registry
from zoo.registry.inputs import INPUTS, LABELS, InputTable
from zoo.registry.listing import natural
from zoo.registry.records import records
from zoo.registry.techniques import TECHNIQUES

PAGES = Path(__file__).parent / "models"
IMAGES = Path(__file__).parent / "images"
TECHNIQUE_PAGES = Path(__file__).parent / "techniques"
INTEROP = Path(__file__).parent / "interop.csv"
COMMON = ("architecture", "concepts/proof", "families", "guides/interop", "techniques")
PACKAGE = Path(zoo.__file__)
NAMES = re.compile(r"(^if TYPE_CHECKING:.*\n)(?:    from .*\n)+", re.MULTILINE)
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    common = (PAGES.parent / f"{name}.md" for name in COMMON)
    return [*common, *sorted(PAGES.glob("*.md"))]


def families_table(_: object = None) -> str:
    """A row per family: pillar, streams, variants, tags, layouts."""
    from zoo.maps import layouts

    by_maps: dict[str, list[str]] = {}
    for name in layouts.available():
        by_maps.setdefault(layouts.load(name).family, []).append(name)
    rows = []
    for family, variants in sorted(
        registry.families().items(), key=lambda item: (registry.PILLARS.index(item[1][0].pillar), item[0])
    ):
        tags = sum(len(registry.tags(v)) for v in variants)
        own = ", ".join(f"`{name}`" for name in sorted(by_maps.get(variants[0].maps, [])))
        page = f"[{family}](models/{family.replace('-', '_')}.md)"
        if not (PAGES / f"{family.replace('-', '_')}.md").exists():
            page = f"[{family}](models/{family}.md)"
        rows.append([page, variants[0].pillar, str(variants[0].streams), str(len(variants)), str(tags), own])
    return table(["family", "pillar", "streams", "variants", "tags", "layouts"], rows)


def proofs(_: object = None) -> str:
    """How far checkpoints are tested, in the words of their pages, and how many are."""
    found = [record.proof.partition(" (")[0] for record in records().values()]
    return table(
        ["tested", "checkpoints", "means"],
        [[words, f"{found.count(words)} of {len(found)}", meaning] for words, meaning in MEANINGS.items()],
    )


def arguments(_: object = None) -> str:
    """A row per argument and label that a model or a task reads."""
    rows = [(row, INPUTS) for row in INPUTS.values()] + [(row, LABELS) for row in LABELS.values()]
    return table(
        ["argument", "shape", "dtype", "padding is given by", "meaning"],
        [
            [
                f"`{row.name}`",
                row.shape,
                row.dtype,
                ", ".join(f"`{name}`" for name in told_by(row.name, where)),
                row.meaning,
            ]
            for row, where in rows
        ],
    )


def told_by(name: str, where: InputTable) -> list[str]:
    """The mask and the count that say what is real of an argument."""
    axis = next((axis for axis in where[name].axes if INPUTS.mask(axis)), "")
    names = (INPUTS.mask(axis), INPUTS.count(axis))
    return [] if where[name].masks else [told for told in names if told]


def matrix(variants: list[registry.Variant]) -> str:
    """Which technique goes onto which family."""
    from zoo.techniques.matrix import cells
    from zoo.techniques.matrix import table as written

    return written(cells())


def techniques_table(_: object = None) -> str:
    """A row per page: the techniques that it explains."""
    by_page: dict[str, list[str]] = {}
    for name, declared in TECHNIQUES.items():
        by_page.setdefault(declared.page, []).append(f"`zoo.{name}`")
    titles = {name: (TECHNIQUE_PAGES / f"{name}.md").read_text("utf-8").splitlines()[0][2:] for name in by_page}
    rows = [[f"[{titles[name]}](techniques/{name}.md)", ", ".join(names)] for name, names in by_page.items()]
    return table(["page", "techniques"], rows)


def interop(_: object = None) -> str:
    """A row per check of `tests.interop.run` with one version of its library, from what it wrote."""
    with INTEROP.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    by_check: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in sorted(
        found, key=lambda row: (row["library"], row["way"] != "reads ours", row["weights"], row["claim"])
    ):
        by_check.setdefault((row["library"], row["check"], row["version"]), []).append(row)
    rows = []
    for same in by_check.values():
        first = same[0]
        beside = [f"transformers {row['transformers']}" for row in same if row["library"] != "transformers"]
        rows.append(
            [
                f"{first['library']} {first['version']}",
                ", ".join(beside),
                f"zoo → {first['library']}" if first["way"] == "reads ours" else f"{first['library']} → zoo",
                f"{first['claim']} ({first['weights']} weights)",
                "; ".join(dict.fromkeys(digits(row["difference"]) for row in same)),
            ]
        )
    return table(["library", "installed with", "direction", "what was compared", "equal"], rows)


def digits(difference: str) -> str:
    """A difference of the data file in words."""
    if difference == "failed":
        return "fails"
    return "bit for bit" if float(difference) == 0 else f"to {difference}"


def typed_names() -> str:
    """`zoo/__init__.py`, with every lazy name imported once more for type checkers."""
    imports = sorted((module, name) for name, module in zoo._WHERE.items())
    lines = [f"    from {module} import {name} as {name}\n" for module, name in imports]
    return NAMES.sub(lambda match: match[1] + "".join(lines), PACKAGE.read_text(encoding="utf-8"))


def render(page: Path) -> str:
    """The page with its tables filled anew."""
    families = registry.families()
    name = page.stem
    family = next((f for f in families if f.replace("-", "_") == name.replace("-", "_")), None)
    common = {"arguments": arguments, "families": families_table, "techniques": techniques_table, "matrix": matrix}
    common |= {"interop": interop, "tested": proofs}
    makers = {**TABLES, **common}

    def fill(match: re.Match[str]) -> str:
        if family is None and match[2] in TABLES:
            raise SystemExit(
                f"{page.name} asks for a table, but no family is called {name}; families: {', '.join(families)}"
            )
        if match[2] not in makers:
            raise SystemExit(f"{page.name} asks for the table {match[2]!r}; there are {', '.join(makers)}")
        variants = sorted(families[family], key=lambda v: natural(v.name)) if family else []
        return match[1] + "\n" + makers[match[2]](variants) + "\n" + match[3]

    return BLOCK.sub(fill, page.read_text(encoding="utf-8"))


def main() -> int:
    wanted = {page: render(page) for page in pages()} | {IMAGES / name: drawn for name, drawn in drawings().items()}
    wanted[PACKAGE] = typed_names()
    stale = []
    for path, new in wanted.items():
        if not path.exists() or new != path.read_text(encoding="utf-8"):
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print(f"{'out of date' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
