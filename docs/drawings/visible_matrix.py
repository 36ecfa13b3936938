"""K-BERT: a sentence with facts grafted in, as a tree and as the matrix of who sees whom, both from
`zoo.data.knowledge_batches`.
"""

from __future__ import annotations

import itertools

import torch

from docs.drawings.canvas import BLUE, MARGIN, ORANGE, WIDTH, Canvas, number
from docs.drawings.patterns import grid
from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge_batches import SentenceTree, longest_subjects, sentence_tree

SENTENCE = "[CLS] tim cook is visiting beijing now"
FACTS = [("tim cook", "ceo of", "apple"), ("beijing", "capital of", "china"), ("beijing", "is a", "city")]


def tree() -> SentenceTree:
    """The example's."""
    graph = KnowledgeGraph.from_triples(FACTS)
    return sentence_tree(longest_subjects(SENTENCE.split(), graph), graph, pieces=str.split, joiner=" ")


def drawings() -> dict[str, str]:
    grown = tree()
    count = len(grown.tokens)
    canvas = Canvas(
        "K-BERT's sentence tree and visible matrix",
        "The trunk is the sentence; facts hang as branches on their words. "
        + "; ".join(
            f"{token} at position {position}{' (from the graph)' if added else ''}"
            for token, position, added in zip(grown.tokens, grown.positions, grown.inserted, strict=True)
        )
        + ". A token of a branch sees its branch and the word it hangs on.",
    )
    y = canvas.heading(
        "K-BERT: the sentence tree", "Blue: the sentence. Orange: facts of the graph. The numbers are positions."
    )
    y = _tree(canvas, grown, y + 2)
    canvas.text(MARGIN, y + 10, "The visible matrix", size=14, bold=True)
    y = canvas.paragraph(
        MARGIN,
        y + 20,
        "A row is a token that looks, a column what it sees. Facts are hidden from the rest.",
        WIDTH - 24,
    )
    left = MARGIN + 66
    cell = (WIDTH - MARGIN - left) / count
    top = y + 64
    for n, (token, added) in enumerate(zip(grown.tokens, grown.inserted, strict=True)):
        color = ORANGE if added else BLUE
        canvas.text(left - 5, top + (n + 0.5) * cell, token, size=10.5, color=color, anchor="end")
        at = f"{number(left + (n + 0.7) * cell)} {number(top - 5)}"
        canvas.parts.append(
            f'<text transform="translate({at}) rotate(-60)" font-size="10.5" fill="{color}">{token}</text>'
        )
    canvas.rect(left, top, cell * count, cell * count, fill="#eef1f5", radius=0)
    seen, added = torch.from_numpy(grown.visible), torch.from_numpy(grown.inserted)
    facts = added[:, None] | added[None]
    canvas.parts.append(grid(seen & ~facts, left, top, cell, BLUE))
    canvas.parts.append(grid(seen & facts, left, top, cell, ORANGE))
    lines = "".join(
        f"M{number(left + i * cell)} {number(top)}v{number(count * cell)}M{number(left)} {number(top + i * cell)}"
        f"h{number(count * cell)}"
        for i in range(1, count)
    )
    canvas.parts.append(f'<path d="{lines}" stroke="#fff" stroke-width="1"/>')
    return {"k-bert-visible-matrix.svg": canvas.svg()}


def _tree(canvas: Canvas, grown: SentenceTree, y: float) -> float:
    """The trunk downwards at the left, branches to the right. -> the bottom."""
    step, trunk_x, height = 30, MARGIN, 20
    branches: list[tuple[int, list[int]]] = []  # the row of the word, the tokens
    row, rows = -1, {}
    for n, added in enumerate(grown.inserted):
        if not added:
            row += 1
            rows[n] = row
        elif not branches or branches[-1][1][-1] != n - 1 or grown.positions[n] <= grown.positions[n - 1]:
            branches.append((row, [n]))
        else:
            branches[-1][1].append(n)
    hanging: dict[int, int] = {}
    extra: dict[int, int] = {}
    for at, _ in branches:
        extra[at] = extra.get(at, -1) + 1
    tops, down = {}, y
    for at in range(row + 1):
        tops[at] = down
        down += step * (1 + max(0, extra.get(at, 0)))
    trunk = list(rows)
    for one, two in itertools.pairwise(trunk):
        canvas.line([(trunk_x + 40, tops[rows[one]] + height), (trunk_x + 40, tops[rows[two]])])
    for n in trunk:
        canvas.box(trunk_x, tops[rows[n]], 80, height, [grown.tokens[n]], BLUE, size=11, note=str(grown.positions[n]))
    for at, tokens in branches:
        level = hanging.get(at, 0)
        hanging[at] = level + 1
        middle = tops[at] + height / 2 + level * step
        canvas.line(
            [
                (trunk_x + 80, tops[at] + height / 2),
                (trunk_x + 92, tops[at] + height / 2),
                (trunk_x + 92, middle),
                (trunk_x + 104, middle),
            ]
            if level
            else [(trunk_x + 80, middle), (trunk_x + 104, middle)]
        )
        x = trunk_x + 104
        for n in tokens:
            canvas.box(
                x, middle - height / 2, 68, height, [grown.tokens[n]], ORANGE, size=11, note=str(grown.positions[n])
            )
            if n != tokens[-1]:
                canvas.line([(x + 68, middle), (x + 76, middle)])
            x += 76
    return down + 6
