"""Bad input is refused where it enters, by a ZooError that says what was wrong, the value, and what
would be right.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests import oracle
from tests.strategies import build, families, family, small_batch, small_config, states, tasks_of
from zoo.errors import CheckpointError, ConfigError, InputError, TaskError, UnknownNameError, ZooError

SMALL = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 11,
    "max_positions": 10,
    "num_segments": 2,
}
IDS = torch.tensor([[5, 6, 7], [8, 9, 1]])
TEXT_FAMILIES = [name for name in families() if "masked-lm" in tasks_of(name) and not hasattr(family(name), "states")]


@functools.cache
def model(task: str | None = None, name: str = "bert-base", **options: Any) -> Any:
    return zoo.create(name, task=task, **SMALL, **options).eval()


def names_three(error: pytest.ExceptionInfo[BaseException], *wanted: str) -> None:
    """The message offers three names, the wanted ones among them."""
    message = str(error.value)
    offered = message.split("did you mean ")[1].split("?")[0].split(", ")
    assert len(offered) == 3
    for name in wanted:
        assert repr(name) in offered, message


# -- names -------------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_the_three_closest():
    with pytest.raises(UnknownNameError) as error:
        zoo.create("albert-bsae")
    names_three(error, "albert-base")
    assert "'albert-bsae'" in str(error.value)
    assert isinstance(error.value, LookupError)
    for call in (zoo.config, zoo.info, zoo.tokenizer):
        with pytest.raises(UnknownNameError):
            call("albert-bsae")


def test_an_unknown_tag_is_refused_with_those_there_are():
    for call in (zoo.create, zoo.config, zoo.info):
        with pytest.raises(UnknownNameError, match="v3") as error:
            call("albert-base.v3")
        assert "'v2'" in str(error.value)
        assert "'v1'" in str(error.value)
        assert "albert-base" in str(error.value)


def test_a_tag_without_a_source_never_gives_random_weights():
    variant = next(
        n for n in zoo.list_models() if not any(m.startswith(f"{n}.") for m in zoo.list_models(pretrained=True))
    )
    with pytest.raises(ZooError):
        zoo.create(variant, pretrained=True)


def test_an_unknown_task_is_refused_with_the_three_closest():
    for call in (lambda: zoo.create("bert-base", task="masked_lm"), lambda: zoo.list_models(task="masked_lm")):
        with pytest.raises(UnknownNameError) as error:
            call()
        names_three(error, "masked-lm")


def test_an_unknown_field_is_refused_with_the_three_closest():
    for call in (lambda: zoo.create("bert-base", num_layer=3), lambda: zoo.config("bert-base").replace(num_layer=3)):
        with pytest.raises(UnknownNameError, match="'num_layer'") as error:
            call()
        names_three(error, "num_layers")


def test_a_tasks_option_without_its_task_says_so():
    with pytest.raises(UnknownNameError, match=r"num_labels.*task"):
        zoo.create("bert-base", num_labels=3)
    with pytest.raises(UnknownNameError):
        zoo.create("bert-base", task="masked-lm", num_labels=3)


def test_an_unknown_layout_is_refused_with_the_three_closest():
    with pytest.raises(UnknownNameError, match="'hf-brt'") as error:
        zoo.load({"x": torch.zeros(1)}, layout="hf-brt", config={})
    names_three(error, "hf-bert")


def test_an_unknown_filter_of_the_list_is_refused():
    for wrong in ({"pillar": "lightwieght"}, {"family": "brt"}, {"fusion": "co-atention"}):
        with pytest.raises(UnknownNameError):
            zoo.list_models(**wrong)
    assert zoo.list_models("no-such-*") == []


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_heads": 7}, "num_heads=7 does not divide hidden_size=768; the nearest that does is (6|8)"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"vocab_size": -4}, "vocab_size=-4 must be at least 1"),
        ({"num_layers": 2.0}, "num_layers must be int, got 2.0"),
        ({"num_layers": True}, "num_layers must be int, got True"),
        ({"num_layers": "12"}, "num_layers must be int, got '12'"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"activation": "gleu"}, "'gleu'.*'gelu'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be bool, got 1"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(fields, says):
    with pytest.raises(ZooError, match=says):
        zoo.create("bert-base", device="meta", **fields)


def test_albert_groups_must_fit_its_layers():
    with pytest.raises(ConfigError, match="num_groups=13 must lie between 1 and num_layers=12"):
        zoo.config("albert-base").replace(num_groups=13)
    with pytest.raises(ConfigError, match="num_groups=0"):
        zoo.config("albert-base").replace(num_groups=0)


def test_a_config_is_frozen():
    with pytest.raises(AttributeError):
        zoo.config("bert-base").num_layers = 3


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_FAMILIES)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attention_mask": torch.zeros(2, 3)}, "float32, which looks additive"),
        ({"attention_mask": torch.zeros(2, 3, dtype=torch.bfloat16)}, "bfloat16, which looks additive"),
        ({"attention_mask": torch.ones(2, 4, dtype=torch.int64)}, r"\(2, 3\).*got \(2, 4\)"),
        ({"attention_mask": torch.ones(3, 3, dtype=torch.int64)}, r"\(2, 3\).*got \(3, 3\)"),
        ({"attention_mask": torch.ones(3, dtype=torch.int64)}, r"got \(3,\)"),
        ({"attention_mask": torch.ones(2, 1, 1, 3, dtype=torch.int64)}, r"got \(2, 1, 1, 3\)"),
        ({"attention_mask": torch.ones(2, 3, 4, dtype=torch.bool)}, r"\(2, 3, 3\).*got \(2, 3, 4\)"),
        ({"attention_mask": [[1, 1, 1], [1, 1, 0]]}, "must be a tensor, got list"),
        ({"input_ids": torch.tensor([[1, 19, 2]])}, r"input_ids must lie in 0\.\.18, got 19"),
        ({"input_ids": torch.tensor([[1, -1, 2]])}, r"input_ids must lie in 0\.\.18, got -1"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids must be \(batch, length\), got \(2,\)"),
        ({"input_ids": torch.ones(2, 3)}, "input_ids must hold integers, got torch.float32"),
        ({"input_ids": [[1, 2]]}, "input_ids must hold integers, got list"),
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds, got neither"),
        ({"inputs_embeds": torch.zeros(2, 3, 8)}, "exactly one of input_ids and inputs_embeds, got both"),
        (
            {"input_ids": torch.ones(1, 11, dtype=torch.int64)},
            "11 tokens long; this model (has 10 positions|reads 10):",
        ),
        ({"position_ids": torch.tensor([[0, 1, 99], [0, 1, 2]])}, r"position_ids must lie in 0\.\.(9|15), got 99"),
        ({"position_ids": torch.tensor([[0, 1]])}, r"position_ids must be \(batch, length\)"),
        ({"lengths": [3]}, "lengths must be 2 numbers from 0 to 3, got"),
        ({"lengths": [3, 4]}, "lengths must be 2 numbers from 0 to 3, got"),
    ],
)
def test_inputs_of_another_kind_are_refused_saying_why(name, given, says):
    ours = _small_model(name)
    ids = given.get("input_ids", IDS)
    more = (
        {"language_ids": torch.zeros_like(ids)}
        if _needs_language(ours) and isinstance(ids, torch.Tensor) and ids.dim() == 2
        else {}
    )
    with pytest.raises(InputError, match=says):
        ours(**{"input_ids": IDS, **more, **given})


@functools.cache
def _small_model(name: str) -> Any:
    return build(name, small_config(name))


def _needs_language(ours: Any) -> bool:
    return getattr(ours.config, "language_embeddings", False)


def test_inputs_embeds_of_another_width_are_refused():
    with pytest.raises(InputError, match=r"inputs_embeds must be \(batch, length, 8\), got \(2, 3, 9\)"):
        model()(inputs_embeds=torch.zeros(2, 3, 9))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.tensor([[0, 1, 2], [0, 0, 0]]), r"token_type_ids must lie in 0\.\.1, got 2"),
        (torch.zeros(2, 4, dtype=torch.int64), r"token_type_ids must be \(batch, length\) = \(2, 3\).*got \(2, 4\)"),
        (torch.zeros(2, 3), "token_type_ids must hold integers, got torch.float32"),
    ],
)
def test_segments_of_another_kind_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        model()(IDS, token_type_ids=given)


def test_a_model_without_a_pooler_says_so_where_it_is_needed():
    bare = zoo.create("bert-base", **SMALL, pooler=False)
    assert bare(IDS).pooler_output is None


# -- tasks and labels --------------------------------------------------------------------------------------------------


def test_a_task_that_does_not_fit_is_refused_with_those_that_do():
    with pytest.raises(TaskError, match="'sentence-order' does not fit bert-base") as error:
        zoo.create("bert-base", task="sentence-order")
    for fitting in tasks_of("bert"):
        assert fitting in str(error.value)
    assert "sentence_order head" in str(error.value)


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        (
            "masked-lm",
            {"labels": torch.zeros(2, 4, dtype=torch.int64)},
            r"labels must have shape \(2, 3\), got \(2, 4\)",
        ),
        ("masked-lm", {"labels": torch.full((2, 3), 19)}, r"labels must lie in 0\.\.18 .*got 19\.\.19"),
        ("masked-lm", {"labels": torch.full((2, 3), -1)}, r"labels must lie in 0\.\.18 .*-100.*got -1"),
        ("masked-lm", {"labels": torch.zeros(2, 3)}, "labels must hold integers, got torch.float32"),
        ("token-classification", {"labels": torch.full((2, 3), 2)}, r"labels must lie in 0\.\.1"),
        ("token-classification", {"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must have shape \(2, 3\)"),
        ("sequence-classification", {"labels": torch.tensor([0, 2])}, r"labels must lie in 0\.\.1"),
        (
            "sequence-classification",
            {"labels": torch.tensor([[0], [1]])},
            r"labels must have shape \(2,\), got \(2, 1\)",
        ),
        ("sequence-classification", {"labels": torch.tensor([0, 1, 1])}, r"labels must have shape \(2,\), got \(3,\)"),
        ("sequence-classification", {"labels": torch.rand(2, 3)}, r"labels must have shape .*got \(2, 3\)"),
        ("next-sentence", {"labels": torch.tensor([0, 2])}, r"labels must lie in 0\.\.1"),
        ("next-sentence", {"labels": torch.tensor([0])}, r"labels must have shape \(2,\), got \(1,\)"),
        ("pretraining", {"sentence_order_label": torch.tensor([0, 1])}, "no sentence_order head"),
        ("pretraining", {"next_sentence_label": torch.tensor([0, 2])}, r"next_sentence_label must lie in 0\.\.1"),
        ("question-answering", {"start_positions": torch.tensor([0, 1])}, "both start_positions and end_positions"),
        (
            "question-answering",
            {"start_positions": torch.tensor([0]), "end_positions": torch.tensor([0, 1])},
            r"start_positions must have shape \(2,\), got \(1,\)",
        ),
        (
            "question-answering",
            {"start_positions": torch.tensor([0.0, 1.0]), "end_positions": torch.tensor([0, 1])},
            "start_positions must hold integers",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(task, labels, says):
    with pytest.raises(ZooError, match=says):
        model(task)(IDS, **labels)


def test_multiple_choice_takes_three_dimensions():
    with pytest.raises(InputError, match=r"\(batch, choices, length\) tensors, got \(2, 3\)"):
        model("multiple-choice")(IDS)
    with pytest.raises(TaskError, match=r"labels must lie in 0\.\.1"):
        model("multiple-choice")(IDS[None], labels=torch.tensor([2]))


@pytest.mark.parametrize("number", [0, -1, 2.5, "two"])
def test_a_number_of_labels_that_cannot_be_meant_is_refused(number):
    with pytest.raises(ConfigError, match="num_labels must be an integer of at least 1"):
        zoo.create("bert-base", device="meta", task="sequence-classification", num_labels=number)


def test_unknown_options_of_a_task_are_refused():
    with pytest.raises(ConfigError, match="pooling must be one of mean, max, cls, got 'median'"):
        zoo.create("bert-base", device="meta", task="sentence-embedding", pooling="median")
    with pytest.raises(ZooError, match=r"problem_type must be .*got 'ranking'"):
        zoo.create("bert-base", device="meta", task="sequence-classification", problem_type="ranking")(
            IDS, labels=torch.tensor([0, 1])
        )


# -- checkpoints -------------------------------------------------------------------------------------------------------


@functools.cache
def _foreign() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    ours = build("bert", small_config("bert"), "masked-lm", dtype=torch.float32)
    tensors = {name: tensor.float() for name, tensor in oracle.way_back("hf-bert", ours).items()}
    return tensors, family("bert").oracle(ours.config, "masked-lm", {}).config.to_dict()


def foreign() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A good checkpoint in the Hugging Face layout, to be spoiled."""
    tensors, config = _foreign()
    return dict(tensors), dict(config)


