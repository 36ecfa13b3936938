"""Scene graphs: where a caption's words stand, and which of them are hidden."""

from __future__ import annotations

import random

import pytest

from zoo.data.scene_graphs import SceneGraph, scene_graph, scene_graph_masking
from zoo.errors import InputError

TOKENS = ["[CLS]", "a", "black", "cat", "sleep", "##s", "on", "the", "table", "[SEP]"]
PIECES = {"sleeps": ["sleep", "##s"], "sleeps on": ["sleep", "##s", "on"]}


def graph() -> SceneGraph:
    return scene_graph(
        TOKENS,
        ["cat"],
        [("cat", "black")],
        [("cat", "sleeps on", "table")],
        lambda text: PIECES.get(text, text.split()),
    )


def test_each_word_is_found_with_all_its_pieces():
    assert graph().objects == ((3, 4), (8, 9))  # the table is an object too
    assert graph().attributes == (((3, 4), (2, 3)),)
    assert graph().relations == (((3, 4), (4, 7), (8, 9)),)
    assert graph().nodes == ((3, 4), (8, 9), (2, 3), (4, 7))


def test_what_the_caption_does_not_say_is_refused():
    with pytest.raises(InputError, match="does not have 'dog'"):
        scene_graph(TOKENS, ["dog"], [], [], str.split)
    with pytest.raises(InputError, match="relations have 3 parts"):
        scene_graph(TOKENS, [], [], [("cat", "on")], str.split)  # type: ignore[list-item]
    with pytest.raises(InputError, match="the text 3 tokens"):
        scene_graph_masking([1, 2, 3], SceneGraph(((2, 5),)), 0, [9], random.Random(0))


def test_nodes_are_hidden_whole_at_the_rate_and_in_the_shares_asked_for():
    ids = list(range(100, 110))
    chosen, fates, counted = 0, {"mask": 0, "kept": 0, "random": 0}, 0
    places = {place: node for node in graph().nodes for place in range(*node)}
    for seed in range(2000):
        masked, labels = scene_graph_masking(ids, graph(), 1, [7], random.Random(seed), rate=0.5)
        nodes = {places[place] for place, label in enumerate(labels) if label != -100}
        assert len(nodes) == 2
        for node in graph().nodes:
            inside = range(*node)
            assert {labels[place] != -100 for place in inside} == {node in nodes}
            if node not in nodes:
                assert [masked[place] for place in inside] == [ids[place] for place in inside]
                continue
            assert [labels[place] for place in inside] == [ids[place] for place in inside]
            (kind,) = {
                "mask" if masked[p] == 1 else "random" if masked[p] == 7 else "kept" for p in inside
            }  # one fate for a node
            fates[kind] += 1
            chosen += node == (4, 7)
        counted += 1
    assert chosen / counted == pytest.approx(0.5, abs=0.04)
    total = sum(fates.values())
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.03)
    assert fates["kept"] / total == pytest.approx(0.1, abs=0.02)


def test_at_least_one_node_is_hidden_and_a_caption_without_a_graph_stays():
    masked, labels = scene_graph_masking([5, 6], SceneGraph(((0, 1), (1, 2))), 1, [7], random.Random(1), rate=0.01)
    assert sum(label != -100 for label in labels) == 1
    assert scene_graph_masking([5, 6], SceneGraph(), 1, [7], random.Random(1)) == ([5, 6], [-100, -100])
    assert masked != [5, 6] or labels != [-100, -100]
