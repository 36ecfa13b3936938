"""The architecture of each family, drawn from what its default variant does in a pass.

Sections from top to bottom: embeddings, blocks with how often they run, what comes behind them, and
the heads of the family's checkpoints. A second stream stands to the right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

import zoo
from docs.drawings import grids
from docs.drawings.canvas import BLUE, GRAY, GREEN, MARGIN, ORANGE, PALE, SOFT, VIOLET, WIDTH, Canvas, amount, width_of
from docs.drawings.trace import JOIN, SUM, Graph, Node, is_table, trace
from zoo.layers.attention import Attention
from zoo.layers.embeddings import SinusoidalPositions
from zoo.layers.feed_forward import ACTIVATIONS, FeedForward
from zoo.layers.pooler import FirstTokenPooler, Pooler, ReluPooler
from zoo.layers.schedule import Schedule
from zoo.models.base.conv_encoder import ConvEncoder
from zoo.models.base.model import Model
from zoo.models.base.two_towers import TwoTowers
from zoo.registry import variants as registry

SECOND = ("image", "ngram", "decoder")
"""How the parts of a second stream are named; they are drawn to the right."""
ROW, STEP, LANE = 22, 30, 7
SAID = {"gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU", "silu": "SiLU"}


@dataclass
class Section:
    """A box with parts in it. ``runs``: how often it runs, ``paths``: the blocks that do."""

    name: str
    column: int
    nodes: list[Node] = field(default_factory=list)
    runs: int = 0
    paths: set[str] = field(default_factory=set)
    again: bool = False  # drawn before, so only named
    top: float = 0
    bottom: float = 0


def words(name: str) -> str:
    """A name of the code as words."""
    said = name.replace("ngram", "n-gram").replace("_", " ")
    return re.sub(r"\blm\b", "LM", said).replace("image text", "image-text")


def column_of(path: str) -> int:
    """0 left, 1 right."""
    return int(any(part.startswith(SECOND) for part in path.split(".")))


def container_of(path: str) -> str:
    """The part of the model in whose section a part stands."""
    parent = path.rpartition(".")[0]
    return parent if parent.endswith("embeddings") or parent.startswith("knowledge") else path


def sections_of(graph: Graph) -> tuple[list[Section], dict[Node, Section]]:
    """The nodes in sections. Of the blocks that are built alike and run one after another the first
    stands for all.
    """
    where = _runs_of_sums(graph)
    by_run: dict[int, list[Node]] = {}
    for node in graph.nodes:
        by_run.setdefault(where.get(node, node.run), []).append(node)
    shapes = {run: _shape(graph, run, nodes) for run, nodes in by_run.items() if run >= 0}
    sections: list[Section] = []
    found: dict[Node, Section] = {}
    open_groups: dict[str, tuple[tuple[object, ...], Section]] = {}
    seen: set[tuple[object, ...]] = set()
    for node in graph.nodes:
        if node.kind == "input" or node in found:
            continue
        run = where.get(node, node.run)
        if run >= 0:
            path = graph.runs[run]
            container = path.rpartition(".")[0]
            group = open_groups.get(container)
            if group is None or group[0] != shapes[run]:
                key = (container, shapes[run])
                section = Section(container, _block_column(graph, path), list(by_run[run]), again=key in seen)
                sections.append(section)
                seen.add(key)
                open_groups[container] = (shapes[run], section)
            section = open_groups[container][1]
            section.runs += 1
            section.paths.add(path)
            found |= dict.fromkeys(by_run[run], section)
            continue
        name = container_of(node.path if node.kind == "part" else _beside(graph, node).path)
        known = next((s for s in sections if s.name == name and not s.runs), None)
        if known is None:
            known = Section(name, column_of(name))
            sections.append(known)
            if not isinstance(graph.model.get_submodule(name), nn.Embedding) and node.kind == "part":
                open_groups = {} if known.column == 0 and name.startswith("knowledge") else open_groups
        known.nodes.append(node)
        found[node] = known
    for section in sections:
        section.nodes = _sources_first(graph, section.nodes)
    # a schedule mixes its blocks: those of one stream stand above those of several
    place = {id(section): n for n, section in enumerate(sections)}
    both = next((n for n, section in enumerate(sections) if section.column < 0), len(sections))
    before = {section.column for section in sections[:both] if section.runs}  # a stream's own blocks, ahead of both's

    def late(section: Section) -> bool:
        return place[id(section)] > both and (not section.runs or section.column in before)

    sections.sort(key=lambda s: (late(s), s.column < 0, place[id(s)]))
    return sections, found


def _sources_first(graph: Graph, nodes: list[Node]) -> list[Node]:
    """The nodes so that each stands below what it reads."""
    left, found = list(nodes), []
    while left:
        ready = next((n for n in left if not any(source in left for source in graph.into(n))), left[0])
        left.remove(ready)
        found.append(ready)
    return found


def _runs_of_sums(graph: Graph) -> dict[Node, int]:
    """A sum right behind a block (ZEN) belongs to the block whose result goes nowhere else."""
    return {
        node: source.run
        for node in graph.nodes
        if node.kind == SUM and node.run < 0
        for source in graph.into(node)
        if source.run >= 0 and graph.out_of(source) == [node]
    }


def _beside(graph: Graph, node: Node) -> Node:
    """The part whose section a sum stands in: the one it goes to, unless all it adds is in one."""
    sources = [each for each in graph.into(node) if each.kind == "part"]
    if not sources:
        made = [each for each in graph.into(node) if graph.into(each)]
        if not made:  # inputs alone: it stands with the part that reads them
            return next(each for each in graph.out_of(node) if each.kind == "part")
        return _beside(graph, made[0])
    after = [each for each in graph.out_of(node) if each.kind == "part" and each.run < 0]
    homes = {container_of(each.path) for each in sources}
    return after[0] if after and len(homes) > 1 else sources[0]


def _block_column(graph: Graph, path: str) -> int:
    """The column of a block; -1 = both."""
    parent = graph.model.get_submodule(path.rsplit(".", 2)[0])
    if not isinstance(parent, Schedule):
        return column_of(path)
    written = {name for step in parent.steps if step.part == path.split(".")[-2] for name in step.writes}
    return column_of(".".join(written)) if len(written) == 1 else -1


def _shape(graph: Graph, run: int, nodes: Sequence[Node]) -> tuple[object, ...]:
    """What two blocks have in common that are built alike."""
    places = {node: place for place, node in enumerate(nodes)}
    start = len(graph.runs[run]) + 1
    return (
        type(graph.model.get_submodule(graph.runs[run])).__name__,
        *((node.path[start:] if node.kind == "part" else node.kind) for node in nodes),
        *sorted((places[a], places[b]) for a, b in graph.edges if a in places and b in places),
    )


# -- labels ------------------------------------------------------------------------------------------------------------


def label(graph: Graph, node: Node) -> tuple[str, str, str]:
    """What a box says, its note and its color."""
    if node.kind == JOIN:
        return "concatenate", "", GRAY
    module = graph.model.get_submodule(node.path)
    name = words(node.path.split(".")[-1])
    if isinstance(module, Attention):
        roles = {site.path: site.role for site in graph.model.sites()}
        return words(roles.get(node.path, name)), f"{module.num_heads} heads", BLUE
    if isinstance(module, FeedForward):
        activation = next((SAID.get(k, k) for k, v in ACTIVATIONS.items() if v is module.activation), "")
        return "feed-forward", f"{module.up.out_features:,} · {activation}", ORANGE
    if is_table(module):
        if isinstance(module, SinusoidalPositions):
            return name, "sines, not trained", VIOLET
        rows, size = module.weight.shape  # type: ignore[union-attr]
        return name, f"{rows:,} × {size:,}", VIOLET
    if isinstance(module, Pooler):
        how = ", ReLU" if isinstance(module, ReluPooler) else ", tanh"
        return name, "first token" + (f", linear{how}" if isinstance(module, FirstTokenPooler) else ""), GREEN
    if isinstance(module, nn.Linear):
        return name, f"{module.in_features:,} → {module.out_features:,}", VIOLET
    if type(module).__name__ == "Bottleneck":
        return name, f"{module.dense.in_features} → {module.dense.out_features}", VIOLET  # type: ignore[union-attr]
    if type(module).__name__ == "EntityLinker":
        return name, f"{amount(sum(p.numel() for p in module.parameters()))} parameters", VIOLET
    of_entities = "entities: " if name.startswith("entity") else ""
    return of_entities + norm_name(module), "", GRAY


def norm_name(module: nn.Module) -> str:
    return {"StandardDeviationNorm": "norm (deviation)", "NoNorm": "scale and shift"}.get(
        type(module).__name__, type(module).__name__
    )


def title(graph: Graph, section: Section) -> tuple[str, str]:
    """A section's name and a note."""
    if not section.runs:
        module = graph.model.get_submodule(section.name)
        count = sum(p.numel() for p in module.parameters())
        return words(section.name.replace("knowledge.", "knowledge: ").replace(".", " ")), amount(count)
    path = min(section.paths)
    part = section.name.removesuffix(".blocks").split(".")
    kind = type(graph.model.get_submodule(path)).__name__
    plain = kind in ("EncoderBlock", "DecoderBlock", "XlmBlock", "XlmDecoderBlock")
    name = words(part[-1] if not part[-1].isdigit() else part[0]) + " block" if plain else _spaced(kind)
    count = sum(p.numel() for p in graph.model.get_submodule(path).parameters())
    shared = "shared by all" if len(section.paths) == 1 and section.runs > 1 else "each" if section.runs > 1 else ""
    return f"{section.runs} × {name}" if section.runs > 1 else name, f"{amount(count)} {shared}".strip()