KEY = "bert.encoder.layer.1.attention.self.query.weight"


def test_the_checkpoint_that_these_tests_spoil_is_good():
    tensors, config = foreign()
    assert zoo.load(tensors, config=config, task="masked-lm").load_report.random == ()


def test_a_missing_tensor_is_refused_by_name():
    tensors, config = foreign()
    del tensors[KEY]
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.1\.attention\.query\.weight"):
        zoo.load(tensors, config=config)


def test_a_tensor_that_meets_no_rule_is_refused_with_the_closest_rules():
    tensors, config = foreign()
    tensors["bert.encoder.layer.0.attention.self.query.scale"] = torch.ones(8)
    with pytest.raises(CheckpointError, match=r"query\.scale"):
        zoo.load(tensors, config=config)


def test_a_layer_more_than_the_config_has_is_refused():
    tensors, config = foreign()
    with pytest.raises(CheckpointError, match="num_layers=1"):
        zoo.load(tensors, config={**config, "num_hidden_layers": 1})
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.2"):
        zoo.load(tensors, config={**config, "num_hidden_layers": 3})


@pytest.mark.parametrize("shape", [(8, 9), (8,), (64,), (1, 8, 8)])
def test_a_mis_shaped_tensor_is_refused_with_both_shapes(shape):
    tensors, config = foreign()
    tensors[KEY] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as error:
        zoo.load(tensors, config=config)
    assert str(tuple(shape)) in str(error.value)
    assert "(8, 8)" in str(error.value)


