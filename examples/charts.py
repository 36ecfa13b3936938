"""One style for what the examples draw: the colors of the drawings of the docs, few lines, and text
that is readable on a phone.

Needs matplotlib (``pip install extended-zoo[examples]``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREEN, VIOLET, RED, GRAY = "#2f6fb3", "#c2701c", "#2e8b57", "#7d55b5", "#c0392b", "#5b6675"
STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8893a3",
    "axes.labelcolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe4ea",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
}


@contextmanager
def chart(path: Path, columns: int = 1, height: float = 3.2, **options: Any) -> Iterator[Any]:
    """The axes of a figure, several side by side where ``columns`` says so; written to ``path`` at
    the end. ``options``: of `pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    colors = cycler(color=[BLUE, ORANGE, GREEN, VIOLET, RED, GRAY])
    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": colors}):
        figure, axes = pyplot.subplots(1, columns, figsize=(4.2 * columns, height), **options)
        yield axes
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        pyplot.close(figure)
