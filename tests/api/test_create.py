"""Create, load and save: what is strict, what is reported, and that nothing is lost on the way."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from zoo.tasks.base import canonical_state

TINY = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 16,
}


def tiny(task: str | None = None, name: str = "bert-base", seed: int = 0, **options):
    return zoo.create(name, task=task, generator=torch.Generator().manual_seed(seed), **TINY, **options)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, other = canonical_state(a), canonical_state(b)
    return mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)


def test_random_weights_follow_the_paper_and_their_generator():
    model = tiny(seed=3)
    assert same(model, tiny(seed=3))
    assert not same(model, tiny(seed=4))
    wide = zoo.create("bert-tiny", generator=torch.Generator().manual_seed(0))
    weight = wide.embeddings.token.weight
    weight = weight.detach()
    assert float(weight.abs().max()) <= 0.04  # cut at two deviations of 0.02
    assert float(weight.std()) == pytest.approx(0.0176, abs=2e-4)  # of a normal of 0.02 so cut
    assert not wide.encoder.blocks[0].attention.query.bias.any()
    assert bool((wide.encoder.blocks[0].attention_norm.weight == 1).all())


def test_a_saved_folder_loads_with_its_task_and_another_on_request(tmp_path):
    model = tiny("sequence-classification", num_labels=5)
    zoo.save(model, tmp_path / "model")
    again = zoo.load(tmp_path / "model")
    assert again.task == "sequence-classification"
    assert again.options["num_labels"] == 5
    assert same(model, again)
    assert not again.training
    words = zoo.load(tmp_path / "model", task="masked-lm")
    assert all(name.startswith("heads.masked_lm.") for name in words.load_report.random)
    assert words.load_report.random
    assert torch.equal(words.token_table, model.token_table)
    assert "heads.sequence_classification.weight" in words.load_report.left_out


def test_a_head_of_another_size_starts_at_random_and_says_so(tmp_path):
    zoo.save(tiny("sequence-classification", num_labels=5), tmp_path / "model")
    other = zoo.load(tmp_path / "model", num_labels=3)
    assert other.heads["sequence_classification"].weight.shape == (3, 8)
    assert set(other.load_report.random) == {
        "heads.sequence_classification.weight",
        "heads.sequence_classification.bias",
    }
    assert bool(other.heads["sequence_classification"].weight.std() > 0)


def test_a_tied_decoder_is_stored_once_and_stays_tied(tmp_path):
    model = tiny("masked-lm")
    zoo.save(model, tmp_path / "model")
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if "decoder" in name]
    again = zoo.load(tmp_path / "model").to(torch.float64)
    with torch.no_grad():
        again.token_table[7] += torch.arange(8) ** 2
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    before = zoo.load(tmp_path / "model").to(torch.float64)
    changed = (again(ids).logits - before(ids).logits).abs().amax((0, 1)) > 1e-9
    assert changed.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"activation": "relu"}, "activation='relu' contradicts the weights"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05 contradicts"),
        ({"num_layers": 1}, "num_layers=1 contradicts"),
    ],
)
def test_an_override_that_contradicts_the_weights_is_refused(tmp_path, override, says):
    zoo.save(tiny(), tmp_path / "model")
    with pytest.raises(ConfigError, match=says):
        zoo.load(tmp_path / "model", **override)
    with pytest.raises(ConfigError, match=says):
        zoo.create("bert-base", pretrained=tmp_path / "model", **override)


def test_an_override_that_shapes_no_weight_is_taken(tmp_path):
    zoo.save(tiny(), tmp_path / "model")
    assert zoo.load(tmp_path / "model", dropout=0.5).encoder.blocks[0].dropout.p == 0.5


def test_what_in_a_derivative_differs_from_the_variant_is_reported(tmp_path):
    zoo.save(tiny(), tmp_path / "model")
    report = zoo.create("bert-base", pretrained=tmp_path / "model").load_report
    assert report.differs["hidden_size"] == (768, 8)
    assert "this checkpoint has 8 where the variant has 768" in str(report)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.pop("encoder.layer.1.output.dense.bias"),
            "encoder.blocks.1.feed_forward.down.bias|encoder.layer.1.output.dense.bias",
        ),
        (
            lambda t: t.update({"encoder.layer.2.output.dense.bias": torch.zeros(8)}),
            "encoder.layer.2.output.dense.bias",
        ),
        (lambda t: t.update({"something.else": torch.zeros(8)}), "something.else"),
        (
            lambda t: t.update({"encoder.layer.0.output.dense.bias": torch.zeros(9)}),
            "encoder.blocks.0.feed_forward.down.bias|0.output.dense",
        ),
    ],
    ids=["missing", "a layer too many", "unknown", "mis-shaped"],
)
def test_missing_extra_and_misshaped_tensors_are_errors_that_name_them(tmp_path, change, says):
    zoo.save(tiny(), tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-bert")
    tensors = dict(load_file(tmp_path / "theirs" / "model.safetensors"))
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    zoo.load(tensors, config=config)
    change(tensors)
    with pytest.raises(CheckpointError, match=says):
        zoo.load(tensors, config=config)


@pytest.mark.parametrize("length", [0, 4, 100, 900])
def test_a_truncated_file_is_an_error_and_not_a_crash(tmp_path, length):
    folder = zoo.save(tiny(), tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError):
        zoo.load(folder)


def test_a_file_that_is_no_checkpoint_and_one_that_is_not_there(tmp_path):
    (tmp_path / "poem.txt").write_text("shall I compare thee")
    with pytest.raises(CheckpointError, match="known checkpoint format"):
        zoo.load(tmp_path / "poem.txt")
    with pytest.raises(CheckpointError, match="does not exist"):
        zoo.load(tmp_path / "nothing")


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    folder = zoo.save(tiny(seed=1), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    class Broken:
        def save(self, where):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        zoo.save(tiny(seed=2), folder, tokenizer=Broken())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    zoo.save(tiny(seed=2), folder)
    assert same(zoo.load(folder), tiny(seed=2))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; give a folder"):
        zoo.save(tiny(), tmp_path / "file")


def test_the_same_model_gives_the_same_bytes(tmp_path):
    a, b = zoo.save(tiny(), tmp_path / "a"), zoo.save(tiny(), tmp_path / "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert (a / "config.json").read_bytes() == (b / "config.json").read_bytes()


def test_a_model_saves_in_shards_and_loads(tmp_path):
    folder = zoo.save(tiny(), tmp_path / "model", shard_size=2000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert same(zoo.load(folder), tiny())


def test_dtype_and_device_are_honored(tmp_path):
    assert tiny().dtype == torch.float32
    assert zoo.create("bert-base", dtype=torch.bfloat16, **TINY).dtype == torch.bfloat16
    meta = zoo.create("bert-base", device="meta")
    assert meta.device.type == "meta"
    assert meta.num_parameters() == 109_482_240
    zoo.save(tiny().half(), tmp_path / "half")
    assert zoo.load(tmp_path / "half").dtype == torch.float16
    assert zoo.load(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


def test_a_file_of_a_newer_format_is_refused(tmp_path):
    folder = zoo.save(tiny(), tmp_path / "model")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "zoo_format": 99}))
    with pytest.raises(CheckpointError, match="newer zoo"):
        zoo.load(folder)


def test_a_failed_conversion_leaves_nothing_behind(tmp_path):
    zoo.save(tiny(), tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-bert")
    tensors = dict(load_file(tmp_path / "theirs" / "model.safetensors"))
    tensors["encoder.layer.1.output.dense.bias"] = (
        tensors["encoder.layer.1.output.dense.bias"].clone().fill_(float("nan"))
    )
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    listed = sorted(os.listdir(tmp_path))
    for out in ("out.safetensors", "out"):
        with pytest.raises(CheckpointError, match=r"encoder.*down.bias"):
            zoo.convert(tensors, tmp_path / out, config=config)
    assert sorted(os.listdir(tmp_path)) == listed


def test_another_familys_checkpoint_starts_what_it_can_and_the_report_says_what_stays_random(tmp_path):
    bert = tiny("pretraining", seed=5)
    zoo.save(bert, tmp_path / "bert")
    sizes = {
        **TINY,
        "visual_size": 6,
        "image_hidden_size": 8,
        "image_num_layers": 2,
        "image_num_heads": 2,
        "image_intermediate_size": 8,
    }
    sizes |= {"co_hidden_size": 8, "co_num_heads": 2, "text_connections": (1,), "image_connections": (1,)}
    model = zoo.create("vilbert-base", init_from=tmp_path / "bert", generator=torch.Generator().manual_seed(1), **sizes)
    assert torch.equal(model.encoder.text[1].attention.key.weight, bert.model.encoder.blocks[1].attention.key.weight)
    assert torch.equal(model.embeddings.token.weight, bert.token_table)
    report = model.load_report
    assert {name.split(".")[0] for name in report.random} == {
        "image_embeddings",
        "encoder",
        "text_pooler",
        "image_pooler",
    }
    assert not [name for name in report.random if name.startswith("encoder.text")]
    assert report.left_out["pooler.dense.weight"] == "a ViLBERT pools its text to another width"
    joint = zoo.create("visualbert-base", init_from=tmp_path / "bert", **{**TINY, "visual_size": 6})
    assert torch.equal(joint.embeddings.visual_position.weight, bert.model.embeddings.position.weight)
    assert torch.equal(joint.embeddings.visual_segment.weight, bert.model.embeddings.segment.weight)
    assert joint.load_report.random == ("embeddings.visual_projection.weight", "embeddings.visual_projection.bias")
    with pytest.raises(CheckpointError, match=r"token.weight is \(40, 8\) there"):
        zoo.create("vilbert-base", init_from=tmp_path / "bert", **{**sizes, "vocab_size": 41})
    with pytest.raises(UnknownNameError, match="family to start albert-base from 'bert'"):
        zoo.create("albert-base", init_from=tmp_path / "bert", **TINY)
    with pytest.raises(ConfigError, match="give one of them"):
        zoo.create("vilbert-base", init_from=tmp_path / "bert", pretrained=True)


@pytest.mark.parametrize(
    ("said", "meant"), [("bfloat16", torch.bfloat16), ("fp16", torch.float16), (torch.float64,) * 2]
)
def test_a_dtype_goes_by_its_name_too(said, meant, tmp_path):
    model = zoo.create("bert-base", dtype=said, **TINY)
    assert model.dtype == meant
    zoo.save(model, tmp_path)
    assert zoo.load(tmp_path, dtype=said).dtype == meant
    with pytest.raises(UnknownNameError, match="bfloat16"):
        zoo.load(tmp_path, dtype="bfloat")
    with pytest.raises(UnknownNameError):
        zoo.create("bert-base", dtype=torch.int8)


def test_a_task_model_says_what_its_model_says():
    model = tiny("masked-lm")
    zoo.apply(model, zoo.LoRA(rank=2))
    assert model.hidden_size == TINY["hidden_size"]
    assert model.techniques == model.model.techniques != ()
    assert list(model.changes) == list(model.model.changes)