def test_a_stored_copy_that_differs_from_its_original_is_refused():
    tensors, config = foreign()
    tensors["cls.predictions.decoder.weight"] = tensors["cls.predictions.decoder.weight"] + 1
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.weight"):
        zoo.load(tensors, config=config, task="masked-lm")


def test_two_spellings_of_one_tensor_are_refused():
    tensors, config = foreign()
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"]
    with pytest.raises(CheckpointError, match="LayerNorm"):
        zoo.load(tensors, config=config)


def test_a_head_that_the_file_lacks_starts_at_random_and_is_named():
    tensors, config = foreign()
    tuned = zoo.load(tensors, config=config, task="token-classification", num_labels=3)
    assert set(tuned.load_report.random) == {"heads.token_classification.weight", "heads.token_classification.bias"}
    assert any("predictions" in name for name in tuned.load_report.left_out)


def test_tensors_of_no_known_layout_are_refused_with_the_candidates():
    with pytest.raises(CheckpointError, match="hf-bert"):
        zoo.load({"encoder.w": torch.zeros(2, 2)}, config={"model_type": "mystery"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "mish"}, "hidden_act.*'mish'"),
        ({"is_decoder": True}, "is_decoder.*True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type.*'relative_key'"),
        ({"hiden_size": 8}, "'hiden_size'.*closest.*'hidden_size'"),
    ],
)
def test_a_foreign_config_that_cannot_be_translated_is_refused(change, says):
    tensors, config = foreign()
    with pytest.raises(ConfigError, match=says):
        zoo.load(tensors, config={**config, **change})


