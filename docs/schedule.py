"""The schedules of models with several streams as a drawing: a lane for each stream, time to the
right, a box for each block.

Blocks of different streams that wait for nothing of each other stand under each other; where
streams look at each other, an arrow shows who reads whom. Drawn from the schedule that runs,
`python -m docs.generate` writes it anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zoo.layers.schedule import Step
from zoo.registry import variants as registry
from zoo.registry.listing import natural

BOX, GAP, LANE, TITLE, LEFT = 25, 5, 40, 30, 52  # pixels
COLORS = {"text": "#cfe3f5", "image": "#fbe3c0", "both": "#cdeccb"}


def placed(steps: Sequence[Step]) -> list[tuple[int, Step]]:
    """Each step with its column: behind everything that it reads or writes."""
    free: dict[str, int] = {}
    found = []
    for step in steps:
        streams = dict.fromkeys((*step.reads, *step.writes))
        column = max(free.get(name, 0) for name in streams)
        found.append((column, step))
        free |= dict.fromkeys(step.writes, column + 1)
    return found


def svg(schedules: Mapping[str, Sequence[Step]]) -> str:
    """One drawing of several schedules under each other, by their titles."""
    columns = max(column for steps in schedules.values() for column, _ in placed(steps)) + 1
    width = LEFT + columns * (BOX + GAP) + 10
    parts: list[str] = []
    top = 0
    for title, steps in schedules.items():
        lanes = list(dict.fromkeys(name for step in steps for name in step.writes))
        parts.append(f'<text x="8" y="{top + 19}" font-weight="bold">{title}</text>')
        y = {name: top + TITLE + lane * LANE for lane, name in enumerate(lanes)}
        for name in lanes:
            middle = y[name] + BOX / 2
            parts.append(f'<text x="8" y="{middle + 4}">{name}</text>')
            parts.append(f'<line x1="{LEFT - 6}" y1="{middle}" x2="{width - 8}" y2="{middle}" stroke="#999"/>')
        for column, step in placed(steps):
            parts += _boxes(step, LEFT + column * (BOX + GAP), y)
        top += TITLE + len(lanes) * LANE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 6}" viewBox="0 0 {width} {top + 6}" '
        'font-family="sans-serif" font-size="12">\n<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" '
        'markerWidth="6" '
        'markerHeight="6" orient="auto-start-reverse"><path d="M0 0L6 3L0 6z" fill="#333"/></marker></defs>\n'
        '<rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _boxes(step: Step, x: int, y: Mapping[str, int]) -> list[str]:
    """A box on the lane of each stream that a step writes, and an arrow from each other stream that
    it reads.
    """
    parts = []
    for name in step.writes:
        color = COLORS.get(step.part, "#eee")
        parts.append(f'<rect x="{x}" y="{y[name]}" width="{BOX}" height="{BOX}" rx="3" fill="{color}" stroke="#555"/>')
        parts.append(
            f'<text x="{x + BOX / 2}" y="{y[name] + 17}" text-anchor="middle" class="{name}">{step.index}</text>'
        )
        for other in step.reads:
            if other != name:
                down = y[name] > y[other]
                start, end = (y[other] + BOX, y[name]) if down else (y[other], y[name] + BOX)
                at = x + BOX * (0.68 if down else 0.32) if len(step.writes) > 1 else x + BOX / 2
                parts.append(
                    f'<line x1="{at}" y1="{start}" x2="{at}" y2="{end}" stroke="#333" marker-end="url(#tip)"/>'
                )
    return parts


def drawings() -> dict[str, str]:
    """For each family with a schedule the file's name and its drawing, variants of the same
    schedule once.
    """
    found = {}
    for family, variants in registry.families().items():
        schedules: dict[tuple[Step, ...], list[str]] = {}
        for variant in sorted(variants, key=lambda v: natural(v.name)):
            steps = getattr(registry.config(variant.name), "schedule", None)
            if steps is not None:
                schedules.setdefault(tuple(steps), []).append(variant.name)
        if schedules:
            found[f"{family}-schedule.svg"] = svg({", ".join(names): steps for steps, names in schedules.items()})
    return found