def _spaced(kind: str) -> str:
    """CoAttentionBlock -> co-attention block."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", kind).lower().replace("co attention", "co-attention")


# -- layout ------------------------------------------------------------------------------------------------------------


class Drawing:
    """One model on a canvas."""

    def __init__(self, graph: Graph, name: str, canvas: Canvas) -> None:
        self.graph, self.canvas = graph, canvas
        self.sections, self.home = sections_of(graph)
        self.two = any(section.column for section in self.sections)
        self.gap = 18
        self.at: dict[Node, tuple[float, float, float]] = {}  # left, right, middle of each box
        self.tops: dict[Node, float] = {}

    def span(self, column: int) -> tuple[float, float]:
        """Where a column begins and ends."""
        half = (WIDTH - 2 * MARGIN - self.gap) / 2
        if column < 0 or not self.two:
            return MARGIN, WIDTH - MARGIN
        left = MARGIN + column * (half + self.gap)
        return left, left + half

    def draw(self, y: float) -> float:
        """Every section. -> the bottom."""
        bottoms = [y, y]
        last: list[Section | None] = [None, None]
        for section in self.sections:
            columns = (0, 1) if section.column < 0 or not self.two else (section.column,)
            section.top = max(bottoms[c] for c in columns) + (0 if all(last[c] is None for c in columns) else 16)
            self.section(section)
            for column in columns if section.column < 0 else columns[:1]:
                above = last[column]
                if above is not None:
                    left, right = self.span(column)
                    x = (left + right) / 2
                    self.canvas.line([(x, above.bottom), (x, section.top)], arrow=True)
            for column in columns:
                bottoms[column], last[column] = section.bottom, section
        self.across()
        return max(bottoms)

    def section(self, section: Section) -> None:
        """One section: a pale box, its name, its parts below each other."""
        left, right = self.span(section.column)
        start = len(self.canvas.parts)
        name, note = title(self.graph, section)
        if len(section.nodes) == 1 and not section.runs:
            text, note, color = label(self.graph, section.nodes[0])
            narrow = right - left < 200
            height = 36 if note and narrow else 26
            lines = [text, note] if note and narrow else [f"{text}: {note}" if note else text]
            width = min(right - left, 240)
            x = (left + right - width) / 2
            self.canvas.box(x, section.top, width, height, lines, color)
            section.bottom = section.top + height
            self.at[section.nodes[0]] = (x, x + width, section.top + height / 2)
            return
        size = 12 if width_of(name, 12, bold=True) < right - left - 20 else 11
        self.canvas.text(left + 8, section.top + 13, name, bold=True, size=size)
        y = section.top + 24
        if self.two and section.column >= 0:
            self.canvas.text(left + 8, y + 3, note, size=11, color=SOFT)
            y += 14
        else:
            if section.column < 0:
                below = any(s.runs for s in self.sections[self.sections.index(section) + 1 :])
                where = "below" if below else "above"
                self.canvas.text(left + 8, section.top + 27, f"in turns with those {where}", size=11, color=SOFT)
            self.canvas.text(right - 8, section.top + 13, note, size=11, color=SOFT, anchor="end")
        if section.again:
            y = self.canvas.paragraph(left + 8, y - 1, "built as above", right - left - 16, size=11)
        else:
            y = self.parts(section, y + 12)
        section.bottom = y + 6
        pale = Canvas("", "")
        pale.rect(left, section.top, right - left, section.bottom - section.top, fill=PALE, stroke="#d5dbe3", radius=8)
        self.canvas.parts.insert(start, pale.parts[0])

    def parts(self, section: Section, y: float) -> float:
        """The parts of a section, in one sequence, or in two where it spans both columns."""
        if section.column < 0:
            sides = [[each for each in section.nodes if self.side(section, each) == side] for side in (0, 1)]
            if not all(sides):  # the same parts serve both streams
                spans = self.span(0), self.span(1)
                left, right = (sum(a) / 2 for a in zip(*spans, strict=True))
                end = self.sequence(section, section.nodes, left, right, y + 22)
                first = self.at[section.nodes[0]]
                for (a, b), share in zip(spans, (0.25, 0.75), strict=True):
                    target = first[0] + (first[1] - first[0]) * share
                    self.canvas.line([((a + b) / 2, y - 4), (target, self.tops[section.nodes[0]])], arrow=True)
                return end
            ends = []
            for side, nodes in enumerate(sides):
                left, right = self.span(side)
                ends.append(self.sequence(section, nodes, left, right, y + 22))
                middle = [(a + b) / 2 for a, b in (self.span(0), self.span(1))]
                first = self.at[nodes[0]]
                other = middle[1 - side]
                target = first[0] * 0.25 + first[1] * 0.75 if side == 0 else first[0] * 0.75 + first[1] * 0.25
                self.canvas.line([(other, y - 4), (target, self.tops[nodes[0]])], arrow=True)
            return max(ends)
        left, right = self.span(section.column)
        return self.sequence(section, section.nodes, left, right, y)

    def side(self, section: Section, node: Node) -> int:
        """In which column a part of a block of two streams stands."""
        if node.kind != "part":
            return self.side(section, self.graph.out_of(node)[0])
        inside = node.path[len(min(section.paths)) + 1 :]
        return int(inside.startswith(SECOND))

    def sequence(self, section: Section, nodes: Sequence[Node], left: float, right: float, y: float) -> float:
        """Boxes below each other; what does not go to the next box runs along the left side."""
        graph = self.graph
        merged = {  # a sum and the norm behind it are one box
            node: graph.out_of(node)[0]
            for node in nodes
            if node.kind == SUM
            and len(graph.out_of(node)) == 1
            and self.home.get(graph.out_of(node)[0]) is section
            and graph.out_of(node)[0].kind == "part"
            and label(graph, graph.out_of(node)[0])[2] == GRAY
        }
        rows = [node for node in nodes if node not in merged]
        place = {node: row for row, node in enumerate(rows)}
        first = {source for source in graph.into(rows[0]) if self.home.get(source) is not section}
        first |= {source for source in graph.into(rows[0]) if source.run != rows[0].run}
        first = {source for source in first if source.kind != "input"}
        skips: dict[int, list[int]] = {}  # from row (-1: what enters) to rows
        others: list[tuple[int, Node]] = []
        for node in nodes:
            target = place[merged.get(node, node)]
            for source in graph.into(node):
                source = merged.get(source, source)
                if source in place:
                    if place[source] < target:
                        skips.setdefault(place[source], []).append(target)
                elif source in first:
                    skips.setdefault(-1, []).append(target)
                elif (target, source.path) not in [(t, each.path) for t, each in others]:
                    others.append((target, source))
        lanes = self._lanes(skips)
        deepest = max(lanes.values(), default=-1) + 1
        pad = 10 + LANE * deepest
        stubs = [each for each in others if not self._crosses(section, each[1])]
        stubs = [each for each in stubs if section.column >= 0 and not section.name.endswith("embeddings")]
        box_left = left + pad + 4
        box_right = right - max(8, pad * 0.3) - (74 if stubs and not self.two else 0)
        if not self.two and not stubs:
            box_left, box_right = left + 60, right - 60
        middles, halves = [], []
        for node in rows:
            lines, color = self.lines(node, node in merged.values(), box_right - box_left)
            height = ROW if len(lines) == 1 else ROW + 12
            middles.append(y + height / 2)
            halves.append(height / 2)
            self.at[node], self.tops[node] = (box_left, box_right, middles[-1]), y
            for each, into in merged.items():
                if into == node:
                    self.at[each] = self.at[node]
            text, note = [*lines[0].split("\t"), ""][:2]
            size = 11 if self.two else 12
            self.canvas.box(box_left, y, box_right - box_left, height, [text, *lines[1:]], color, size=size, note=note)
            y += height + STEP - ROW
        top, x = middles[0] - halves[0], (box_left + box_right) / 2
        entering = bool(first)
        if entering and section.column >= 0:
            self.canvas.line([(x, top - 12), (x, top)], arrow=True)
        elif entering:
            self.canvas.line([((left + right) / 2, top - 22), (x, top)], arrow=True)
        for source, targets in skips.items():
            lane = box_left - 8 - LANE * lanes.get(source, 0)
            far = sorted(t for t in set(targets) if t != source + 1)
            if source + 1 in targets and source >= 0:
                self.canvas.line(
                    [(x, middles[source] + halves[source]), (x, middles[source + 1] - halves[source + 1])], arrow=True
                )
            for target in far:
                begin = (box_left, middles[source]) if source >= 0 else (x, top - 6)
                self.canvas.line(
                    [begin, (lane, begin[1]), (lane, middles[target]), (box_left, middles[target])], arrow=True
                )
        for target, source in stubs:
            self.canvas.line([(box_right + 16, middles[target]), (box_right, middles[target])], arrow=True)
            self.canvas.text(box_right + 18, middles[target], self.stub(source), size=11, color=SOFT)
        return y - (STEP - ROW)

    def stub(self, source: Node) -> str:
        """What comes in from the side, in a word."""
        last = source.path.split(".")[-1]
        return {"entity_candidates": "candidates"}.get(last, "entities" if last.startswith("entity") else words(last))

    def _crosses(self, section: Section, source: Node) -> bool:
        return source in self.home and self.home[source].column != section.column

    @staticmethod
    def _lanes(skips: dict[int, list[int]]) -> dict[int, int]:
        """A lane for each source with targets beyond the next row, so that no two lines lie on each
        other.
        """
        taken: list[list[tuple[int, int]]] = []
        lanes: dict[int, int] = {}
        for source, targets in sorted(skips.items(), key=lambda item: max(item[1]) - item[0]):
            if all(target == source + 1 for target in targets):
                continue
            low, high = source, max(targets)
            free = (n for n, used in enumerate(taken) if all(high <= a or low >= b for a, b in used))
            lane = next(free, len(taken))
            if lane == len(taken):
                taken.append([])
            taken[lane].append((low, high))
            lanes[source] = lane
        return lanes

    def lines(self, node: Node, added: bool, width: float) -> tuple[list[str], str]:
        """What a box says: its name and behind a tab its size, or that in a second line where there is
        no room; and its color.
        """
        if node.kind == SUM:
            return ["add"], GRAY
        text, note, color = label(self.graph, node)
        if added:
            before, _, norm = text.rpartition(": ")
            text = f"{before}: add, {norm}" if before else f"add, {norm}"
        if not note:
            return [text], color
        fits = width_of(f"{text}  {note}", 11 if self.two else 12) <= width - 8
        return ([f"{text}\t{note}"] if fits else [text, note]), color

    def across(self) -> None:
        """Lines between the columns, from a section to a part of another."""
        done: set[tuple[int, Node]] = set()
        for source, target in self.graph.edges:
            if source not in self.home or target not in self.at or target not in self.home:
                continue
            one, other = self.home[source], self.home[target]
            if one is other or one.column < 0 or other.column < 0 or one.column == other.column or not self.two:
                continue
            if (id(one), target) in done:
                continue
            done.add((id(one), target))
            left, right, middle = self.at[target]
            start_left, start_right = self.span(one.column)
            gap = MARGIN + (WIDTH - 2 * MARGIN) / 2
            begin = start_right if one.column == 0 else start_left
            end = left if one.column == 0 else right
            y = one.bottom - 14
            if len(one.nodes) > 1 and not one.runs:
                y = self.at.get(source, (0, 0, y))[2]
                begin = self.at[source][1] if one.column == 0 and source in self.at else begin
            self.canvas.line([(begin, y), (gap, y), (gap, middle), (end, middle)], arrow=True, color=GREEN)


def draw(name: str) -> str:
    """The drawing of a variant."""
    model: Model = zoo.create(name, device="meta").eval()  # type: ignore[assignment]
    if isinstance(model, ConvEncoder):
        return grids.draw(name, model)
    if isinstance(model, TwoTowers) and isinstance(model.image, ConvEncoder):
        return above_each_other(name, model)
    graph = trace(model)
    total = amount(model.num_parameters())
    canvas = Canvas(f"The architecture of {name}", "")
    note = f"{total} parameters"
    drawing = Drawing(graph, name, canvas)
    y = drawing.draw(canvas.heading(name, note) + 2)
    if "pooler" in dict(model.named_children()) and not any(node.path == "pooler" for node in graph.nodes):
        canvas.line([(WIDTH / 2, y), (WIDTH / 2, y + 16)], arrow=True)
        canvas.box(WIDTH / 2 - 120, y + 16, 240, 26, ["pooler: the first token's state"], GREEN)
        y += 42
    if model.heads:
        y += 20
        canvas.text(MARGIN, y, "heads in its checkpoints:", size=12, color=SOFT)
        x, y = MARGIN, y + 12
        for head in model.heads:
            text = words(head)
            width = 16 + 6.4 * len(text)
            if x + width > WIDTH - MARGIN:
                x, y = MARGIN, y + 28
            canvas.box(x, y, width, 22, [text], GREEN)
            x += width + 8
    canvas.description = description(drawing, name, total)
    return canvas.svg()


def above_each_other(name: str, model: TwoTowers) -> str:
    """The drawing of a text tower and a convolutional image tower."""
    total = amount(model.num_parameters())
    canvas = Canvas(f"The architecture of {name}", "")
    drawing = Drawing(trace(model.text), name, canvas)
    y = drawing.draw(canvas.heading(name, f"{total} parameters: a text tower, and below it an image tower") + 2)
    if isinstance(projection := model.text_projection, nn.Linear):
        canvas.line([(WIDTH / 2, y), (WIDTH / 2, y + 16)], arrow=True)
        said = f"{projection.in_features:,} → {projection.out_features:,}"
        canvas.box(WIDTH / 2 - 120, y + 16, 240, 26, ["text projection"], VIOLET, note=said)
        y += 42
    _, pictures = grids.tower(canvas, y + 18, model.image)  # type: ignore[arg-type]
    texts = description(drawing, name, total).removesuffix(".")
    canvas.description = f"{texts}, text projection; below it the image tower: {', '.join(pictures)}."
    return canvas.svg()


def description(drawing: Drawing, name: str, total: str) -> str:
    """The drawing in words."""
    named = []
    for section in drawing.sections:
        if len(section.nodes) == 1 and not section.runs:
            named.append(label(drawing.graph, section.nodes[0])[0])
        else:
            text, note = title(drawing.graph, section)
            named.append(f"{text} ({note} parameters)" if not note.endswith(("each", "all")) else f"{text} ({note})")
    return f"{name}, {total} parameters, from top to bottom: {', '.join(named)}."


def drawings() -> dict[str, str]:
    """For each family its file and the drawing of its default variant."""
    return {f"{family}.svg": draw(variants[0].name) for family, variants in registry.families().items()}
