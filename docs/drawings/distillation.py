"""The terms of distillation between two stacks, from what each term pairs when it is prepared."""

from __future__ import annotations

import itertools

import zoo
from docs.drawings.canvas import BLUE, GRAY, GREEN, MARGIN, ORANGE, RED, SOFT, VIOLET, WIDTH, Canvas

LEFT, RIGHT, BOX, HEIGHT, STEP = MARGIN, WIDTH - MARGIN - 104, 104, 24, 36


def drawings() -> dict[str, str]:
    """A TinyBERT-like student of four layers under a teacher of twelve."""
    sizes = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "vocab_size": 100, "num_labels": 3}
    task = "sequence-classification"
    teacher = zoo.create("bert-base", task=task, num_layers=12, **sizes)
    student = zoo.create("bert-base", task=task, num_layers=4, **sizes | {"hidden_size": 16})
    terms = [
        (zoo.SoftTargets(temperature=4.0, hard_weight=0.5), RED),
        (zoo.HiddenStates(layers="uniform"), BLUE),
        (zoo.AttentionScores(layers="uniform"), ORANGE),
        (zoo.Embeddings(), GREEN),
    ]
    distillation = zoo.Distillation(teacher, student, [term for term, _ in terms])
    states, scores = distillation.pairs[1], distillation.pairs[2]
    canvas = Canvas(
        "Terms of distillation between two stacks",
        "A student of 4 layers learns from a teacher of 12: soft targets compare the predictions; hidden states and "
        f"attention scores compare the layers {', '.join(f'{a} with {b}' for a, b in states)}; embeddings compare what "
        "enters the first layer.",
    )
    y = canvas.heading("Terms of distillation", "A student of 4 layers, a teacher of 12. Each line is a loss.")
    canvas.text(LEFT + BOX / 2, y + 4, "student", bold=True, anchor="middle")
    canvas.text(RIGHT + BOX / 2, y + 4, "teacher", bold=True, anchor="middle")
    y += 16
    top = y
    bottom = top + HEIGHT + 12 * 22 + 20
    at: dict[str, dict[int, float]] = {"student": {}, "teacher": {}}
    for layer in range(12, 0, -1):
        row = top + HEIGHT + 8 + (12 - layer) * 22
        canvas.box(RIGHT, row, BOX, 18, [f"layer {layer}"], BLUE, size=11)
        at["teacher"][layer] = row + 9
    for one, other in reversed(states):
        row = at["teacher"][other]
        canvas.box(LEFT, row - 9, BOX, 18, [f"layer {one}"], BLUE, size=11)
        at["student"][one] = row
    for name, x in (("student", LEFT), ("teacher", RIGHT)):
        canvas.box(x, top - 2, BOX, HEIGHT - 2, ["prediction"], GRAY)
        canvas.box(x, bottom, BOX, HEIGHT, ["embeddings"], VIOLET)
        boxes = [
            (top - 2, top + HEIGHT - 4),
            *((row - 9, row + 9) for row in sorted(at[name].values())),
            (bottom, bottom),
        ]
        for (_, above), (below, _) in itertools.pairwise(boxes):
            canvas.line([(x + BOX / 2, below), (x + BOX / 2, above)], arrow=below - above > 6)
    middle = (LEFT + BOX, RIGHT)

    def compare(row: float, text: str, color: str) -> None:
        canvas.line([(middle[0], row), (middle[1], row)], color=color, width=1.6)
        width = 10 + 5.9 * len(text)
        canvas.rect(WIDTH / 2 - width / 2, row - 8, width, 16, fill=color, radius=8)
        canvas.text(WIDTH / 2, row, text, size=10.5, color="#fff", anchor="middle")

    compare(top + 9, "soft targets", RED)
    for (one, other), (_, also) in zip(states, scores, strict=True):
        assert other == also
        row = (at["student"][one] + at["teacher"][other]) / 2
        compare(row - 9, "hidden states", BLUE)
        compare(row + 9, "attention scores", ORANGE)
    compare(bottom + HEIGHT / 2, "embeddings", GREEN)
    y = canvas.paragraph(
        MARGIN,
        bottom + HEIGHT + 12,
        "Where the two are of different widths, a trained linear map stands between. The student's own labels count "
        'too (hard_weight). Layers are paired by layers="uniform".',
        WIDTH - 2 * MARGIN,
        size=11,
        color=SOFT,
    )
    return {"distillation.svg": canvas.svg()}
