"""The map language: what a map may say, both directions, and the maps of BERT and ALBERT against
the libraries they speak for.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.layouts import ALBERT, BERT, CONFIGS, canonical, drawn, equal
from zoo.errors import CheckpointError, ConfigError, MapError, UnknownNameError
from zoo.formats.archive import Info
from zoo.formats.memory import DictArchive
from zoo.maps import layouts
from zoo.maps.config_map import ConfigMap
from zoo.maps.ops import Copies
from zoo.maps.parsing import parse_map, read_map
from zoo.maps.templates import Condition, Template

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    "bert/hf-encoder-pooler",
    "bert/hf-pretraining",
    "bert/hf-sequence-classification",
    "bert/hf-token-classification",
    "bert/tf-pretraining",
    "mbert/pretraining",
    "albert/hf-encoder-2groups-inner2",
    "albert/hf-pretraining-1group",
    "albert/hf-sequence-classification",
    "albert/tf-pretraining-1group",
]


def infos(tensors):
    return DictArchive(tensors).tensors


def a_map(**tables):
    """A small map with one rule, other tables as given."""
    table = {"family": "f", "layout": "l", "version": 1, "rules": {"a.{i}": "b.{i}"}, **tables}
    return parse_map(table, "own.toml")


# --- templates --------------------------------------------------------------------------------------------------------

names = st.text("ab._", min_size=1, max_size=3)


@st.composite
def templates(draw):
    text = draw(names)
    for letter in draw(st.lists(st.sampled_from("ij"), max_size=3)):
        text += draw(st.sampled_from([f"{{{letter}}}", "0", "1", "10"])) + draw(names)
    return Template.parse(text)


@given(templates(), st.integers(0, 10**9), st.integers(0, 12))
def test_a_filled_template_is_matched_with_the_numbers_it_was_filled_with(template, i, j):
    bindings = {name: {"i": i, "j": j}[name] for name in template.placeholders}
    assert template.match(template.fill(bindings)) == bindings


@given(templates(), templates())
def test_two_templates_that_share_a_name_are_found_out(one, other):
    share = any(other.match(one.fill({"i": i, "j": j})) is not None for i, j in itertools.product((0, 1, 10), repeat=2))
    assert not share or one.overlaps(other)


@pytest.mark.parametrize(
    "name", ["layer.01.w", "layer..w", "layer.x.w", "layer.1.w.", "alayer.1.w", "layer.-1.w", "layer.1.2.w"]
)
def test_a_placeholder_stands_for_a_whole_number_and_nothing_else(name):
    assert Template.parse("layer.{i}.w").match(name) is None


@pytest.mark.parametrize("text", ["a{i}{j}", "a{i}1", "a1{i}", "a{", "a}", "", "a{i-1}"])
def test_a_template_that_could_be_read_in_two_ways_is_refused(text):
    with pytest.raises(MapError):
        Template.parse(text)


@pytest.mark.parametrize(
    ("text", "config", "holds"),
    [
        ("pooler", {"pooler": True}, True),
        ("!pooler", {"pooler": True}, False),
        ("n == 2", {"n": 2}, True),
        ("n != 2", {"n": 2}, False),
        ("n == true", {"n": 1}, False),
        ("a == b", {"a": 3, "b": 3}, True),
        ("a != b", {"a": 3, "b": 3}, False),
        ("word == 'x'", {"word": "x"}, True),
        ("eps == 1e-12", {"eps": 1e-12}, True),
    ],
)
def test_a_condition_holds_as_it_reads(text, config, holds):
    assert Condition.parse(text, None).holds(config) is holds


# --- bad maps ---------------------------------------------------------------------------------------------------------

BAD_MAPS = {
    "no family": ({"family": None}, "family"),
    "an unknown table": ({"rule": {}}, "unknown table [rule]; closest: rules"),
    "no rules": ({"rules": {}}, "[rules]"),
    "two rules for one name": (
        {"rules": {"a.{i}.w": "b.{i}", "again": {"from": "a.7.w", "to": "c"}}},
        "'a.7.w' could meet 'a.{i}.w' and 'again'",
    ),
    "one target made twice": (
        {"rules": {"a.{i}": "b.{i}", "c.{i}": "b.{i}"}},
        "'b.{i}' is made by 'a.{i}' and by 'c.{i}'",
    ),
    "an unknown operation": (
        {"rules": {"a": {"to": "b", "op": "transposed"}}},
        "unknown operation 'transposed'; closest: transpose",
    ),
    "an unknown option of an operation": ({"rules": {"a": {"to": "b", "op": "stack", "dim": 1}}}, "no option 'dim'"),
    "an unknown option of a rule": ({"rules": {"a": {"to": "b", "wenn": "x"}}}, "unknown option 'wenn'"),
    "a placeholder on one side": ({"rules": {"a.{i}": "b"}}, "{i} stands on one side only"),
    "a word placeholder on one side": ({"rules": {"a.{p}": "b"}}, "{p} stands on one side only"),
    "an unused placeholder": ({"placeholders": {"x": ["q", "k"]}}, "{x} is declared and no rule uses it"),
    "rows without what is lost": ({"rules": {"a": {"to": "b", "op": "rows", "before": 2}}}, "needs 'lost'"),
    "a rounding cast without what is lost": (
        {"rules": {"a": {"to": "b", "op": {"op": "cast", "from": "F32", "to": "F16"}}}},
        "rounds",
    ),
    "a cast to no dtype": (
        {"rules": {"a": {"to": "b", "op": {"op": "cast", "from": "F31", "to": "F16"}}}},
        "no dtype 'F31'",
    ),
    "two names without join": ({"rules": {"x": {"from": ["a", "b"], "to": "c"}}}, "join and stack take several names"),
    "join of one name": ({"rules": {"a": {"to": "c", "op": "join"}}}, "join and stack take several names"),
    "a join in mid-chain": (
        {"rules": {"x": {"from": ["a", "b"], "to": "c", "op": ["transpose", "join"]}}},
        "join must stand first",
    ),
    "a split with too few sizes": ({"rules": {"a": {"to": ["b", "c"], "op": "split", "sizes": [1]}}}, "1 sizes for 2"),
    "permute that names an axis twice": (
        {"rules": {"a": {"to": "b", "op": "permute", "axes": [0, 0]}}},
        "must name each of",
    ),
    "a drop without reason": ({"drop": {"x": ""}}, "[drop] 'x': a reason is missing"),
    "a passenger without reason": ({"passenger": {"x": " "}}, "a reason is missing"),
    "a drop pattern over a rule": ({"drop": {"a.*": "no reason at all"}}, "pattern 'a.*' would take 'a.{i}'"),
    "a drop of a ruled name": ({"drop": {"a.{n}": "gone"}}, "could meet"),
    "a tie to nothing": ({"tie": {"x": "y"}}, "copies 'y', which no rule takes"),
    "a broken condition": ({"rules": {"a": {"to": "b", "when": "x > 2"}}}, "is no condition"),
    "a condition on no field": (
        {"rules": {"a": {"to": "b", "when": "poler"}}, "config": {"p": "pooler"}},
        "names 'poler', which [config] does not make; closest: pooler",
    ),
    "a head with a strange name": ({"rules": {"a": {"to": "heads.x.w", "head": "y"}}}, "makes names under 'heads.y.'"),
    "a head's name without head": ({"rules": {"a": "heads.x.w"}}, "belongs to a head; say head = 'x'"),
    "an architecture with no such head": ({"architectures": {"A": ["x"]}}, "has head 'x', which no rule makes"),
    "a default for no key": ({"config": {"a": "b", "defaults": {"aa": 1}}}, "'aa' is no key of [config]; closest: a"),
    "an ignored key without reason": ({"config": {"a": "b", "ignored": {"c": ""}}}, "needs its reason"),
    "a key that is used and ignored": (
        {"config": {"a": "b", "ignored": {"a": "why"}}},
        "'a' stands in [config] and in [config.ignored]",
    ),
    "a field that is made twice": (
        {"config": {"a": "b", "c": "b"}},
        "our field 'b' is made in [config] and again in [config]",
    ),
    "values of no list": (
        {"config": {"a": {"to": "b", "values": "colors"}}, "values": {"sizes": [[1, 2]]}},
        "no [values] are called 'colors'; there are sizes",
    ),
    "only without reason": ({"config": {"a": "b", "only": {"c": {"value": 1}}}}, "reason"),
    "a count by no field": ({"placeholders": {"i": "layers"}, "config": {"n": "num_layers"}}, "counts up to 'layers'"),
    "make of an unknown kind": ({"make": {"x": {"value": "twos", "shape": [2]}}}, "identity"),
    "make of a ruled name": (
        {"rules": {"a": "b"}, "make": {"b": {"value": "zeros", "shape": [2]}}},
        "made by [make] and by 'a'",
    ),
}


@pytest.mark.parametrize("what", BAD_MAPS)
def test_a_bad_map_is_refused_when_loaded_naming_file_and_rule(what):
    tables, expected = BAD_MAPS[what]
    with pytest.raises(MapError) as error:
        a_map(**tables)
    assert expected in str(error.value)
    assert "own.toml" in str(error.value)


def test_conditions_that_exclude_each_other_may_share_a_name():
    for one, other in [("x", "!x"), ("n == 1", "n == 2"), ("n == 1", "n != 1"), ("a == b", "a != b")]:
        a_map(rules={"a": {"to": "b", "when": one}, "again": {"from": "a", "to": "c", "when": other}})
    for one, other in [("x", "y"), ("n == 1", "m == 2"), ("n != 1", "n != 2"), ("x", "x")]:
        with pytest.raises(MapError):
            a_map(rules={"a": {"to": "b", "when": one}, "again": {"from": "a", "to": "c", "when": other}})


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path):
    (tmp_path / "broken.toml").write_text("family = ")
    with pytest.raises(MapError, match=r"broken\.toml"):
        read_map(tmp_path / "broken.toml")
    with pytest.raises(MapError, match=r"lost\.toml"):
        read_map(tmp_path / "lost.toml")
    (tmp_path / "including.toml").write_text('include = ["nowhere"]')
    with pytest.raises(MapError, match="nowhere"):
        read_map(tmp_path / "including.toml")


def test_an_unknown_layout_is_refused_with_the_closest():
    with pytest.raises(UnknownNameError, match="hf-bert"):
        layouts.load("hf-brt")


def test_every_map_of_the_project_loads_under_its_own_name():
    found = layouts.available()
    assert {"hf-bert", "tf-bert", "hf-albert", "tf-albert"} <= set(found)
    for name in found:
        assert layouts.load(name).layout == name


# --- operations -------------------------------------------------------------------------------------------------------

W = torch.arange(24.0).reshape(6, 4)
OPERATIONS = {
    "transpose": ({"a": {"to": "b", "op": "transpose"}}, {"a": W}, {"b": W.T}),
    "permute": (
        {"a": {"to": "b", "op": "permute", "axes": [2, 0, 1]}},
        {"a": W.reshape(3, 2, 4)},
        {"b": W.reshape(3, 2, 4).permute(2, 0, 1)},
    ),
    "equal split": ({"a": {"to": ["q", "k", "v"], "op": "split"}}, {"a": W}, {"q": W[:2], "k": W[2:4], "v": W[4:]}),
    "unequal split along columns": (
        {"a": {"to": ["x", "y"], "op": "split", "axis": 1, "sizes": [1, "three"]}},
        {"a": W},
        {"x": W[:, :1], "y": W[:, 1:]},
    ),
    "transpose, then split": (
        {"a": {"to": ["q", "k"], "op": ["transpose", {"op": "split", "axis": 0}]}},
        {"a": W},
        {"q": W.T[:2], "k": W.T[2:]},
    ),
    "join": ({"j": {"from": ["x", "y"], "to": "b", "op": "join", "axis": 1}}, {"x": W[:, :2], "y": W[:, 2:]}, {"b": W}),
    "join, then transpose": (
        {"j": {"from": ["x", "y"], "to": "b", "op": ["join", "transpose"]}},
        {"x": W[:3], "y": W[3:]},
        {"b": W.T},
    ),
    "stack": ({"s": {"from": ["x", "y"], "to": "b", "op": "stack", "axis": 1}}, {"x": W[0], "y": W[1]}, {"b": W[:2].T}),
    "copies": ({"a": {"to": ["x", "y"], "op": "copies"}}, {"a": W}, {"x": W, "y": W}),
    "same": ({"s": {"from": ["x", "y"], "to": "b", "op": "same"}}, {"x": W, "y": W}, {"b": W}),
    "unstack": ({"a": {"to": ["x", "y"], "op": "unstack"}}, {"a": W[:2]}, {"x": W[0], "y": W[1]}),
    "stack over a number": (
        {"e.{i}.x{e}": {"to": "b.{i}", "op": "stack", "over": "e"}},
        {f"e.{i}.x{e}": W[e] + i for i in range(2) for e in range(3)},
        {"b.0": W[:3], "b.1": W[:3] + 1},
    ),
    "unstack over a number": (
        {"a": {"to": "b.{e}", "op": "unstack", "over": "e"}},
        {"a": W[:3]},
        {f"b.{e}": W[e] for e in range(3)},
    ),
    "join over ranks": (
        {"rank{r}.{i}": {"to": "b.{i}", "op": "join", "over": "r", "parts": "ranks"}},
        {"rank0.5": W[:3], "rank1.5": W[3:]},
        {"b.5": W},
    ),
    "join over ranks of two digits": (
        {"rank_{r:02}.{i}": {"to": "b.{i}", "op": "join", "over": "r", "parts": 3, "flexible": True}},
        {f"rank_{r:02}.10": W[2 * r : 2 * r + 2] for r in range(3)},
        {"b.10": W},
    ),
    "join of ranks whose pieces hold several parts": (
        {
            "rank{r}": {
                "to": ["q", "k", "v"],
                "op": [{"op": "join", "groups": 3, "parts": 2}, "split"],
                "over": "r",
            }
        },
        {"rank0": W[[0, 2, 4]], "rank1": W[[1, 3, 5]]},
        {"q": W[:2], "k": W[2:4], "v": W[4:]},
    ),
    "the same in every rank": (
        {"rank{r}": {"to": "b", "op": "same", "over": "r", "parts": 2}},
        {"rank0": W, "rank1": W},
        {"b": W},
    ),
    "split over a number": (
        {"a": {"to": "b.{e}", "op": "split", "over": "e", "parts": "three"}},
        {"a": W},
        {"b.0": W[:2], "b.1": W[2:4], "b.2": W[4:]},
    ),
    "rows": (
        {"a": {"to": "b", "op": "rows", "before": 2, "after": 1, "lost": "padding rows"}},
        {"a": torch.cat([torch.zeros(2, 4), W, torch.zeros(1, 4)])},
        {"b": W},
    ),
    "pad": (
        {"a": {"to": "b", "op": "pad", "after": 2, "fill": 7.0}},
        {"a": W},
        {"b": torch.cat([W, torch.full((2, 4), 7.0)])},
    ),
    "cast": ({"a": {"to": "b", "op": {"op": "cast", "from": "F16", "to": "F32"}}}, {"a": W.half()}, {"b": W}),
    "reshape": (
        {"a": {"to": "b", "op": "reshape", "to_shape": 1}},
        {"a": W},
        {"b": W.reshape(2, 3, 4)},
    ),
}
OPERATIONS["reshape"][0]["a"] = {"to": "b", "op": {"op": "reshape", "to": ["ranks", "three", -1], "back": [6, -1]}}


@pytest.mark.parametrize("what", OPERATIONS)
def test_an_operation_makes_what_it_says_and_its_inverse_restores_it(what):
    rules, theirs, ours = OPERATIONS[what]
    keymap, config = a_map(rules=rules), {"three": 3, "ranks": 2}
    plan = keymap.forward(infos(theirs), config)
    made = plan.run(theirs.__getitem__)
    assert equal(made, ours)
    assert {name: info.shape for name, info in plan.outputs.items()} == {
        name: tuple(t.shape) for name, t in ours.items()
    }
    again = keymap.back(infos(made), config).run(made.__getitem__)
    assert equal(again, theirs)


@pytest.mark.parametrize("what", ["join", "stack", "stack over a number", "join over ranks"])
def test_the_order_of_names_in_a_file_does_not_matter(what):
    rules, theirs, ours = OPERATIONS[what]
    shuffled = dict(reversed(theirs.items()))
    assert equal(a_map(rules=rules).forward(infos(shuffled), {"three": 3, "ranks": 2}).run(theirs.__getitem__), ours)


def test_a_flexible_join_takes_as_many_pieces_as_the_file_has():
    rules = {"rank{r}": {"to": "b", "op": "join", "over": "r", "parts": 2, "flexible": True}}
    keymap, theirs = a_map(rules=rules), {f"rank{r}": W[2 * r : 2 * r + 2] for r in range(3)}
    ours = keymap.forward(infos(theirs), {}).run(theirs.__getitem__)
    assert equal(ours, {"b": W})
    assert equal(keymap.back(infos(ours), {}).run(ours.__getitem__), {"rank0": W[:3], "rank1": W[3:]})


def test_a_head_without_tensors_is_written_where_no_rule_makes_one():
    lines = {
        "rules": {
            "a": "b",
            "top": {"to": "heads.top.weight", "head": "top", "when": "!tied"},
            "other": {"to": "heads.other.weight", "head": "other"},
        },
        "tie": {"top": {"of": "a", "head": "top", "when": "tied"}},
        "config": {"tied": "tied"},
    }
    keymap, ours = a_map(**lines), {"b": W}
    plan = keymap.back(infos(ours), {"tied": True}, tied_heads=("top", "other"), ties=True)
    assert plan.heads == {"top"}
    assert equal(plan.run(ours.__getitem__), {"a": W, "top": W})
    assert not keymap.back(infos(ours), {"tied": False}, tied_heads=("top",)).heads


def test_a_copy_that_canonical_files_hold_is_always_written():
    rules = {"a": {"to": "b", "op": "transpose"}}
    ours = {"b": W}
    for canonical_copy, ties, expected in [
        (True, False, {"a", "copy"}),
        (False, False, {"a"}),
        (False, True, {"a", "copy"}),
    ]:
        keymap = a_map(rules=rules, tie={"copy": {"of": "a", "canonical": canonical_copy}})
        made = keymap.back(infos(ours), {}, ties=ties).run(ours.__getitem__)
        assert set(made) == expected
        assert all(torch.equal(tensor, W.T) for tensor in made.values())


def test_what_rows_throw_away_is_told():
    rules, theirs, _ = OPERATIONS["rows"]
    assert a_map(rules=rules).forward(infos(theirs), {}).losses == {"b": "padding rows"}


def test_tensors_that_must_be_copies_of_one_are_held_against_each_other():
    with pytest.raises(CheckpointError, match="2 tensors that must be copies of one differ"):
        Copies(2).inverse().run([torch.zeros(3), torch.ones(3)])


MISFITS = {
    "split that does not divide": ("equal split", {"a": torch.zeros(7, 4)}, "does not fit"),
    "copies of two sizes": ("same", {"x": torch.zeros(3), "y": torch.ones(4)}, "same needs equal shapes"),
    "transpose of a vector": ("transpose", {"a": torch.zeros(7)}, "needs 2 axes"),
    "join that lacks a piece": ("join", {"x": W}, "needs 'y' beside 'x'"),
    "join of unequal pieces": ("join", {"x": W, "y": W[:, :1]}, "needs lengths"),
    "stack with a gap": ("stack over a number", {"e.0.x0": W, "e.0.x2": W}, "without gaps"),
    "join of another number of ranks": ("join over ranks", {"rank0.1": W}, "join needs 2 tensors, the file has 1"),
    "a number of copies that the map does not allow": (
        "the same in every rank",
        {"rank0": W},
        "same needs 2 tensors, the file has 1",
    ),
    "pieces that do not hold the parts": (
        "join of ranks whose pieces hold several parts",
        {"rank0": W[:2], "rank1": W[2:4]},
        "pieces of 3 parts",
    ),
    "join of two dtypes": ("join", {"x": W[:, :2], "y": W[:, 2:].half()}, "several dtypes"),
    "rows of a short tensor": ("rows", {"a": torch.zeros(2, 4)}, "has only 2"),
    "cast of another dtype": ("cast", {"a": W}, "got a tensor of F32"),
    "reshape that does not fit": ("reshape", {"a": torch.zeros(5)}, "does not fit"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_tensor_that_an_operation_cannot_take_is_named(what):
    operation, theirs, expected = MISFITS[what]
    with pytest.raises(CheckpointError) as error:
        a_map(rules=OPERATIONS[operation][0]).forward(infos(theirs), {"three": 3, "ranks": 2})
    assert expected in str(error.value)
    assert repr(next(iter(theirs))) in str(error.value)


def test_a_passenger_travels_both_ways_under_its_own_name():
    keymap = a_map(
        prefixes=["m.", ""],
        rules={"a": {"to": "heads.x.a", "head": "x"}, "b": "c"},
        passenger={"extra.{i}": "never used"},
    )
    theirs = {"a": W, "m.b": W + 1, "m.extra.0": W + 2}
    plan = keymap.forward(infos(theirs), {})
    ours = plan.run(theirs.__getitem__)
    assert equal(ours, {"heads.x.a": W, "c": W + 1, "extra.0": W + 2})
    assert plan.passengers == ("extra.0",)
    assert equal(keymap.back(infos(ours), {}).run(ours.__getitem__), theirs)


# --- what a file may not do -------------------------------------------------------------------------------------------


def hf_bert(heads=("masked_lm", "next_sentence"), config=BERT, **options):
    """A file in layout hf-bert, our tensors, the map."""
    keymap = layouts.load("hf-bert")
    ours = drawn(canonical("bert", config, heads))
    return keymap.back(infos(ours), config, **options).run(ours.__getitem__), ours, keymap


def refused(keymap, theirs, config=BERT, **options):
    with pytest.raises(CheckpointError) as error:
        keymap.forward(infos(theirs), config, **options)
    return str(error.value)


def test_a_key_without_rule_is_named_with_the_closest_and_the_fix():
    theirs, _, keymap = hf_bert()
    theirs["bert.encoder.layer.0.attention.self.quary.weight"] = W
    message = refused(keymap, theirs)
    assert "'bert.encoder.layer.0.attention.self.quary.weight' meets no rule" in message
    assert "attention.self.query.weight" in message
    assert "add a rule" in message


def test_a_backbone_key_without_the_prefix_of_the_others_is_named():
    theirs, _, keymap = hf_bert()
    theirs["pooler.dense.weight"] = theirs.pop("bert.pooler.dense.weight")
    assert "with the prefix 'bert.'" in refused(keymap, theirs)


def test_a_missing_key_is_named_even_without_targets():
    theirs, ours, keymap = hf_bert()
    del theirs["bert.encoder.layer.1.output.dense.bias"]
    wanted = "nothing in the file makes 'encoder.blocks.1.feed_forward.down.bias'"
    assert wanted in refused(keymap, theirs)
    assert wanted in refused(keymap, theirs, targets=infos(ours))


def test_half_a_head_is_an_error():
    theirs, _, keymap = hf_bert()
    del theirs["cls.predictions.transform.dense.weight"]
    assert "'heads.masked_lm.dense.weight'" in refused(keymap, theirs)


def test_a_layer_beyond_the_config_is_named():
    theirs, _, keymap = hf_bert()
    assert "has number 1, but num_layers=1" in refused(keymap, theirs, {**BERT, "num_layers": 1})


def test_a_wrong_shape_is_named_on_both_sides():
    theirs, ours, keymap = hf_bert()
    theirs["bert.pooler.dense.bias"] = torch.zeros(9)
    message = refused(keymap, theirs, targets=infos(ours))
    assert "'bert.pooler.dense.bias' gives 'pooler.dense.bias' the shape (9,), the config needs (8,)" in message


def test_two_spellings_of_one_tensor_in_a_file_are_refused():
    theirs, _, keymap = hf_bert()
    theirs["bert.embeddings.LayerNorm.gamma"] = theirs["bert.embeddings.LayerNorm.weight"]
    assert "both mean 'embeddings.LayerNorm.weight'" in refused(keymap, theirs)


def test_inspecting_lists_the_problems_instead():
    theirs, _, keymap = hf_bert()
    theirs["bert.strange"] = W
    del theirs["bert.pooler.dense.bias"]
    plan = keymap.forward(infos(theirs), BERT, inspect=True)
    assert len(plan.problems) == 2
    assert plan.missing == ("pooler.dense.bias",)


def test_heads_nobody_asked_for_are_told_and_left_out():
    theirs, _, keymap = hf_bert()
    theirs["qa_outputs.weight"], theirs["crf.transitions"] = torch.zeros(2, 8), W
    theirs["qa_outputs.bias"] = torch.zeros(2)
    plan = keymap.forward(infos(theirs), BERT, heads=["masked_lm"])
    assert plan.heads == {"masked_lm"}
    assert plan.left_out["qa_outputs.weight"] == "head 'question_answering', which nobody asked for"
    assert plan.left_out["crf.transitions"] == "a conditional random field over the tokens"
    assert "cls.seq_relationship.bias" in plan.left_out
    assert not any(name.startswith("heads.") and "masked_lm" not in name for name in plan.outputs)


def test_a_head_that_the_file_lacks_is_told_to_the_caller():
    theirs, _, keymap = hf_bert()
    targets = canonical("bert", BERT, ("sequence_classification",))
    plan = keymap.forward(infos(theirs), BERT, targets=targets)
    assert plan.absent_heads == {"sequence_classification"}
    assert plan.missing == ()


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "token_classification"),
        ({"architectures": ["BertForMultipleChoice"]}, "multiple_choice"),
        ({"heads": ["sequence_classification"]}, "sequence_classification"),
        ({"heads": ["token_classification", "masked_lm"]}, "token_classification"),
        (
            {"architectures": ["BertForTokenClassification"], "heads": ["sequence_classification"]},
            "sequence_classification",
        ),
    ],
)
def test_whose_head_a_classifier_is_says_the_caller_or_the_config(options, head):
    theirs, _, keymap = hf_bert(("sequence_classification",))
    plan = keymap.forward(infos(theirs), BERT, **options)
    assert plan.heads == {head}
    assert plan.outputs[f"heads.{head}.weight"].shape == (3, 8)


def test_whose_head_a_classifier_is_is_never_guessed():
    theirs, _, keymap = hf_bert(("sequence_classification",))
    plan = keymap.forward(infos(theirs), BERT)
    assert plan.heads == frozenset()
    assert "may be the head 'sequence_classification' or 'token_classification'" in plan.left_out["classifier.weight"]
    assert "say which one" in refused(keymap, theirs, heads=["sequence_classification", "multiple_choice"])


def test_a_pooler_that_the_config_does_not_want_is_left_out_and_told():
    theirs, _, keymap = hf_bert()
    plan = keymap.forward(infos(theirs), {**BERT, "pooler": False})
    assert plan.left_out["bert.pooler.dense.weight"] == "the config asks for no pooler"


# --- spellings of the Hugging Face layouts ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.parametrize("wrapper", ["", "module.", "model.module."])
@pytest.mark.parametrize("old", [False, True])
def test_old_spellings_wrappers_copies_and_buffers_change_nothing(family, wrapper, old):
    keymap, config = layouts.load(f"hf-{family}"), CONFIGS[family]
    ours = drawn(canonical(family, config, ("masked_lm",)))
    theirs = keymap.back(infos(ours), config, ties=True).run(ours.__getitem__)
    decoder = "cls.predictions.decoder" if family == "bert" else "predictions.decoder"
    assert {f"{decoder}.weight", f"{decoder}.bias"} <= set(theirs)
    theirs[f"{family}.embeddings.position_ids"] = torch.arange(16)[None]
    if old:
        theirs = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for name, t in theirs.items()
        }
    theirs = {wrapper + name: tensor for name, tensor in theirs.items()}
    plan = keymap.forward(infos(theirs), config)
    assert equal(plan.run(theirs.__getitem__), ours)
    assert len(plan.ties) == 2


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_bare_encoder_is_written_and_read_without_prefix(family):
    keymap, config = layouts.load(f"hf-{family}"), CONFIGS[family]
    ours = drawn(canonical(family, config))
    theirs = keymap.back(infos(ours), config).run(ours.__getitem__)
    assert "embeddings.word_embeddings.weight" in theirs
    assert equal(keymap.forward(infos(theirs), config).run(theirs.__getitem__), ours)


def test_a_copy_stands_in_for_an_original_that_a_writer_of_shared_tensors_left_out():
    theirs, ours, keymap = hf_bert(("masked_lm",), ties=True)
    del theirs["bert.embeddings.word_embeddings.weight"], theirs["cls.predictions.bias"]
    plan = keymap.forward(infos(theirs), BERT)
    assert equal(plan.run(theirs.__getitem__), ours)
    assert len(plan.notes) == 2
    backbone = {name: tensor for name, tensor in ours.items() if not name.startswith("heads.")}
    assert equal(keymap.forward(infos(theirs), BERT, heads=[]).run(theirs.__getitem__), backbone)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_an_untied_decoder_is_a_tensor_of_its_own_and_brings_the_bias_that_counts(family):
    keymap, config = layouts.load(f"hf-{family}"), {**CONFIGS[family], "tie_word_embeddings": False}
    ours = drawn(canonical(family, config, ("masked_lm",)))
    theirs = keymap.back(infos(ours), config).run(ours.__getitem__)
    prefix = "cls.predictions" if family == "bert" else "predictions"
    assert torch.equal(theirs[f"{prefix}.bias"], theirs[f"{prefix}.decoder.bias"])
    theirs[f"{prefix}.bias"] = torch.full((20,), 5.0)
    plan = keymap.forward(infos(theirs), config)
    assert equal(plan.run(theirs.__getitem__), ours)
    assert "not used" in plan.dropped[f"{prefix}.bias"]
    del theirs[f"{prefix}.decoder.bias"]
    assert (keymap.forward(infos(theirs), config).run(theirs.__getitem__)["heads.masked_lm.bias"] == 5).all()


def test_optimizer_slots_of_a_tensorflow_checkpoint_are_dropped_with_a_reason():
    keymap = layouts.load("tf-bert")
    config = {**BERT, "activation": "gelu_tanh"}
    ours = drawn(canonical("bert", config, ("masked_lm",)))
    theirs = keymap.back(infos(ours), config).run(ours.__getitem__)
    slots = {f"{name}/{slot}": tensor for name, tensor in theirs.items() for slot in ("adam_m", "adam_v")}
    plan = keymap.forward(infos({**theirs, **slots, "global_step": torch.tensor(3)}), config)
    assert equal(plan.run(theirs.__getitem__), ours)
    assert len(plan.dropped) == len(slots) + 1
    hub = {f"module/{name}": tensor for name, tensor in theirs.items()}
    assert equal(keymap.forward(infos(hub), config).run(hub.__getitem__), ours)


def test_tensorflow_albert_leaves_out_a_mapping_that_changes_no_size():
    keymap, config = layouts.load("tf-albert"), {**ALBERT, "embedding_size": 8}
    ours = drawn(canonical("albert", config))
    plan = keymap.back(infos(ours), config)
    assert dict(plan.checks) == {"embeddings.projection.weight": "identity", "embeddings.projection.bias": "zeros"}
    theirs = plan.run(ours.__getitem__)
    made = keymap.forward(infos(theirs), config, targets=infos(ours)).run(theirs.__getitem__)
    assert torch.equal(made["embeddings.projection.weight"], torch.eye(8))
    assert not any("embedding_hidden_mapping_in" in name for name in theirs)


# --- golden files and random configs ----------------------------------------------------------------------------------


def golden(case):
    facts = json.loads((GOLDEN / case / "case.json").read_text())
    source = facts["source"]["object"]
    return load_file(GOLDEN / case / "weights.safetensors"), facts["config"], source.replace("(", ".").split(".")


@pytest.mark.parametrize("case", CASES)
def test_a_golden_file_is_recognised_and_comes_back_bit_for_bit(case):
    theirs, foreign, words = golden(case)
    archive = DictArchive(theirs)
    layout = layouts.recognise(archive, foreign)
    assert layout == ("tf-" if "/tf-" in case else "hf-") + ("albert" if "albert" in case else "bert")
    keymap = layouts.load(layout)
    config = keymap.config_forward(foreign, theirs)
    plan = keymap.forward(archive.tensors, config, architectures=words)
    assert not plan.left_out
    ours = plan.run(theirs.__getitem__)
    labels = theirs["classifier.bias"].numel() if "classifier.bias" in theirs else 0
    expected = canonical(keymap.family, config, tuple(plan.heads), labels)
    assert {name: tuple(t.shape) for name, t in ours.items()} == expected
    assert equal(keymap.back(infos(ours), config).run(ours.__getitem__), theirs)


def test_a_golden_tensorflow_kernel_is_transposed_and_its_output_weights_are_not():
    theirs, foreign, _ = golden("bert/tf-pretraining")
    keymap = layouts.load("tf-bert")
    ours = keymap.forward(infos(theirs), keymap.config_forward(foreign, theirs)).run(theirs.__getitem__)
    query = "bert/encoder/layer_1/attention/self/query/kernel"
    assert torch.equal(ours["encoder.blocks.1.attention.query.weight"], theirs[query].T)
    assert torch.equal(ours["heads.next_sentence.weight"], theirs["cls/seq_relationship/output_weights"])
    assert torch.equal(
        ours["encoder.blocks.0.attention_norm.weight"], theirs["bert/encoder/layer_0/attention/output/LayerNorm/gamma"]
    )


HEADS = {
    "hf-bert": [
        "masked_lm",
        "next_sentence",
        "question_answering",
        "sequence_classification",
        "token_classification",
        "multiple_choice",
    ],
    "tf-bert": ["masked_lm", "next_sentence", "sequence_classification", "question_answering"],
    "hf-albert": [
        "masked_lm",
        "sentence_order",
        "question_answering",
        "sequence_classification",
        "token_classification",
        "multiple_choice",
    ],
    "tf-albert": ["masked_lm", "sentence_order", "sequence_classification", "question_answering"],
}
ONE_CLASSIFIER = {"sequence_classification", "token_classification", "multiple_choice"}


@st.composite
def files(draw, layout):
    """A config of ours and some heads that the layout can hold."""
    family = layout.removeprefix("hf-").removeprefix("tf-")
    config = dict(CONFIGS[family])
    config["num_heads"] = draw(st.integers(1, 3))
    config["hidden_size"] = config["num_heads"] * draw(st.integers(1, 4))
    config |= {
        "num_layers": draw(st.integers(1, 12)),
        "vocab_size": draw(st.integers(2, 9)),
        "max_positions": draw(st.integers(1, 5)),
    }
    config |= {
        "num_segments": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 6)),
        "pooler": draw(st.booleans()),
    }
    if family == "albert":
        config["num_groups"] = draw(st.integers(1, config["num_layers"]))
        config |= {"num_inner_blocks": draw(st.integers(1, 3)), "embedding_size": draw(st.integers(1, 6))}
        if layout == "tf-albert" and config["embedding_size"] == config["hidden_size"]:
            config["embedding_size"] += 1
    if layout.startswith("hf-"):
        config["tie_word_embeddings"] = draw(st.booleans())
        config["activation"] = draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "silu", "tanh"]))
        config["classifier_dropout"] = draw(st.sampled_from([0.0, 0.3]))
        config["norm_eps"] = draw(st.sampled_from([1e-12, 1e-5]))
    else:
        config["activation"] = "gelu_tanh"
        del config["classifier_dropout"]
    heads = set(draw(st.lists(st.sampled_from(HEADS[layout]), max_size=3)))
    heads -= set(sorted(heads & ONE_CLASSIFIER)[1:])
    return config, tuple(sorted(heads))


@pytest.mark.parametrize("layout", HEADS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ours_survives_the_way_out_and_in_again_bit_for_bit(layout, data):
    config, heads = data.draw(files(layout))
    ties = data.draw(st.booleans())
    keymap = layouts.load(layout)
    ours = drawn(canonical(keymap.family, config, heads, labels=2))
    theirs = keymap.back(infos(ours), config, ties=ties).run(ours.__getitem__)
    again = keymap.forward(infos(theirs), config, targets=infos(ours))
    assert equal(again.run(theirs.__getitem__), ours)
    assert not again.left_out
    assert not again.absent_heads
    if not ties:
        written = keymap.back(again.outputs, config).run(ours.__getitem__)
        assert equal(written, theirs)
    assert keymap.config_forward(keymap.config_back(config, heads), theirs) == config


# --- against transformers ---------------------------------------------------------------------------------------------

TRANSFORMERS = {
    "BertModel": (),
    "BertForPreTraining": ("masked_lm", "next_sentence"),
    "BertForMaskedLM": ("masked_lm",),
    "BertForNextSentencePrediction": ("next_sentence",),
    "BertForSequenceClassification": ("sequence_classification",),
    "BertForTokenClassification": ("token_classification",),
    "BertForQuestionAnswering": ("question_answering",),
    "BertForMultipleChoice": ("multiple_choice",),
    "AlbertModel": (),
    "AlbertForPreTraining": ("masked_lm", "sentence_order"),
    "AlbertForMaskedLM": ("masked_lm",),
    "AlbertForSequenceClassification": ("sequence_classification",),
    "AlbertForTokenClassification": ("token_classification",),
    "AlbertForQuestionAnswering": ("question_answering",),
    "AlbertForMultipleChoice": ("multiple_choice",),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_names_shapes_and_config_are_those_of_transformers_exactly(name, tied):
    transformers = pytest.importorskip("transformers")
    family = "albert" if name.startswith("Albert") else "bert"
    keymap = layouts.load(f"hf-{family}")
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    sizes["num_labels"] = labels = 3 if TRANSFORMERS[name] and TRANSFORMERS[name][0] in ONE_CLASSIFIER else 2
    if family == "albert":
        sizes |= {"embedding_size": 4, "num_hidden_groups": 2, "inner_group_num": 2}
    theirs_class = getattr(transformers, name)
    with torch.device("meta"):
        model = theirs_class(theirs_class.config_class(**sizes, tie_word_embeddings=tied))
    theirs = {key: Info(tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    foreign = {**model.config.to_dict(), "architectures": [name]}
    config = keymap.config_forward(foreign, theirs)
    assert config["tie_word_embeddings"] is tied
    shapes = canonical(family, config, TRANSFORMERS[name])
    plan = keymap.forward(theirs, config, architectures=[name], targets=shapes)
    assert not plan.left_out
    assert not plan.absent_heads
    back = keymap.back(shapes, config, ties=True)
    assert {key: info.shape for key, info in back.outputs.items()} == {key: info.shape for key, info in theirs.items()}
    written = keymap.config_back(config, plan.heads)
    assert written["architectures"] == [name]
    assert theirs_class.config_class(**written, num_labels=labels).to_dict() == {
        "position_embedding_type": "absolute",  # read by transformers before 5, as is
        **model.config.to_dict(),
        "architectures": [name],
    }


def test_saved_files_of_transformers_hold_what_the_way_back_writes(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    model = transformers.BertForPreTraining(transformers.BertConfig(**sizes))
    model.save_pretrained(tmp_path)
    theirs, foreign = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    keymap = layouts.load("hf-bert")
    config = keymap.config_forward(foreign, theirs)
    ours = keymap.forward(infos(theirs), config).run(theirs.__getitem__)
    assert equal(keymap.back(infos(ours), config).run(ours.__getitem__), theirs)


# --- configs ----------------------------------------------------------------------------------------------------------

HF_BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_act": "gelu",
}
HUB_NOISE = {
    "architectures": ["BertForMaskedLM"],
    "gradient_checkpointing": False,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "dtype": "float32",
    "_name_or_path": "x",
    "transformers_version": "4.6.0.dev0",
    "use_cache": True,
    "id2label": {"0": "a"},
    "label2id": {"a": 0},
    "problem_type": None,
    "output_past": True,
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "is_decoder": False,
    "add_cross_attention": None,
    "pruned_heads": {},
    "num_labels": 50,
    "finetuning_task": "x",
    "do_sample": False,
    "tokenizer_class": None,
}


def test_what_hub_configs_say_besides_changes_nothing():
    keymap = layouts.load("hf-bert")
    assert keymap.config_forward({**HF_BERT, **HUB_NOISE}) == keymap.config_forward(HF_BERT)
    assert keymap.task_options({**HF_BERT, **HUB_NOISE})["num_labels"] == 50


def test_defaults_stand_in_for_keys_of_a_later_day():
    config = layouts.load("tf-bert").config_forward(
        {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    )
    assert config["norm_eps"] == 1e-12
    assert config["activation"] == "gelu_tanh"
    assert config["num_segments"] == 16  # of that code's class; the published configs all say 2
    assert config["tie_word_embeddings"] is True


BAD_CONFIGS = {
    "an unknown key": ({"hiden_size": 8}, ["'hiden_size'", "'hidden_size'"]),
    "an unknown activation": ({"hidden_act": "gelo"}, ["'hidden_act' is 'gelo'", "'gelu'"]),
    "a decoder": ({"is_decoder": True}, ["'is_decoder' is True", "causal"]),
    "cross-attention": ({"add_cross_attention": True}, ["'add_cross_attention' is True"]),
    "relative positions": ({"position_embedding_type": "relative_key"}, ["relative_key", "'absolute'"]),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
    "quantised weights": ({"quantization_config": {"bits": 8}}, ["quantization_config"]),
    "another model": ({"model_type": "roberta"}, ["layout hf-bert is for model_type='bert'", "'roberta'"]),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_config_that_cannot_be_translated_names_the_key_and_the_fix(what):
    change, expected = BAD_CONFIGS[what]
    with pytest.raises(ConfigError) as error:
        layouts.load("hf-bert").config_forward({**HF_BERT, **change})
    assert all(word in str(error.value) for word in expected)


def test_a_config_without_a_size_names_it():
    with pytest.raises(ConfigError, match="lacks 'vocab_size'"):
        layouts.load("hf-bert").config_forward({key: value for key, value in HF_BERT.items() if key != "vocab_size"})


@pytest.mark.parametrize(
    ("layout", "change", "expected"),
    [
        ("tf-bert", {"norm_eps": 1e-5}, "always 1e-12"),
        ("tf-bert", {"activation": "gelu"}, "cannot say activation='gelu'"),
        ("tf-bert", {"tie_word_embeddings": False}, "cannot say tie_word_embeddings"),
        ("hf-bert", {"activation": "mish"}, "cannot say activation='mish'"),
        ("hf-bert", {"embedding_size": 4}, "no key for our field 'embedding_size'"),
    ],
)
def test_a_config_that_a_layout_cannot_say_is_refused(layout, change, expected):
    config = {**BERT, "activation": "gelu_tanh", **change}
    with pytest.raises(ConfigError, match=expected):
        layouts.load(layout).config_back(config)


def test_each_activation_word_has_one_meaning_and_one_way_back():
    keymap = layouts.load("hf-bert")
    meanings = {
        word: keymap.config_forward({**HF_BERT, "hidden_act": word})["activation"]
        for word in ("gelu", "gelu_new", "gelu_pytorch_tanh", "swish")
    }
    assert meanings == {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
    assert keymap.config_back({**BERT, "activation": "silu"})["hidden_act"] == "silu"
    assert keymap.config_back({**BERT, "activation": "gelu_tanh"})["hidden_act"] == "gelu_new"


# --- recognising ------------------------------------------------------------------------------------------------------


def test_a_layout_is_recognised_without_model_type_and_without_config():
    theirs, _, _ = hf_bert()
    assert layouts.recognise(DictArchive(theirs), {"hidden_size": 8}) == "hf-bert"
    assert layouts.recognise(DictArchive(theirs)) == "hf-bert"


def test_our_own_names_are_recognised_as_ours():
    assert layouts.recognise(DictArchive(drawn(canonical("bert", BERT)))) == "zoo"


def test_an_unknown_file_lists_every_candidate_and_why_not():
    with pytest.raises(CheckpointError) as error:
        layouts.recognise(DictArchive({"a": W}), {"model_type": "llama"})
    assert all(layout in str(error.value) for layout in layouts.available())
    assert "'llama'" in str(error.value)


def test_the_config_and_the_keys_may_not_contradict_each_other():
    theirs, _, _ = hf_bert()
    with pytest.raises(CheckpointError, match="hf-albert: lacks"):
        layouts.recognise(DictArchive(theirs), {"model_type": "albert"})


def test_the_wrong_layout_named_by_the_user_says_what_does_not_fit():
    theirs, _, _ = hf_bert()
    assert "meets no rule" in refused(layouts.load("hf-albert"), theirs, ALBERT)


def test_a_checkpoint_alone_says_which_config_it_needs():
    error = layouts.config_wanted(layouts.load("tf-albert"), Path("model.ckpt-best"))
    assert "albert_config.json" in str(error)


def test_a_user_may_bring_a_map_of_their_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('family = "bert"\nlayout = "mine"\nversion = 1\n[rules]\n"w" = "embeddings.token.weight"\n')
    plan = layouts.load(path).forward({"w": Info((2, 3))}, {})
    assert list(plan.outputs) == ["embeddings.token.weight"]


def test_a_tensors_size_may_win_over_what_the_config_says():
    table = {
        "words": {"to": "vocab_size", "size_of": ["table.weight", 0]},
        "defaults": {"words": 5},
    }
    read = ConfigMap.parse(table, "a-layout", "a.toml")
    assert read.forward({"words": 7}) == {"vocab_size": 7}
    assert read.forward({"words": 7}, ["table.weight"], {"table.weight": (9, 2)}) == {"vocab_size": 9}
    assert read.forward({}, ["other"], {"other": (9, 2)}) == {"vocab_size": 5}
    assert read.back({"vocab_size": 9}) == {"words": 9}
    with pytest.raises(MapError, match=r"write \[tensor, axis\]"):
        ConfigMap.parse({"words": {"to": "vocab_size", "size_of": "table.weight"}}, "a-layout", "a.toml")
