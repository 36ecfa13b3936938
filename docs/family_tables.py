"""The tables of a family's page, each from the code that runs: sizes, parameters by part, inputs, heads, tasks,
checkpoints. `docs.generate` puts them in their places.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from zoo.models.base.config import Config
from zoo.registry import variants as registry
from zoo.registry.inputs import LABELS, Input
from zoo.registry.listing import offers_of
from zoo.registry.records import DOWNLOADED, KEY_MAP_ONLY, records
from zoo.registry.tasks import fitting, spec_for
from zoo.registry.terms import TERMS, PretrainingTerm
from zoo.tasks.base import task_class
from zoo.tasks.objective import Objective, terms_of

Variants = list[registry.Variant]
PARTS = (  # the first pattern that a module's whole name meets says what its parameters belong to
    (r"(?:.*\.)?\w*embeddings(?:\..*)?", "embeddings"),
    (r"(?:.*\.)?\w*pooler\..*", "pooler"),
    (r"(?:(?:text|image)_projection(?:\..*)?)?", "projections and scale"),
    (r"knowledge\.\w+\.linker\.entities.*", "entity table"),
    (r"knowledge\.\w+\.(?:linker\.(?!span_encoder)|output|span_norm).*", "entity linking"),
    (r".*bottleneck.*", "bottlenecks"),
    (r"(?:.*[._])?norms?(?:\.\d+)?", "norms"),
    (r".*squeeze_excite\..*", "squeeze and excite"),
    (r".*\.(?:conv|choose|box)", "convolutions"),
    (r".*attention\.\w+(?:\.\d+)?", "attention"),
    (r".*feed_forwards?\..*", "feed-forward"),
)
ORDER = (
    *("embeddings", "attention", "feed-forward", "convolutions", "squeeze and excite", "norms"),
    *("bottlenecks", "entity table", "entity linking", "pooler", "projections and scale"),
)
STREAMS = ("image", "entity", "ngram", "decoder", "wiki", "wordnet")
"""The streams beside the text's, as the components of parameters' names begin."""
PART_SIZES = ("vocab_size", "hidden_size", "num_layers")
READS = {
    "text": "the text's states",
    "pooled": "the pooled vector",
    "words": "the words' states",
    "regions": "the regions' states",
    "fused": "the pooled vector of words and regions",
    "target": "the target's states",
    "mentions": "the linked mentions",
    "picture": "the picture's vector",
}
"""What a model offers to heads, in words."""
MEANINGS = {
    DOWNLOADED: (
        "This project downloaded the file and recorded its SHA-256; every check of `zoo.verify` passes on it, and "
        "converting it and back returns every bit."
    ),
    KEY_MAP_ONLY: (
        "The map from the file's tensor names to the zoo's is tested in both directions, but this project never "
        "downloaded the file itself. The first download records its hash."
    ),
}
"""What the words of `Record.proof` mean."""


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def built(variant: registry.Variant) -> Any:
    """The variant's model without memory for its weights."""
    with torch.device("meta"):
        return variant.model_class()(registry.config(variant.name))


def sizes(variants: Variants) -> str:
    """A row per variant: the fields in which the family's variants differ, and the parameters."""
    configs = {v.name: registry.config(v.name) for v in variants}
    first = next(iter(configs.values()))
    fields = {v.name: fields_of(configs[v.name]) for v in variants}
    names = [n for n in dict.fromkeys(name for own in fields.values() for name in own) if n not in first.free_fields()]
    shown = [n for n in names if len({own.get(n) for own in fields.values()}) > 1]
    if len(variants) == 1:
        shown = [
            n
            for n in ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size")
            if n in first.field_names()
        ]
    rows = []
    for v in variants:
        count, stated = built(v).num_parameters(), v.parameters.get("count")
        checked = "no published count" if stated is None else v.parameters["source"]
        if stated not in (None, count):
            checked += f", which has {stated:,}"
        rows.append([f"`{v.name}`", *(fields[v.name].get(n, "–") for n in shown), f"{count:,}", checked])
    return table(["variant", *shown, "parameters", "count checked against"], rows)


