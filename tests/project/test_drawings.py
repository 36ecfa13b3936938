"""The drawings of the docs: current, readable, and true to the models."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

import zoo
from docs import generate
from docs.drawings import (
    canvas,
    charts,
    conversion,
    families,
    packing,
    patterns,
    places,
    schedules,
    speed,
    tree,
    visible_matrix,
)
from docs.drawings.trace import SUM, trace
from zoo.checkpoints.checks import NAMES
from zoo.layers.residual import pre_norm
from zoo.registry import variants as registry


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return generate.drawings()


def test_every_drawing_is_current(drawn):
    stale = [
        name
        for name, text in drawn.items()
        if not (generate.IMAGES / name).exists() or (generate.IMAGES / name).read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run python -m docs.generate: {stale}"


def test_every_drawing_has_words_for_those_who_cannot_see_it_and_stays_on_its_card(drawn):
    for name, text in drawn.items():
        root = ElementTree.fromstring(text)
        tag = "{http://www.w3.org/2000/svg}"
        assert root.findtext(f"{tag}title"), name
        assert len(root.findtext(f"{tag}desc") or "") > 20, name
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        assert width == canvas.WIDTH, name
        for rect in root.iter(f"{tag}rect"):
            x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
            assert 0 <= x <= width - float(rect.attrib["width"]), name
            assert 0 <= y <= height - float(rect.attrib["height"]), name
        for line in root.iter(f"{tag}text"):
            size = float(line.get("font-size", 12))
            assert size >= 8.5, (name, line.text)


def test_every_family_has_a_drawing_that_runs_each_of_its_blocks(drawn):
    assert {f"{family}.svg" for family in registry.families()} <= set(drawn)
    for name, blocks in (("albert-base", 12), ("vilbert-base", 24)):
        sections, _ = families.sections_of(trace(zoo.create(name, device="meta").eval()))
        assert sum(section.runs for section in sections) == blocks, name


def test_a_drawing_shows_where_the_norm_stands_and_what_is_added():
    model = zoo.create("bert-base", device="meta", num_layers=2).eval()
    graph = trace(model)
    first = {node.path.split(".")[-1]: node for node in graph.nodes if node.run == 0 and node.kind == "part"}
    (added,) = graph.into(first["attention_norm"])
    assert added.kind == SUM
    assert {source.path for source in graph.into(added)} == {"embeddings.norm", "encoder.blocks.0.attention"}
    (tables,) = graph.into(next(node for node in graph.nodes if node.path == "embeddings.norm"))
    assert {source.path for source in graph.into(tables)} == {
        f"embeddings.{name}" for name in ("token", "segment", "position")
    }

    for block in model.encoder.blocks:
        block.residual = pre_norm
    moved = trace(model)
    norm = next(node for node in moved.nodes if node.path == "encoder.blocks.0.attention_norm")
    assert [source.path for source in moved.into(norm)] == ["embeddings.norm"]
    assert families.sections_of(graph)[0] != families.sections_of(moved)[0]


def test_blocks_that_share_their_parameters_are_drawn_as_shared(drawn):
    assert "7.1 M shared by all" in drawn["albert.svg"]
    assert "7.1 M each" in drawn["bert.svg"]


def test_a_drawn_schedule_shows_each_block_in_the_order_in_which_it_runs():
    steps = registry.config("vilbert-large").schedule
    columns = {id(step): column for column, step in schedules.placed(steps)}
    for stream in ("text", "image"):
        places = [columns[id(step)] for step in steps if stream in step.writes]
        assert places == sorted(set(places))
    text = schedules.svg("vilbert", {"vilbert-large": steps})
    boxes = re.findall(r'anchor="middle"[^>]*>(\d+)<', text)
    assert sorted(map(int, boxes)) == sorted(step.index for step in steps for _ in step.writes)
    assert text.count("marker-end") == 2 * sum(step.part == "both" for step in steps) == 12


def test_the_drawn_patterns_are_those_that_attention_computes():
    radius = zoo.create(
        "bert-tiny", num_layers=1, vocab_size=20, techniques=[zoo.SlidingWindow(radius=2, global_tokens=2)]
    )
    ids = torch.arange(1, 1 + patterns.TOKENS)[None]
    maps = radius.eval()(ids, output_attentions=True).attentions[0]
    assert torch.equal((maps[0, 0] > 0), patterns.seen("window(2, 2 global)"))
    assert (patterns.seen("local(4) | strided(4)") == patterns.seen("local(4)") | patterns.seen("strided(4)")).all()


def test_the_drawn_packing_holds_every_token_once(drawn):
    text = drawn["packing.svg"]
    for row, length in enumerate(packing.LENGTHS):
        for column in range(length):
            assert len(re.findall(rf">{'abcd'[row]}{column}<", text)) == 2  # padded, and packed


def test_marks_stand_where_a_technique_changes_a_block():
    assert places.touched(zoo.LoRA(rank=2)) == ({"attention-query", "attention-value"}, 2 * 12 * 2 * 2 * 768)
    assert places.touched(zoo.PrefixTuning(length=2))[0] == {"attention-core"}
    assert places.touched(zoo.BottleneckAdapter(kind="houlsby"))[0] == {"attention-norm", "feed-forward-norm"}
    assert places.touched(zoo.BottleneckAdapter(kind="pfeiffer"))[0] == {"feed-forward-norm"}


def test_the_drawn_checks_are_those_of_a_conversion(drawn):
    assert set(conversion.SAID) == set(NAMES)
    text = drawn["conversion.svg"]
    assert [text.index(f">{name}<") for name in NAMES] == sorted(text.index(f">{name}<") for name in NAMES)


def test_a_fact_in_the_drawn_tree_is_seen_by_its_word_alone():
    grown = visible_matrix.tree()
    fact, word, other = (grown.tokens.index(token) for token in ("china", "beijing", "now"))
    assert grown.visible[word, fact]
    assert not grown.visible[other, fact]
    assert grown.positions[other] == grown.positions[word] + 1 < grown.positions[fact]


def test_the_family_tree_has_every_variant_once(drawn):
    counts = [int(n) for n in re.findall(r">(\d+) variants?<", drawn["family-tree.svg"])]
    assert sum(counts) == sum(map(len, registry.families().values()))
    assert tree.builds_on("xlm-translation") == ["xlm"]
    assert tree.builds_on("bert") == []


def test_what_was_timed_beside_bert_is_drawn_as_it_is_built(drawn):
    rows = {row["family"]: row for row in speed.measured()}
    assert {"bert", "albert", "vilbert"} <= set(rows) <= set(registry.families())
    for family, row in rows.items():
        variant = registry.families()[family][0]
        assert row["variant"] == variant.name
        assert f">{row['variant']}<" in drawn["family-speed.svg"]
        with torch.device("meta"):
            assert int(row["parameters"]) == variant.model_class()(registry.config(variant.name)).num_parameters()


def test_a_chart_puts_its_points_where_its_axes_say():
    axis = charts.Axis("n", (1, 10, 100), log=True)
    assert [axis.place(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    picture = canvas.Canvas("t", "d")
    charts.lines(picture, 0, {"one": [(1, 0), (100, 8)]}, axis, charts.Axis("m", (0, 4, 8)), height=100)
    (line,) = [part for part in picture.parts if 'stroke-width="1.8"' in part]
    (x1, y1), (x2, y2) = [tuple(map(float, pair.split())) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", line)]
    assert x1 < x2
    assert y1 - y2 == pytest.approx(100)
