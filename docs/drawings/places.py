"""Where small trainable parts sit in a block, read from a model to which the techniques were
applied: a part is marked if it is of another class than before, or has new tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import zoo
from docs.drawings.canvas import BLUE, GRAY, GREEN, MARGIN, ORANGE, PALE, RED, SOFT, VIOLET, WIDTH, Canvas, amount
from zoo.models.base.model import Model
from zoo.techniques.base import Technique

BLOCK = "encoder.blocks.0."
PARTS = {
    "attention-query": "query",
    "attention-key": "key",
    "attention-value": "value",
    "attention-core": "attention",
    "attention-output": "output",
    "attention-norm": "add, LayerNorm",
    "feed-forward-up": "up, GELU",
    "feed-forward-down": "down",
    "feed-forward-norm": "add, LayerNorm",
}
"""The roles of BERT's block, top to bottom, and what a reader calls them."""

OVERVIEW: Mapping[str, tuple[Technique, str]] = {
    "LoRA": (zoo.LoRA(rank=8), BLUE),
    "IA3": (zoo.IA3(), ORANGE),
    "prefix": (zoo.PrefixTuning(length=20, bottleneck=None), VIOLET),
    "adapter": (zoo.BottleneckAdapter(kind="houlsby"), GREEN),
}
SINGLE: Mapping[str, Mapping[str, tuple[Technique, str]]] = {
    "lora": {
        "LoRA": (zoo.LoRA(rank=8), BLUE),
    },
    "ia3": {
        "IA3": (zoo.IA3(), ORANGE),
        "paper": (zoo.IA3(roles=("attention-key", "attention-value"), input_roles=("feed-forward-down",)), RED),
    },
    "prefix-tuning": {"prefix": (zoo.PrefixTuning(length=20, bottleneck=None), VIOLET)},
    "adapters": {
        "houlsby": (zoo.BottleneckAdapter(kind="houlsby"), GREEN),
        "pfeiffer": (zoo.BottleneckAdapter(kind="pfeiffer"), BLUE),
        "parallel": (zoo.BottleneckAdapter(kind="parallel"), ORANGE),
    },
}
NOTES = {
    "places": "The parts that each technique changes in every block of bert-base; all else stays as it is.",
    "lora": "Low-rank updates stand beside the query and the value; other linear layers by roles.",
    "ia3": "Scales on what leaves keys, values and the first feed-forward layer (IA3), or on what enters the second "
    "(as in the paper).",
    "prefix-tuning": "Learned keys and values stand in front of the real ones inside every attention.",
    "adapters": "An adapter belongs to the add-and-norm behind its sublayer.",
}


def model() -> Model:
    return zoo.create("bert-base", device="meta", num_layers=2)  # type: ignore[return-value]


def touched(technique: Technique) -> tuple[set[str], int]:
    """The roles in the first block that a technique changes, and how many parameters come to the
    whole of bert-base.
    """
    changed = model()
    before = {site.path: type(site.module) for site in changed.sites()}
    zoo.apply(changed, technique)
    added = changed.changes[-1].added  # type: ignore[index, union-attr]
    found = set()
    for site in changed.sites():
        inside = any(name.startswith(f"{site.path}.") for name in added)
        if (
            site.path.startswith(BLOCK)
            and site.role in PARTS
            and (type(site.module) is not before[site.path] or inside)
        ):
            found.add(site.role)
    whole = zoo.create("bert-base", device="meta", techniques=[technique])
    change = whole.changes[-1]
    return found, change.after - change.before


def draw(name: str, title: str, techniques: Mapping[str, tuple[Technique, str]]) -> str:
    """BERT's block, and at each part the marks of the techniques that change it."""
    places = {label: touched(technique) for label, (technique, _) in techniques.items()}
    said = "; ".join(
        f"{label} at {', '.join(role for role in PARTS if role in roles)}" for label, (roles, _) in places.items()
    )
    canvas = Canvas(title, f"A block of bert-base. {said}.")
    y = canvas.heading(title, NOTES[name])
    start, top = len(canvas.parts), y
    left, right, middle = MARGIN + 40, WIDTH - MARGIN - 14, WIDTH / 2 + 13
    marks = {role: [label for label in techniques if role in places[label][0]] for role in PARTS}
    third = (right - left - 16) / 3
    deepest = max(len(marks[role]) for role in ("attention-query", "attention-key", "attention-value"))
    y += 22
    height = 24 + 19 * deepest
    for n, role in enumerate(("attention-query", "attention-key", "attention-value")):
        x = left + n * (third + 8)
        canvas.rect(x, y, third, height, fill="#fff", stroke=BLUE)
        canvas.text(x + third / 2, y + 12, PARTS[role], anchor="middle")
        _marks(canvas, marks[role], techniques, x + third / 2, y + 24, down=True)
        canvas.line([(middle, y - 10), (x + third / 2, y)], arrow=True)
        canvas.line([(x + third / 2, y + height), (left + 52 + (n - 1) * 30, y + height + 14)], arrow=True)
    enters = y - 10
    y += height + 14
    colors = {"attention-core": BLUE, "attention-output": BLUE, "feed-forward-up": ORANGE, "feed-forward-down": ORANGE}
    ends = []
    for role in list(PARTS)[3:]:
        canvas.box(left, y, 104, 24, [PARTS[role]], colors.get(role, GRAY))
        _marks(canvas, marks[role], techniques, left + 110, y + 12, down=False)
        if role.endswith("norm"):
            canvas.line([(left, enters), (left - 14, enters), (left - 14, y + 12), (left, y + 12)], arrow=True)
            enters = y + 12
        ends.append(y)
        y += 32
    for one, two in itertools.pairwise(ends):
        canvas.line([(left + 52, one + 24), (left + 52, two)], arrow=True)
    canvas.line([(left, top + 12), (middle, top + 12)])
    y -= 2
    pale = Canvas("", "")
    pale.rect(MARGIN, top, WIDTH - 2 * MARGIN, y - top, fill=PALE, stroke="#d5dbe3", radius=8)
    canvas.parts.insert(start, pale.parts[0])
    y += 16
    for label, (technique, color) in techniques.items():
        canvas.rect(MARGIN, y - 8, 16, 16, fill=color, radius=4)
        more = places[label][1]
        canvas.text(MARGIN + 22, y, label, bold=True, note=f"adds {amount(more)} parameters")
        canvas.text(MARGIN + 22, y + 14, written(technique), size=10, color=SOFT)
        y += 34
    return canvas.svg()