def fields_of(config: Any) -> dict[str, str]:
    """A config's fields as they are shown; of the config of a part the sizes that most have."""
    found: dict[str, str] = {}
    for name in config.field_names():
        value = getattr(config, name)
        if isinstance(value, Config):
            found |= {f"{name}.{n}": str(getattr(value, n)) for n in PART_SIZES if n in value.field_names()}
        else:
            found[name] = str(value)
    return found


def papers(variants: Variants) -> str:
    """A row per paper whose models the family holds."""
    found: dict[tuple[str, str], list[str]] = {}
    for v in registry.families()[variants[0].family]:
        found.setdefault((v.title, v.paper), []).append(f"`{v.name}`")
    rows = [[f"[{title}]({address_of(paper)})", paper, ", ".join(names)] for (title, paper), names in found.items()]
    return table(["paper", "by", "variants"], rows)


def address_of(paper: str) -> str:
    """Where a paper is, by its arXiv number or DOI."""
    match = re.search(r"(arXiv|doi):([\w./-]+)", paper)
    if match is None:
        raise SystemExit(f"docs/family_tables.py: {paper!r} names neither arXiv:... nor doi:...")
    return ("https://arxiv.org/abs/" if match[1] == "arXiv" else "https://doi.org/") + match[2]


def parts(variants: Variants) -> str:
    """A row per architecture, or per stream of one: how many parameters each part has, in sum the model's."""
    counted: dict[tuple[Any, ...], list[str]] = {}
    for v in variants:
        counts = count_parts(built(v))
        counted.setdefault(tuple(sorted(counts.items())), []).append(f"`{v.name}`")
    kinds = [kind for kind in ORDER if any(kind == found for counts in counted for (_, found), _ in counts)]
    streams = list(dict.fromkeys(stream for counts in counted for (stream, _), _ in counts))
    streams.sort(key=("text", "encoder", *STREAMS).index)
    several = len(streams) > 1
    rows = []
    for counts, names in counted.items():
        own = dict(counts)
        for stream in (s for s in streams if any(s == name for name, _ in own)):
            numbers = [own.get((stream, kind), 0) for kind in kinds]
            rows.append([", ".join(names), *([stream] if several else []), *map(_shown, numbers), _shown(sum(numbers))])
        if several:
            numbers = [sum(n for (_, k), n in own.items() if k == kind) for kind in kinds]
            rows.append([", ".join(names), "**all**", *map(_shown, numbers), f"**{_shown(sum(numbers))}**"])
    return table(["variant", *(["stream"] if several else []), *kinds, "sum"], rows)


def _shown(count: int) -> str:
    return f"{count:,}" if count else "–"


def count_parts(model: nn.Module) -> dict[tuple[str, str], int]:
    """The parameters by stream and part."""
    found: dict[tuple[str, str], int] = {}
    names = [name for name, _ in model.named_parameters()]
    main = "encoder" if any(name.startswith("decoder.") for name in names) else "text"
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        components = module.split(".")
        stream = next((s for c in components for s in STREAMS if c == s or c.startswith(f"{s}_")), main)
        found[stream, part_of(module)] = found.get((stream, part_of(module)), 0) + parameter.numel()
    return found


def part_of(module: str) -> str:
    """What a module of a model belongs to, by its name."""
    for pattern, part in PARTS:
        if re.fullmatch(pattern, module):
            return part
    raise SystemExit(f"docs/family_tables.py: no row of PARTS says what {module} belongs to; add one")


def inputs(variants: Variants) -> str:
    """A row per argument that the family's model or one of its tasks reads."""
    cls = variants[0].model_class()
    by_label: dict[str, list[str]] = {}
    for task in fitting(offers_of(variants[0])):
        for name in labels_of(task, variants[0]):
            by_label.setdefault(name, []).append(f"`{task}`")
    every: Mapping[str, Input] = {**cls.input_table, **LABELS}
    rows = []
    for name, row in every.items():
        readers = ["the model"] if name in cls.arguments else by_label.get(name, [])
        if readers:
            rows.append([f"`{name}`", row.shape, row.dtype, ", ".join(readers), row.meaning])
    return table(["argument", "shape", "dtype", "read by", "meaning"], rows)


