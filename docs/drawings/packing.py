"""What packing does to a batch of texts of different lengths, from the plan that a pass makes."""

from __future__ import annotations

import torch

from docs.drawings.canvas import BLUE, FILL, GREEN, MARGIN, ORANGE, SOFT, VIOLET, WIDTH, Canvas
from zoo.layers.masks import Mask
from zoo.layers.padding import Padding

LENGTHS = (5, 9, 3, 5)
COLORS = (BLUE, ORANGE, GREEN, VIOLET)


def drawings() -> dict[str, str]:
    longest, tokens = max(LENGTHS), sum(LENGTHS)
    mask = torch.arange(longest)[None] < torch.tensor(LENGTHS)[:, None]
    packed = Padding.of(mask.long(), (len(LENGTHS), longest)).packed
    assert packed is not None
    padded_scores, packed_scores = len(LENGTHS) * longest**2, sum(n**2 for n in LENGTHS)
    canvas = Canvas(
        "A batch of texts, padded and packed",
        f"Texts of {', '.join(map(str, LENGTHS))} tokens take {len(LENGTHS) * longest} rows padded and {tokens} "
        f"packed; attention computes {padded_scores} scores padded and {packed_scores} packed.",
    )
    y = canvas.heading("A batch, padded and packed")
    cell = 24
    canvas.text(MARGIN, y + 4, f"padded: {len(LENGTHS)} texts × {longest} places", bold=True)
    y += 16
    for row, (length, color) in enumerate(zip(LENGTHS, COLORS, strict=True)):
        for column in range(longest):
            real = column < length
            canvas.rect(
                MARGIN + column * cell,
                y + row * cell,
                cell - 3,
                cell - 3,
                fill=FILL[color] if real else "#fff",
                stroke=color if real else "#c3cad4",
                dash=not real,
            )
            if real:
                at = (MARGIN + column * cell + (cell - 3) / 2, y + row * cell + (cell - 3) / 2)
                canvas.text(*at, f"{'abcd'[row]}{column}", size=10.5, anchor="middle")
        canvas.text(MARGIN + longest * cell + 6, y + row * cell + 10, f"text {'abcd'[row]}", size=11, color=SOFT)
    y += len(LENGTHS) * cell + 14

    canvas.text(MARGIN, y, f"packed: {tokens} rows", bold=True)
    y = canvas.paragraph(
        MARGIN,
        y + 8,
        "The real tokens only, texts of one length beside each other. Linear layers, norms and feed-forwards run on "
        "these rows.",
        WIDTH - 2 * MARGIN,
        size=11,
    )
    width = (WIDTH - 2 * MARGIN) / tokens
    x = float(MARGIN)
    for row, length in zip(packed.order, packed.lengths, strict=True):
        for column in range(length):
            canvas.rect(x, y + 6, width - 1, 20, fill=FILL[COLORS[row]], stroke=COLORS[row], radius=2)
            canvas.text(x + width / 2 - 0.5, y + 16, f"{'abcd'[row]}{column}", size=8.5, anchor="middle")
            x += width
    y += 46

    found = Mask(query_rows=packed, key_rows=packed).rectangles
    rectangles = [(each.rows, (each.queries.stop - each.queries.start) // each.rows) for each in found]
    canvas.text(MARGIN, y, f"attention: {len(rectangles)} dense rectangles", bold=True)
    y = canvas.paragraph(
        MARGIN,
        y + 8,
        f"One call for each length: {packed_scores} scores in place of {padded_scores}. No mask is needed, and no "
        "score of padding is computed.",
        WIDTH - 2 * MARGIN,
        size=11,
    )
    x, unit, start = float(MARGIN), 10.5, 0
    for rows, length in rectangles:
        for n in range(rows):
            color = COLORS[packed.order[start + n]]
            side = length * unit
            left = x + n * (side + 5)
            canvas.rect(left, y + 8, side, side, fill=FILL[color], stroke=color, radius=2)
            canvas.text(left + side / 2, y + 8 + side / 2, f"{length} × {length}", size=10, anchor="middle")
        canvas.text(x, y + length * unit + 18, f"{rows} × {length} tokens", size=10.5, color=SOFT)
        x += max(rows * (length * unit + 5), 70) + 9
        start += rows
    return {"packing.svg": canvas.svg()}