def test_a_foreign_config_without_its_sizes_is_refused():
    tensors, config = foreign()
    del config["num_attention_heads"]
    with pytest.raises(ConfigError, match="num_attention_heads"):
        zoo.load(tensors, config=config)


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "relu"},
        {"norm_eps": 1e-5},
        {"num_layers": 1},
        {"hidden_size": 16},
        {"tie_word_embeddings": False},
        {"vocab_size": 20},
    ],
)
def test_an_override_that_contradicts_the_weights_is_refused(change, tmp_path):
    tensors, config = foreign()
    (name, value), *_ = change.items()
    folder = zoo.save(zoo.load(tensors, config=config), tmp_path / "saved")
    for load in (
        lambda: zoo.load(tensors, config=config, **change),
        lambda: zoo.load(folder, **change),
        lambda: zoo.create("bert-base", pretrained=str(folder), **change),
    ):
        with pytest.raises(ConfigError, match=f"{name}=.*contradicts the weights") as error:
            load()
        assert str(value) in str(error.value)


def test_an_override_that_changes_no_weight_is_taken():
    tensors, config = foreign()
    loaded = zoo.load(tensors, config=config, dropout=0.25, attention_dropout=0.5)
    assert (loaded.config.dropout, loaded.config.attention_dropout) == (0.25, 0.5)
    assert loaded.encoder.blocks[0].attention.dropout == 0.5
    assert loaded.encoder.blocks[0].dropout.p == 0.25


def test_a_checkpoint_of_another_family_is_refused():
    tensors, config = foreign()
    with pytest.raises(CheckpointError, match="albert"):
        zoo.create("albert-base", pretrained=_folder_of(tensors, config))


