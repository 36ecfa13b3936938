"""The registry as a tree: pillars, their families, how many variants each has, and whose classes it
builds on.
"""

from __future__ import annotations

from docs.drawings.canvas import BLUE, GRAY, GREEN, LINE, MARGIN, ORANGE, SOFT, VIOLET, Canvas
from zoo.registry import variants as registry

COLORS = {
    "foundation": GRAY,
    "lightweight": GREEN,
    "knowledge-enhanced": VIOLET,
    "cross-modal": ORANGE,
    "cross-lingual": BLUE,
}


def builds_on(family: str) -> list[str]:
    """The families whose model or config class this one's extends, or simply uses."""
    known = registry.families()
    homes: dict[str, str] = {}
    for name, variants in known.items():
        homes.setdefault(variants[0].model_class().__module__, name)
    cls = known[family][0].model_class()
    modules = [base.__module__ for base in (*cls.__mro__, *cls.Config.__mro__)]
    found = dict.fromkeys(homes[module] for module in modules if module in homes)
    return [name for name in found if name != family]


def home(family: str) -> str:
    """The pillar of a family's default variant."""
    return registry.families()[family][0].pillar


def drawings() -> dict[str, str]:
    families = registry.families()
    total = sum(len(variants) for variants in families.values())
    canvas = Canvas("The family tree of the registry", "")
    y = canvas.heading(
        "The family tree",
        f"{total} variants of {len(families)} families. Behind a family: on whose classes it builds. "
        "Dashed: variants of a family that stands elsewhere.",
    )
    said = []
    for pillar in registry.PILLARS:
        counts = {name: sum(v.pillar == pillar for v in variants) for name, variants in families.items()}
        members = sorted((name for name, n in counts.items() if n), key=lambda n: (home(n) != pillar, n))
        color = COLORS.get(pillar, GRAY)
        canvas.box(MARGIN, y, 150, 22, [pillar], color)
        top = y + 22
        y += 30
        for name in members:
            on = builds_on(name) if home(name) == pillar else []
            canvas.line([(MARGIN + 12, top), (MARGIN + 12, y + 10), (MARGIN + 26, y + 10)], color=LINE)
            count = f"{counts[name]} variant{'s' if counts[name] > 1 else ''}"
            canvas.box(MARGIN + 26, y, 172, 20, [name], color, size=11, note=count, dash=home(name) != pillar)
            if on:
                canvas.text(MARGIN + 206, y + 10, f"on {', '.join(on)}", size=11, color=SOFT)
            said.append(f"{pillar}: {name}, {count}" + (f", on {', '.join(on)}" if on else ""))
            y += 25
        y += 8
    canvas.description = "; ".join(said)
    return {"family-tree.svg": canvas.svg()}
