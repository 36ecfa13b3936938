"""Boxes on a picture, and what models read of them: computed by `zoo.Regions`. The picture is a
scene of simple shapes drawn here, so nobody else's rights are touched.
"""

from __future__ import annotations

import torch

import zoo
from docs.drawings.canvas import BLUE, GREEN, MARGIN, ORANGE, RED, SOFT, VIOLET, WIDTH, Canvas, number

SIZE = (336, 210)
BOXES = {
    "sun": ((268, 14, 316, 62), ORANGE),
    "house": ((34, 62, 142, 170), RED),
    "tree": ((182, 56, 252, 172), GREEN),
    "dog": ((242, 146, 310, 194), VIOLET),
}
"""What stands in the scene: x1, y1, x2, y2 in pixels, and the color of its frame."""


def scene(x: float, y: float) -> str:
    """The picture: sky, meadow, sun, house, tree, dog."""
    return f"""<g transform="translate({number(x)} {number(y)})">
<rect width="336" height="210" rx="6" fill="#cfe8fb"/>
<path d="M0 150h336v54a6 6 0 0 1-6 6H6a6 6 0 0 1-6-6z" fill="#a9d18e"/>
<circle cx="292" cy="38" r="22" fill="#ffd34d"/>
<rect x="46" y="108" width="84" height="60" fill="#e8c39e"/><path d="M36 108L88 64L140 108z" fill="#b5523b"/>
<rect x="78" y="130" width="22" height="38" fill="#7a4b32"/><rect x="54" y="118" width="16" height="16" fill="#fdf6d8"/>
<rect x="108" y="118" width="16" height="16" fill="#fdf6d8"/>
<rect x="211" y="120" width="12" height="50" fill="#8a5a3b"/><circle cx="217" cy="92" r="34" fill="#5c9a4e"/>
<rect x="252" y="162" width="40" height="16" rx="8" fill="#8d6e63"/><circle cx="296" cy="158" r="10" fill="#8d6e63"/>
<path d="M256 176v16M264 176v16M280 176v16M288 176v16" stroke="#8d6e63" stroke-width="5"/>
<path d="M253 166l-8-12" stroke="#8d6e63" stroke-width="4"/><path d="M290 148l-2 -1l3 9z" fill="#5d4037"/>
</g>"""


def regions() -> zoo.Regions:
    """What a detector would give: a box and a feature for each thing."""
    found = torch.tensor([box for box, _ in BOXES.values()], dtype=torch.float32)
    return zoo.Regions(torch.ones(len(BOXES), 2048), found, image_size=SIZE, format="xyxy")


def drawings() -> dict[str, str]:
    given = regions()
    five = given.encoded(5).tolist()
    read = given.for_model(zoo.config("vilbert-base"))
    rows = {name: [f"{value:.2f}" for value in row] for name, row in zip(BOXES, five, strict=True)}
    canvas = Canvas(
        "Boxes on a picture and what a model reads of them",
        f"A drawn scene of {SIZE[0]} by {SIZE[1]} pixels with boxes around "
        + "; ".join(f"{name}: {', '.join(row)}" for name, row in rows.items())
        + ". The five are x1, y1, x2, y2 and the area, as fractions of the picture.",
    )
    y = canvas.heading("Boxes on a picture")
    canvas.parts.append(scene(MARGIN, y))
    for name, ((x1, y1, x2, y2), color) in BOXES.items():
        canvas.rect(MARGIN + x1, y + y1, x2 - x1, y2 - y1, stroke=color, radius=0)
        width = 10 + 6.2 * len(name)
        canvas.rect(MARGIN + x1, y + y1 - 14, width, 14, fill=color, radius=0)
        canvas.text(MARGIN + x1 + width / 2, y + y1 - 7, name, size=10.5, color="#fff", anchor="middle")
    y += SIZE[1] + 20
    canvas.text(MARGIN, y, "What ViLBERT reads of each box", bold=True)
    y += 20
    columns = ("x1", "y1", "x2", "y2", "area")
    canvas.text(MARGIN, y, "as fractions", size=11, color=SOFT)
    for n, name in enumerate(columns):
        canvas.text(MARGIN + 130 + n * 46, y, name, size=11, color=SOFT, anchor="end")
    whole = [f"{value:.2f}" for value in read["visual_boxes"][0, 0].tolist()]
    for name, row in {"whole picture": whole, **rows}.items():
        y += 19
        color = BOXES[name][1] if name in BOXES else BLUE
        canvas.rect(MARGIN, y - 6, 12, 12, fill=color, radius=3)
        canvas.text(MARGIN + 18, y, name, size=11)
        for n, value in enumerate(row):
            canvas.text(MARGIN + 130 + n * 46, y, value, size=11, anchor="end")
    shape = " × ".join(map(str, tuple(read["visual_features"].shape)[1:]))
    canvas.paragraph(
        MARGIN,
        y + 14,
        f"Beside its box each region has a feature vector of the detector: {shape} with the whole picture, which "
        "ViLBERT expects first.",
        WIDTH - 2 * MARGIN,
        size=11,
    )
    return {"regions.svg": canvas.svg()}