def labels_of(task: str, variant: registry.Variant) -> list[str]:
    """The arguments that a task reads beside its model's, in the order of the tables."""
    cls = variant.model_class()
    built_by = task_class(spec_for(task, offers_of(variant)))
    if issubclass(built_by, Objective):
        terms = terms_of(task, cls)
        read = {name for term in terms for name in term.arguments} | ({"labels"} if len(terms) == 1 else set())
    else:
        read = set(inspect.signature(built_by.forward).parameters)
    return [name for name in (*cls.input_table, *LABELS) if name in read and name not in cls.arguments]


def heads(variants: Variants) -> str:
    """A row per pre-training head: what it reads and gives, its loss's weight, its parameters."""
    v = registry.families()[variants[0].family][0]
    cls, config = v.model_class(), registry.config(v.name)
    own = {term.name: term for term in cls.pretraining}
    terms: dict[str, PretrainingTerm] = {**{t.head_name: t for t in reversed(TERMS) if t.head_name in cls.heads}, **own}
    rows = []
    for name in dict.fromkeys((*cls.heads, *own)):
        term = terms.get(name)
        count = "–"
        if name in cls.heads:
            with torch.device("meta"):
                count = f"{sum(p.numel() for p in cls.heads[name](config).parameters()):,}"
        reads = "–" if term is None else " and ".join(READS.get(each, f"`{each}`") for each in term.reads)
        gives = "–" if term is None else f"`{term.output}`" if term.output else f'`scores["{name}"]`'
        weight = _weight(own[name]) if name in own else "trained by a task of its own"
        rows.append([f"`{name}`", reads, gives, weight, count])
    if not rows:
        return "No pre-training head.\n"
    columns = ["head", "reads", "field of the result", "weight in `pretraining`", f"own parameters in `{v.name}`"]
    note = "A table that a head shares with the model, such as the token table, is not counted here."
    return f"{table(columns, rows)}\n{note}\n"


def _weight(term: PretrainingTerm) -> str:
    return f"option `{term.weight}`" if isinstance(term.weight, str) else f"{term.weight:g}"


def tasks(variants: Variants) -> str:
    """A row per task that fits the family."""
    rows = []
    for task in fitting(offers_of(variants[0])):
        labels = ", ".join(f"`{name}`" for name in labels_of(task, variants[0]) if name in LABELS)
        rows.append([f"`{task}`", spec_for(task, offers_of(variants[0])).summary, labels or "none"])
    return table(["task", "predicts", "labels"], rows)


def checkpoints(variants: Variants) -> str:
    """A row per tag: where it is, its layout and licence, and how far it is proven."""
    known, rows = records(), []
    for v in variants:
        for tag in registry.tags(v):
            record = known.get(f"{v.name}.{tag}")
            if record is None:
                continue
            sources = "<br>".join(f"`{s}`" for s in record.sources)
            rows.append(
                [f"`{record.name}`", sources, f"`{record.layout}`", record.licence or "", record.proof, record.detector]
            )
    if not rows:
        return "No public checkpoint is registered.\n"
    columns = ["tag", "sources, in order", "layout", "licence", "tested", "features"]
    shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    said = {row[4].partition(" (")[0] for row in rows}
    legend = "".join(f"- **{words}**: {meaning}\n" for words, meaning in MEANINGS.items() if words in said)
    return table(columns[:shown], [[cell or "" for cell in row[:shown]] for row in rows]) + "\n" + legend


TABLES: dict[str, Callable[[Variants], str]] = {
    "sizes": sizes,
    "papers": papers,
    "parts": parts,
    "inputs": inputs,
    "heads": heads,
    "tasks": tasks,
    "checkpoints": checkpoints,
}
"""By the name that a page asks for."""