def _folder_of(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> str:
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    return str(folder)


@pytest.fixture
def saved(tmp_path):
    return zoo.save(build("bert", small_config("bert"), "masked-lm", dtype=torch.float32), tmp_path / "saved")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, keep):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        zoo.load(saved)


@pytest.mark.parametrize(
    "content", [b"a page that says no\n", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\noid 1\n"]
)
@pytest.mark.parametrize("name", ["weights.bin", "weights.pt", "weights.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        zoo.load(path, config=foreign()[1])


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        zoo.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        zoo.load(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        zoo.load(foreign()[0], config="nowhere.json")


def test_a_spoiled_folder_of_ours_is_refused(saved):
    weights, config = saved / "model.safetensors", saved / "config.json"
    good, described = load_file(weights), json.loads(config.read_text())

    def spoiled(tensors: dict[str, torch.Tensor], description: dict[str, Any] | str, says: str) -> None:
        save_file(tensors, weights)
        config.write_text(description if isinstance(description, str) else json.dumps(description))
        with pytest.raises(ZooError, match=says):
            zoo.load(saved)

    name = "encoder.blocks.0.attention.query.weight"
    spoiled({key: x for key, x in good.items() if key != name}, described, name)
    spoiled({**good, name: torch.zeros(8, 9)}, described, name)
    spoiled({**good, "encoder.blocks.0.attention.scale": torch.zeros(1)}, described, "scale")
    spoiled({key: x for key, x in good.items() if key != "heads.masked_lm.bias"}, described, "heads.masked_lm.bias")
    spoiled(good, "{", "JSON")
    spoiled(good, {**described, "zoo_format": 99}, "newer")
    spoiled(good, {**described, "class": "os:system", "model": None}, "os:system")
    spoiled(good, {**described, "config": {**described["config"], "num_head": 2}}, "num_head")
    save_file(good, weights)
    config.write_text(json.dumps(described))
    assert zoo.load(saved).task == "masked-lm"


def test_saving_onto_a_file_is_refused_and_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        zoo.save(model(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"

    class Broken:
        def save(self, folder):
            raise RuntimeError("no tokenizer today")

    with pytest.raises(RuntimeError):
        zoo.save(model(), tmp_path / "new", Broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# -- masks, lengths and types over all families ------------------------------------------------------------------------


def _masks(given: Any) -> list[str]:
    return [mask for mask in given.streams if mask in given.inputs]


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda real: (~real).long() * -10_000, "looks additive.*== 0"),
        (lambda real: (~real).int() * -10_000, "looks additive.*== 0"),
        (lambda real: (~real).float() * -10_000.0, "float32, which looks additive.*== 0"),
        (lambda real: torch.zeros(real.shape).masked_fill(~real, -torch.inf), "looks additive.*== 0"),
        (lambda real: real.float(), r"float32, which holds 1 at real tokens.*\.bool\(\)"),
        (lambda real: real.double(), r"float64, which holds 1 at real tokens.*\.bool\(\)"),
        (lambda real: real.long() * 2, "from 0 to 2.*may mean either"),
        (lambda real: real.to(torch.uint8) * 255, "from 0 to 255"),
        (lambda real: real.float() * 0.5, "float32, which may mean either"),
        (lambda real: real.to(torch.complex64), "complex64"),
        (lambda real: real.tolist(), "must be a tensor, got list"),
    ],
)
def test_only_masks_of_0_and_1_pass_and_others_are_told_which_way_round_they_are(name, change, says):
    batch = small_batch(name)
    masks = _masks(batch)
    assert masks
    for mask in masks:
        given = batch.inputs[mask].bool().clone()
        given.view(len(given), -1)[0, -1] = False  # something is padding
        with pytest.raises(InputError, match=f"{mask} .*{says}"):
            _small_model(name)(**{**batch.inputs, mask: change(given)})


def test_a_float_mask_of_ones_alone_is_not_taken_for_an_additive_one():
    with pytest.raises(InputError, match=r"pass `attention_mask\.bool\(\)`"):
        model()(IDS, attention_mask=torch.ones(2, 3))


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_narrow_integers_give_what_int64_gives(name, dtype, request):
    if dtype == torch.uint8:  # jaxtyping's Int leaves unsigned ones out
        jaxtyping.config.update("jaxtyping_disable", True)
        request.addfinalizer(functools.partial(jaxtyping.config.update, "jaxtyping_disable", False))
    batch = small_batch(name)
    narrow = {key: value if value.is_floating_point() else value.to(dtype) for key, value in batch.inputs.items()}
    if dtype == torch.uint8:  # -1 stands for none in some
        narrow = {key: batch.inputs[key] if (batch.inputs[key] < 0).any() else value for key, value in narrow.items()}
    ours = _small_model(name)
    wanted, got = states(name, ours(**batch.inputs)), states(name, ours(**narrow))
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.complex128, torch.float16], ids=str)
def test_ids_that_are_no_integers_are_refused_by_name(name, dtype):
    batch = small_batch(name)
    integers = [
        key
        for key, value in batch.inputs.items()
        if not (value.is_floating_point() or value.dtype == torch.bool or key.endswith("mask"))
    ]
    for key in integers:
        with pytest.raises(InputError, match=r"must hold integers, got torch|must be a tensor"):
            _small_model(name)(**{**batch.inputs, key: batch.inputs[key].to(dtype)})
        with pytest.raises(ZooError):
            _small_model(name)(**{**batch.inputs, key: batch.inputs[key].tolist()})


@pytest.mark.parametrize("name", families())
def test_a_text_without_a_token_is_refused(name):
    batch = small_batch(name)
    empty = {key: value[:, :0] if value.dim() > 1 else value for key, value in batch.inputs.items()}
    with pytest.raises(InputError, match=r"length is 0|must be"):
        _small_model(name)(**empty)


@pytest.mark.parametrize("name", ["bert", "visualbert", "vilbert", "uniter"])
def test_lengths_that_contradict_the_mask_are_refused(name):
    ours, batch = _small_model(name), small_batch(name)
    rows, length = batch.inputs["input_ids"].shape
    mask = torch.arange(length)[None] < torch.tensor([length - 1] * rows)[:, None]
    given = {**batch.inputs, "attention_mask": mask}
    taken = states(name, ours(**given, lengths=[length - 1] * rows))
    assert all(torch.equal(taken[key], value) for key, value in states(name, ours(**given)).items())
    for wrong in ([length] * rows, [length - 1] * (rows - 1) + [length - 2]):
        with pytest.raises(InputError, match="lengths and attention_mask contradict each other in row"):
            ours(**given, lengths=wrong)
    for wrong, says in (([1.5] * rows, "whole numbers"), (3, "got 3")):
        with pytest.raises(InputError, match=says):
            ours(**given, lengths=wrong)
    holes = mask.clone()
    holes[0, 0] = False
    with pytest.raises(InputError, match="contradict each other in row 0"):
        ours(**{**given, "attention_mask": holes}, lengths=[length - 2] + [length - 1] * (rows - 1))


def test_lengths_that_contradict_a_matrix_are_refused():
    matrix = torch.ones(2, 3, 3, dtype=torch.bool)
    model()(IDS, attention_mask=matrix, lengths=[3, 3])
    with pytest.raises(InputError, match="contradict each other in row 1"):
        model()(IDS, attention_mask=matrix, lengths=[3, 2])


@pytest.mark.parametrize("name", ["vilbert", "visualbert", "uniter"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_regions_that_are_not_finite_are_refused(name, value):
    batch = small_batch(name)
    for key in ("visual_features", "visual_boxes"):
        if key in batch.inputs:
            broken = batch.inputs[key].clone()
            broken.view(-1)[-1] = value
            with pytest.raises(InputError, match=f"{key} must be finite"):
                _small_model(name)(**{**batch.inputs, key: broken})


def test_no_value_of_a_mask_is_read_under_compile():
    from zoo.layers.padding import as_bool

    read = torch.compile(as_bool, backend="eager", fullgraph=True)
    assert read(torch.tensor([[2, 0]])).tolist() == [[True, False]]
    with pytest.raises(InputError):
        as_bool(torch.tensor([[2, 0]]))


@pytest.mark.parametrize("name", families())
def test_an_input_that_is_misspelled_is_refused_with_the_closest(name):
    model, batch = build(name, small_config(name)), small_batch(name).inputs
    with pytest.raises(UnknownNameError, match="'attention_mask'"):
        model(**batch, atention_mask=None)
    task = next(task for task in tasks_of(name) if task in ("masked-lm", "causal-lm", "conditional-generation"))
    headed = build(name, small_config(name), task)
    with pytest.raises(UnknownNameError, match="'labels'"):
        headed(**batch, lables=None)


def test_a_field_of_a_technique_that_is_misspelled_is_refused_with_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean 'rank'"):
        zoo.LoRA(rnk=8)
    with pytest.raises(UnknownNameError, match="'num_layers'"):
        type(zoo.config("bert-base"))(num_layer=2)
