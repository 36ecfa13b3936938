"""The path of a checkpoint through a conversion, with the checks in the order in which they run."""

from __future__ import annotations

from docs.drawings.canvas import BLUE, GRAY, GREEN, MARGIN, ORANGE, RED, SOFT, VIOLET, WIDTH, Canvas
from zoo.checkpoints.checks import NAMES

SAID = {
    "hash": ("the bytes are those that were recorded", "when they were first fetched"),
    "keys": ("every name meets one rule of the map,", "and every tensor of ours is made once"),
    "values": ("shapes and dtypes fit, values are finite",),
    "ties": ("stored copies equal what they copy",),
    "contract": ("the config is understood, field by field",),
    "binding": ("the folder's files belong together",),
    "probe": ("the model gives the recorded outputs",),
}
"""What each check of `zoo.checkpoints.checks` asks."""


def drawings() -> dict[str, str]:
    checks = ", ".join(f"{name}: {' '.join(SAID[name])}" for name in NAMES)
    canvas = Canvas(
        "The path of a conversion",
        "A foreign checkpoint is read without running code, its layout is recognized, a plan is made from the map, and "
        f"tensors are streamed into safetensors. Checks in order: {checks}.",
    )
    y = canvas.heading("The path of a conversion", "The first check that fails ends it; nothing is left behind.")
    width = WIDTH - 2 * MARGIN
    steps = [
        ("a foreign checkpoint", "torch, TensorFlow, fairseq, paddle, ...", GRAY),
        ("read", "names, shapes, config; no code of the file runs", BLUE),
        ("recognize the layout", "from the config and the names", BLUE),
        ("plan", "the rules of the map, one for each tensor", VIOLET),
    ]
    for text, note, color in steps:
        canvas.box(MARGIN, y, width, 38, [text, note], color)
        canvas.line([(WIDTH / 2, y + 38), (WIDTH / 2, y + 50)], arrow=True)
        y += 50
    start = y
    y += 12
    canvas.text(MARGIN + 10, y, "checks, in this order", bold=True)
    y += 14
    for n, name in enumerate(NAMES):
        lines = SAID[name]
        height = 18 + 14 * (len(lines) - 1)
        color = RED if name == "probe" else ORANGE
        canvas.rect(MARGIN + 10, y, 18, 18, fill=color, radius=9)
        canvas.text(MARGIN + 19, y + 9, str(n + 1), size=11, color="#fff", anchor="middle")
        canvas.text(MARGIN + 36, y + 9, name, bold=True)
        for row, line in enumerate(lines):
            canvas.text(MARGIN + 102, y + 9 + 14 * row, line, size=11, color=SOFT)
        y += height + 7
    canvas.rect(MARGIN, start, width, y - start, stroke="#d5dbe3", radius=8)
    canvas.line([(WIDTH / 2, y), (WIDTH / 2, y + 12)], arrow=True)
    y += 12
    canvas.box(MARGIN, y, width, 38, ["write", "tensor by tensor, then rename: all or nothing"], BLUE)
    canvas.line([(WIDTH / 2, y + 38), (WIDTH / 2, y + 50)], arrow=True)
    canvas.box(MARGIN, y + 50, width, 38, ["ours", "config.json, model.safetensors, tokenizer.json"], GREEN)
    return {"conversion.svg": canvas.svg()}
