"""What training scripts put around a model: read and left out, or refused with the step that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from tests.api.test_create import same, tiny
from zoo.errors import CheckpointError, InputError

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def theirs(tmp_path) -> tuple[Any, Tensors, dict[str, Any]]:
    """A model, its tensors in the layout hf-bert, their config."""
    model = tiny("masked-lm")
    zoo.convert(zoo.save(model, tmp_path / "ours"), tmp_path / "theirs", to="hf-bert")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    return model, load_file(tmp_path / "theirs" / "model.safetensors"), config


def inside(part: str, where: str) -> Any:
    return lambda tensors: {name.replace(where, f"{where}{part}."): tensor for name, tensor in tensors.items()}


def under(prefix: str) -> Any:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPED = {
    "torch.compile": under("_orig_mod."),
    "compiled, then parallel": under("module._orig_mod."),
    "FSDP": inside("_fsdp_wrapped_module", "layer.1."),
    "FSDP around all": under("_fsdp_wrapped_module."),
    "activation checkpointing": inside("_checkpoint_wrapped_module", "encoder."),
    "a compiled part": inside("_orig_mod", "layer.0.attention.self."),
    "SWA": lambda tensors: {"n_averaged": torch.tensor(3), **under("module.")(tensors)},
    "a script's own name": under("student."),
    "several names": under("net.backbone.model."),
    "a name that the layout has too": under("encoder."),
    "the layout's own prefix once more": under("bert."),
    "wrappers and prefixes mixed": under("module._orig_mod.model.bert."),
    "EMA": under("ema_model.module."),
    "numbers": under("0.auto_model."),
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("typed", [True, False], ids=["model_type", "names alone"])
def test_names_that_wrappers_changed_are_read(wrap, typed, theirs, tmp_path):
    model, tensors, config = theirs
    config = config if typed else {key: value for key, value in config.items() if key != "model_type"}
    changed = WRAPPED[wrap](tensors)
    assert same(zoo.load(changed, config=config, task="masked-lm"), model)
    assert zoo.load(changed, config=config, task="masked-lm").load_report.layout == "hf-bert"
    torch.save(changed, tmp_path / "file.bin")
    zoo.convert(tmp_path / "file.bin", tmp_path / "out", config=config)
    assert same(zoo.load(tmp_path / "out", task="masked-lm"), model)


@pytest.mark.parametrize("entry", ["module", "ema", "state_dict_ema", "model_ema", "swa_model", "state_dict"])
def test_an_entry_of_a_training_file_is_read(entry, theirs, tmp_path):
    model, tensors, config = theirs
    torch.save({entry: tensors, "optimizer": {"step": torch.ones(3)}, "epoch": 3}, tmp_path / "file.pt")
    assert same(zoo.load(tmp_path / "file.pt", config=config, task="masked-lm"), model)


def test_a_file_of_deepspeed_by_itself_is_read(theirs, tmp_path):
    model, tensors, config = theirs
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"module": tensors, "ds_version": "0.9"}, folder / "mp_rank_00_model_states.pt")
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    assert same(zoo.load(folder, task="masked-lm"), model)
    assert same(zoo.load(folder / "mp_rank_00_model_states.pt", task="masked-lm"), model)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "ZeRO stage 3.*\n.*zero_to_fp32.py"),
        (["__0_0.distcp", "__1_0.distcp", ".metadata"], "torch.distributed.checkpoint.*\n.*dcp_to_torch"),
        (["latest", "zero_to_fp32.py"], "folder of a DeepSpeed run.*\n.*latest"),
    ],
)
def test_shares_of_several_processes_are_refused_with_the_step_that_joins_them(files, says, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=says) as refused:
        zoo.load(tmp_path, task="masked-lm")
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (lambda tensors: {"criterion.weight": torch.ones(3)}, "a model below a wrapper.*'criterion.weight'"),
        (under("ema_model."), "several models.*'online_model.'.*'ema_model.'"),
    ],
    ids=["a loss beside it", "two models"],
)
def test_what_stands_beside_a_wrapped_model_is_named(more, says, theirs):
    model, tensors, config = theirs
    wrapped = {**under("online_model.")(tensors), **more(tensors)}
    with pytest.raises(CheckpointError, match=f"(?s){says}.*startswith\\('online_model.'\\)") as refused:
        zoo.load(wrapped, config=config, task="masked-lm")
    assert len(str(refused.value)) < 700
    chosen = {name: tensor for name, tensor in wrapped.items() if name.startswith("online_model.")}
    assert same(zoo.load(chosen, config=config, task="masked-lm"), model)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
@pytest.mark.parametrize("task", [None, "masked-lm"])
def test_a_state_dict_of_ours_is_read_with_its_description_and_else_refused(prefix, task, tmp_path):
    model = tiny(task)
    description = json.loads((zoo.save(model, tmp_path / "ours") / "config.json").read_text())
    torch.save(under(prefix)(model.state_dict()), tmp_path / "alone.pt")
    with pytest.raises(CheckpointError, match=r"state dict of the zoo without.*\n.*zoo.save.*load_state_dict"):
        zoo.load(tmp_path / "alone.pt", task=task)
    assert same(zoo.load(tmp_path / "alone.pt", config=description), model)
    (tmp_path / "ours" / "model.safetensors").unlink()
    torch.save(under(prefix)(model.state_dict()), tmp_path / "ours" / "pytorch_model.bin")
    assert same(zoo.load(tmp_path / "ours"), model)


def wrapped_models() -> dict[str, Any]:
    def part(model: Any) -> Any:
        model.model.encoder.blocks[0] = torch.compile(model.model.encoder.blocks[0], backend="eager")
        return model

    return {
        "torch.compile": lambda model: torch.compile(model, backend="eager"),
        "DataParallel": torch.nn.DataParallel,
        "AveragedModel": torch.optim.swa_utils.AveragedModel,
        "both": lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
        "a compiled part": part,
    }


@pytest.mark.parametrize("kind", wrapped_models())
def test_a_wrapped_model_is_saved_as_the_one_inside(kind, tmp_path):
    model = tiny("masked-lm")
    zoo.save(wrapped_models()[kind](model), tmp_path / "saved")
    again = zoo.load(tmp_path / "saved")
    assert same(again, model)
    assert again.task == "masked-lm"


def test_what_is_no_model_of_the_zoo_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="got a Linear"):
        zoo.save(torch.nn.Linear(2, 2), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# --- weights of an older save beside newer ones


def test_a_single_file_wins_over_shards_beside_it_as_in_transformers(tmp_path):
    old, new = tiny("masked-lm", seed=1), tiny("masked-lm", seed=2)
    zoo.save(old, tmp_path / "mixed", shard_size=2000)
    zoo.save(new, tmp_path / "new")
    (tmp_path / "mixed" / "model.safetensors").write_bytes((tmp_path / "new" / "model.safetensors").read_bytes())
    assert same(zoo.load(tmp_path / "mixed"), new)


@pytest.mark.parametrize("sizes", [(2000, None), (None, 2000), (2000, 3000)])
def test_a_save_over_another_leaves_no_weights_of_the_old_one(sizes, tmp_path):
    old, new = tiny("masked-lm", seed=1), tiny("masked-lm", seed=2)
    zoo.save(old, tmp_path / "saved", shard_size=sizes[0])
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    zoo.save(new, tmp_path / "saved", shard_size=sizes[1])
    zoo.save(new, tmp_path / "alone", shard_size=sizes[1])
    assert same(zoo.load(tmp_path / "saved"), new)
    assert weights(tmp_path / "saved") == weights(tmp_path / "alone")
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"


def test_a_conversion_over_another_leaves_no_weights_of_the_old_one(tmp_path):
    old, new = tiny("masked-lm", seed=1), tiny("masked-lm", seed=2)
    for name, model in (("old", old), ("new", new)):
        zoo.save(model, tmp_path / name)
    for to in ("hf-bert", None):
        source = {"old": tmp_path / "old", "new": tmp_path / "new"}
        if to is None:
            source = {
                name: zoo.convert(path, tmp_path / f"{name} theirs", to="hf-bert") for name, path in source.items()
            }
            source = {name: tmp_path / f"{name} theirs" for name in source}
        zoo.convert(source["old"], tmp_path / "out", to=to, shard_size=2000)
        zoo.convert(source["new"], tmp_path / "out", to=to)
        assert weights(tmp_path / "out") == ["model.safetensors"]
        assert same(zoo.load(tmp_path / "out", task="masked-lm"), new)


def weights(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if ".safetensors" in file.name)