def written(technique: Technique) -> str:
    """How a technique is written in code, its longest form shortened."""
    text = f"zoo.{technique}"
    return text if len(text) < 52 else f"{text[:50]}…"


def _marks(
    canvas: Canvas,
    labels: Sequence[str],
    techniques: Mapping[str, tuple[Technique, str]],
    x: float,
    y: float,
    *,
    down: bool,
) -> None:
    """Filled marks with names, below each other or in a row."""
    for label in labels:
        width = 10 + 5.9 * len(label)
        at = x - width / 2 if down else x
        canvas.rect(at, y if down else y - 8, width, 16, fill=techniques[label][1], radius=8)
        canvas.text(at + width / 2, (y if down else y - 8) + 8, label, size=10.5, color="#fff", anchor="middle")
        if down:
            y += 19
        else:
            x += width + 3


def beside() -> str:
    """K-Adapter: beside the model, at the layers that it reads."""
    technique = zoo.KAdapter(names=("factual",))
    changed = zoo.create("bert-base", device="meta", techniques=[technique])
    adapter = changed.knowledge["factual"]
    taps, depth = adapter.taps, changed.config.num_layers
    more = changed.changes[-1].after - changed.changes[-1].before
    canvas = Canvas(
        "K-Adapter beside BERT",
        f"An adapter of {amount(more)} parameters reads the hidden states {', '.join(map(str, taps))} of bert-base, "
        "whose own parameters stay as they are; its result is joined to the last state.",
    )
    y = canvas.heading(
        "K-Adapter beside BERT", f"Reads the states {', '.join(map(str, taps))}; {amount(more)} parameters of its own."
    )
    height, left, right = 19, MARGIN, MARGIN + 196
    y += 10
    at = {0: y + 12.0}
    canvas.box(left, y, 130, 24, ["embeddings"], VIOLET)
    y += 30
    for block in range(depth):
        canvas.box(left, y, 130, height, [f"block {block}"], BLUE, size=11)
        at[block + 1] = y + height / 2
        y += height + 4
    previous = None
    for n, tap in enumerate(taps):
        canvas.line([(left + 130, at[tap]), (right, at[tap])], arrow=True)
        canvas.box(right, at[tap] - 20, 140, 40, [f"adapter layer {n}", f"{technique.num_layers} blocks"], GREEN)
        if previous is not None:
            canvas.line([(right + 70, previous + 20), (right + 70, at[tap] - 20)], arrow=True)
        previous = at[tap]
    assert previous is not None
    y = max(y, previous + 20) + 16
    canvas.line([(left + 65, at[depth] + height / 2), (left + 65, y)], arrow=True)
    canvas.line([(right + 70, previous + 20), (right + 70, y)], arrow=True)
    canvas.box(left, y, WIDTH - 2 * MARGIN, 26, ["concatenate, linear: what the heads read"], GRAY)
    y = canvas.paragraph(
        MARGIN, y + 34, "The model is frozen; the adapter alone is trained.", WIDTH - 2 * MARGIN, size=11
    )
    return canvas.svg()


def drawings() -> dict[str, str]:
    titles = {"lora": "LoRA", "ia3": "IA3", "prefix-tuning": "Prefix tuning", "adapters": "Bottleneck adapters"}
    found = {"technique-places.svg": draw("places", "Small trainable parts in a block", OVERVIEW)}
    for name, techniques in SINGLE.items():
        found[f"{name}-places.svg"] = draw(name, f"{titles[name]} in a block", techniques)
    return found | {"k-adapter-places.svg": beside()}
