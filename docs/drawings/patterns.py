"""Who may look at whom: each sparse pattern as a grid, drawn from the rule that the kernels use."""

from __future__ import annotations

import torch

from docs.drawings.canvas import BLUE, MARGIN, ORANGE, SOFT, WIDTH, Canvas, number
from zoo.layers.masks import causal, prefix
from zoo.techniques.sparse.patterns import everything, fixed, local, strided, windowed

TOKENS, CELL, ACROSS = 16, 6.5, 3

PATTERNS = {
    "all": everything().pattern,
    "causal": causal(),
    "prefix(5)": prefix(5),
    "local(4)": local(4).pattern,
    "strided(4)": strided(4).pattern,
    "local(4) | strided(4)": (local(4) | strided(4)).pattern,
    "fixed(4, 1)": fixed(4, 1).pattern,
    "window(2)": windowed(2).pattern,
    "window(2, 2 global)": windowed(2, 2).pattern,
    "local(4), causal": local(4, causal=True).pattern,
    "strided, causal": (local(4, causal=True) | strided(4, causal=True)).pattern,
    "fixed(4, 1), causal": fixed(4, 1, causal=True).pattern,
}
"""What a grid is called, and its rule."""


def grid(rule: torch.Tensor, x: float, y: float, cell: float, color: str) -> str:
    """The cells that are True, as one path of a bar for each run in a row."""
    steps = []
    for row, line in enumerate(rule.tolist()):
        start = None
        for column, seen in enumerate([*line, False]):
            if seen and start is None:
                start = column
            elif not seen and start is not None:
                at = f"M{number(x + start * cell)} {number(y + row * cell)}"
                steps.append(
                    f"{at}h{number((column - start) * cell)}v{number(cell)}h-{number((column - start) * cell)}z"
                )
                start = None
    return f'<path d="{"".join(steps)}" fill="{color}"/>'


def seen(name: str) -> torch.Tensor:
    """(query, key) bool: the rule of a pattern at the size of a grid."""
    at = torch.arange(TOKENS)
    return PATTERNS[name].rule(at[:, None], at[None]).expand(TOKENS, TOKENS)


def drawings() -> dict[str, str]:
    about = "; ".join(f"{name}: {int(seen(name).sum())} of {TOKENS * TOKENS} pairs" for name in PATTERNS)
    canvas = Canvas("The patterns of sparse attention", f"Grids of {TOKENS} queries by {TOKENS} keys. {about}.")
    top = canvas.heading(
        "Who may look at whom", f"A row is a query, a column a key, {TOKENS} tokens each. Colored = it may look."
    )
    side = TOKENS * CELL
    gap = (WIDTH - 2 * MARGIN - ACROSS * side) / (ACROSS - 1)
    for n, name in enumerate(PATTERNS):
        x, y = MARGIN + n % ACROSS * (side + gap), top + n // ACROSS * (side + 40)
        allowed = seen(name)
        canvas.text(x, y + 6, name, size=10.5, bold=True)
        canvas.rect(x, y + 15, side, side, fill="#eef1f5", radius=0)
        canvas.parts.append(grid(allowed, x, y + 15, CELL, ORANGE if "causal" in name else BLUE))
        lines = "".join(f"M{number(x + i * CELL)} {number(y + 15)}v{number(side)}" for i in range(1, TOKENS))
        lines += "".join(f"M{number(x)} {number(y + 15 + i * CELL)}h{number(side)}" for i in range(1, TOKENS))
        canvas.parts.append(f'<path d="{lines}" stroke="#fff" stroke-width="0.7"/>')
        canvas.text(x, y + 15 + side + 9, f"{allowed.float().mean():.0%} of the pairs", size=10, color=SOFT)
    return {"sparse-patterns.svg": canvas.svg()}
