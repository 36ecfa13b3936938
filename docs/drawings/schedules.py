"""The schedules of models with several streams: a lane for each stream, time to the right, a box
for each block; a long schedule goes on in the next row.

Blocks of different streams that wait for nothing of each other stand under each other; where
streams look at each other, an arrow shows who reads whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from docs.drawings.canvas import BLUE, GREEN, LINE, MARGIN, ORANGE, SOFT, VIOLET, WIDTH, Canvas
from zoo.layers.schedule import Step
from zoo.registry import variants as registry
from zoo.registry.listing import natural

BOX, GAP, LANE, LEFT = 23, 5, 40, 58
COLUMNS = int((WIDTH - LEFT - MARGIN) // (BOX + GAP))
COLORS = {"text": BLUE, "image": ORANGE, "both": GREEN}


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


def svg(family: str, schedules: Mapping[str, Sequence[Step]]) -> str:
    """One drawing of several schedules under each other, by their titles."""
    canvas = Canvas(
        f"The schedules of {family}",
        "; ".join(f"{title}: {', '.join(map(str, steps))}" for title, steps in schedules.items()),
    )
    y = canvas.heading(f"Schedules of {family}", "Time runs to the right. An arrow shows which stream a block reads.")
    for title, steps in schedules.items():
        y = canvas.paragraph(MARGIN, y + 4, title, WIDTH - 2 * MARGIN, color="#1f2733") + 8
        lanes = list(dict.fromkeys(name for step in steps for name in step.writes))
        columns = placed(steps)
        for start in range(0, max(column for column, _ in columns) + 1, COLUMNS):
            row = [(column - start, step) for column, step in columns if start <= column < start + COLUMNS]
            width = max(column for column, _ in row) + 1
            at = {name: y + lane * LANE for lane, name in enumerate(lanes)}
            for name in lanes:
                middle = at[name] + BOX / 2
                if start == 0:
                    canvas.text(MARGIN, middle, name, color=SOFT)
                canvas.line([(LEFT - 6, middle), (LEFT + width * (BOX + GAP), middle)], color=LINE)
            for column, step in row:
                _boxes(canvas, step, LEFT + column * (BOX + GAP), at)
            y += len(lanes) * LANE
    return canvas.svg()


def _boxes(canvas: Canvas, step: Step, x: float, y: Mapping[str, float]) -> None:
    """A box on the lane of each stream that a step writes, and an arrow from each other stream that
    it reads.
    """
    for name in step.writes:
        canvas.box(x, y[name], BOX, BOX, [str(step.index)], COLORS.get(step.part, VIOLET))
    for name in step.writes:
        for other in step.reads:
            if other != name:
                down = y[name] > y[other]
                start, end = (y[other] + BOX, y[name]) if down else (y[other], y[name] + BOX)
                at = x + BOX * (0.7 if down else 0.3) if len(step.writes) > 1 else x + BOX / 2
                canvas.line([(at, start), (at, end)], arrow=True)


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
            by_title = {", ".join(names): steps for steps, names in schedules.items()}
            found[f"{family}-schedule.svg"] = svg(family, by_title)
    return found
