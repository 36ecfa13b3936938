"""RoBERTa's positions, and the ways in which its files are told from others and bring their config
along.
"""

from __future__ import annotations

import argparse

import pytest
import torch

import zoo
from tests.models.test_golden import GOLDEN
from tests.oracle import way_back
from tests.references.case import load_case
from tests.strategies import randomised
from zoo.errors import CheckpointError, ConfigError, InputError, MapError
from zoo.formats.memory import DictArchive
from zoo.maps import layouts
from zoo.maps.config_map import ConfigMap

SIZES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 9,
}
IDS = torch.tensor([[0, 9, 8, 7, 2], [0, 6, 2, 1, 1]])


def tiny(name: str = "roberta-base", **more: object) -> torch.nn.Module:
    return randomised(zoo.create(name, **{**SIZES, **more}), 1)


def test_positions_count_what_is_not_padding_and_begin_behind_its_id():
    embeddings = tiny().embeddings
    ids = torch.tensor([[1, 0, 9, 1, 8]])
    assert embeddings.count(ids, torch.zeros(1, 5, 8)).tolist() == [[1, 2, 3, 1, 4]]
    assert embeddings.count(None, torch.zeros(1, 3, 8)).tolist() == [[2, 3, 4]]


def test_a_text_longer_than_the_rows_behind_the_padding_id_is_refused():
    model = tiny()
    assert model(torch.full((1, 7), 5)).last_hidden_state.shape == (1, 7, 8)
    with pytest.raises(InputError, match="8 tokens long; this model reads 7"):
        model(torch.full((1, 8), 5))
    with pytest.raises(ConfigError, match="at least 3"):
        model.config.replace(max_positions=2)


def test_a_classifier_reads_the_first_token_and_needs_no_pooler():
    model = randomised(zoo.create("roberta-base", task="sequence-classification", num_labels=3, **SIZES), 2)
    assert model.model.pooler is None
    hidden = model.model(IDS, IDS != 1).last_hidden_state[:, 0]
    head = model.heads["sequence_classification"]
    assert torch.allclose(model(IDS, IDS != 1).logits, head.output(torch.tanh(head.dense(hidden))))


@pytest.mark.parametrize("args", [True, False])
def test_fairseqs_oldest_files_hold_query_key_and_value_in_one_matrix(args, tmp_path):
    case = load_case(GOLDEN / "xlm-roberta" / "mlm-fairseq-2019")
    apart = dict(case.weights)
    fused = {name: tensor for name, tensor in apart.items() if "_proj" not in name or "out_proj" in name}
    for i in range(2):
        where = f"decoder.sentence_encoder.layers.{i}.self_attn"
        for p in ("weight", "bias"):
            fused[f"{where}.in_proj_{p}"] = torch.cat([apart[f"{where}.{x}_proj.{p}"] for x in "qkv"])
    options = {key: value for key, value in case.config.items() if key != "vocab_size"} | {
        "lr": [1e-4],
        "arch": "roberta_base",
    }
    told = {"args": argparse.Namespace(**options)} if args else {"cfg": {"model": options, "task": {}}}
    torch.save({"model": fused, **told}, tmp_path / "model.pt")
    loaded = zoo.load(tmp_path / "model.pt", task="masked-lm")  # by the options in the file
    assert loaded.load_report.layout == "fairseq-roberta-fused"
    assert loaded.config.max_positions == 34
    other = zoo.load(apart, config=case.config, layout="fairseq-roberta", task="masked-lm")
    assert torch.equal(loaded(IDS).logits, other(IDS).logits)


def test_a_fairseq_file_has_no_pooler_and_converts_whole(tmp_path):
    case = load_case(GOLDEN / "xlm-roberta" / "mlm-fairseq-2019")
    zoo.convert(case.weights, tmp_path / "ours", config=case.config, layout="fairseq-roberta")
    model = zoo.load(tmp_path / "ours")
    assert model.config.pooler is False
    assert model.pooler is None
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="fairseq-roberta")
    again = zoo.load(tmp_path / "theirs", task="masked-lm")
    straight = zoo.load(case.weights, config=case.config, layout="fairseq-roberta", task="masked-lm")
    assert torch.equal(again(IDS).logits, straight(IDS).logits)


def test_a_fairseq_file_of_another_architecture_is_refused():
    case = load_case(GOLDEN / "xlm-roberta" / "mlm-fairseq")
    with pytest.raises(ConfigError, match="encoder_normalize_before"):
        zoo.load(case.weights, config={**case.config, "encoder_normalize_before": True})


def test_a_segment_row_that_is_not_zero_has_no_place_in_fairseqs_layout(tmp_path):
    model = zoo.create("roberta-base", task="masked-lm", **SIZES)
    folder = zoo.save(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="segment"):
        zoo.convert(folder, tmp_path / "theirs.safetensors", to="fairseq-roberta")


def test_bare_files_with_berts_names_are_robertas_only_where_the_config_says_so():
    bare = way_back("hf-roberta", tiny(), None)
    bare = {name.removeprefix("roberta."): tensor for name, tensor in bare.items()}
    marked = {f"roberta.{name}": tensor for name, tensor in bare.items()}
    assert layouts.recognise(DictArchive(bare), {"model_type": "roberta"}) == "hf-roberta"
    assert layouts.recognise(DictArchive(bare), {"model_type": "xlm-roberta"}) == "hf-xlm-roberta"
    assert layouts.recognise(DictArchive(marked), {}) == "hf-roberta"
    assert layouts.recognise(DictArchive(bare), {}) != "hf-roberta"


def test_a_field_may_be_the_size_of_a_tensor():
    read = ConfigMap.parse({"from_shapes": {"rows": ["table.weight", 0]}}, "a-layout", "a.toml")
    assert read.forward({}, ["table.weight"], {"table.weight": (7, 3)}) == {"rows": 7}
    assert read.forward({}) == {}
    with pytest.raises(MapError, match="write \\[tensor, axis\\]"):
        ConfigMap.parse({"from_shapes": {"rows": "table.weight"}}, "a-layout", "a.toml")


def test_keys_may_be_ignored_by_a_pattern_but_not_those_that_are_guarded():
    table = {"ignored": {"lr*": "of the run"}, "only": {"lr_model": {"value": 1, "reason": "another model"}}}
    read = ConfigMap.parse(table, "a-layout", "a.toml")
    assert read.forward({"lr_decay": 3, "lr_model": 1}) == {}
    with pytest.raises(ConfigError, match="another model"):
        read.forward({"lr_model": 2})
    with pytest.raises(ConfigError, match="unknown"):
        read.forward({"rate": 2})
