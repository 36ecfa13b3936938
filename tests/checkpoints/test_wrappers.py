"""What training scripts put around a model: read and left out, or refused with the step that helps."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.metadata as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import format_utils
from torch.distributed.checkpoint import save as save_shares
from torch.distributed.checkpoint.filesystem import _StorageInfo

import zoo
from tests.api.test_create import same, tiny
from zoo.errors import CheckpointError, InputError, ZooWarning

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


@pytest.mark.parametrize(
    ("entries", "read"),
    [
        (["ema", "model"], "model"),
        (["swa_state_dict", "state_dict"], "state_dict"),
        (["ema", "model_ema"], "model_ema"),
        (["ema", "optimizer", "net"], "net"),
    ],
)
def test_of_several_models_the_report_says_which_was_read(entries, read, theirs, tmp_path):
    model, tensors, config = theirs
    files = {name: {key: tensor * (name == read) for key, tensor in tensors.items()} for name in entries}
    files["optimizer"] = {"step": torch.ones(3)}
    torch.save(files, tmp_path / "file.pt")
    (other,) = set(entries) - {read, "optimizer"}
    note = f"{read!r} was read, and not {other!r}.*torch.load\\(FILE\\)\\[{other!r}\\]"
    loaded = zoo.load(tmp_path / "file.pt", config=config, task="masked-lm")
    assert same(loaded, model)
    assert re.search(note, str(loaded.load_report))
    report = zoo.convert(tmp_path / "file.pt", tmp_path / "out", config=config)
    assert re.search(note, str(report))
    alone = zoo.load(torch.load(tmp_path / "file.pt")[other], config=config, task="masked-lm")
    assert not alone.load_report.notes


def test_a_file_of_deepspeed_by_itself_is_read(theirs, tmp_path):
    model, tensors, config = theirs
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"module": tensors, "ds_version": "0.9"}, folder / "mp_rank_00_model_states.pt")
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    assert same(zoo.load(folder, task="masked-lm"), model)
    assert same(zoo.load(folder / "mp_rank_00_model_states.pt", task="masked-lm"), model)


def test_the_folder_of_a_deepspeed_run_is_read_at_its_last_checkpoint(theirs, tmp_path):
    model, tensors, config = theirs
    run = tmp_path / "run"
    for step, scale in (("global_step5", 1.0), ("global_step9", 2.0)):
        (run / step).mkdir(parents=True)
        module = {"module": {name: tensor * scale for name, tensor in tensors.items()}, "dp_world_size": 2}
        torch.save(module, run / step / "mp_rank_00_model_states.pt")
        for rank in range(2):
            (run / step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"")
    (run / "config.json").write_text(json.dumps(config))
    (run / "latest").write_text("global_step5\n")
    assert same(zoo.load(run, task="masked-lm"), model)
    (run / "latest").write_text("global_step9")
    assert not same(zoo.load(run, task="masked-lm"), model)
    for outside in ("../run/global_step5", str(run / "global_step5"), "global_step7", ""):
        (run / "latest").write_text(outside)
        with pytest.raises(CheckpointError, match="latest"):
            zoo.load(run, task="masked-lm")


def shares(folder: Path, tensors: Tensors, processes: int, torn: bool = False) -> None:
    """What each of several processes wrote of tensors that are split by their rows, by hand."""
    folder.mkdir()
    said: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    files = dict.fromkeys(range(processes), b"")
    for name, tensor in tensors.items():
        chunks, rows = [], -(-len(tensor) // processes)
        for process, part in enumerate(tensor.split(rows)):
            start = (process * rows, *[0] * (tensor.dim() - 1))
            written = io.BytesIO()
            torch.save(part.clone(), written)
            about = _StorageInfo(f"__{process}_0.distcp", len(files[process]), len(written.getvalue()))
            stored[dcp.MetadataIndex(name, torch.Size(start))] = about
            files[process] += written.getvalue()
            chunks.append(dcp.ChunkStorageMetadata(torch.Size(start), part.shape))
        if torn and len(chunks) > 1:
            chunks[1] = chunks[0]
        properties = dcp.TensorProperties.create_from_tensor(tensor)
        said[name] = dcp.TensorStorageMetadata(properties, tensor.shape, chunks)
    for process, data in files.items():
        (folder / f"__{process}_0.distcp").write_bytes(data)
    (folder / ".metadata").write_bytes(pickle.dumps(dcp.Metadata(said, None, stored)))


@pytest.mark.parametrize("how", ["one process", "two processes", "five processes"])
@pytest.mark.parametrize("prefix", ["", "model.", "state_dict."])
def test_a_folder_of_torch_distributed_checkpoint_is_joined(how, prefix, theirs, tmp_path):
    model, tensors, config = theirs
    folder = tmp_path / "shares"
    if how == "one process":
        state = {prefix.rstrip("."): dict(tensors), "step": 3} if prefix else {**tensors, "step": 3}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_shares({**state, "optim": {"m": torch.ones(3)}} if prefix else state, checkpoint_id=folder)
    else:
        written = {prefix + name: tensor for name, tensor in tensors.items()}
        written |= {"optimizer.m": torch.ones(6)} if prefix else {}
        shares(folder, written, {"two": 2, "five": 5}[how.partition(" ")[0]])
        format_utils.dcp_to_torch_save(folder, tmp_path / "joined.pt")  # torch itself reads what was written by hand
    (folder / "config.json").write_text(json.dumps(config))
    loaded = zoo.load(folder, task="masked-lm")
    assert same(loaded, model)
    zoo.convert(folder, tmp_path / "out")
    assert same(zoo.load(tmp_path / "out", task="masked-lm"), model)
    assert zoo.inspect(folder)["format"] == "torch-dcp"


def test_shares_that_do_not_make_up_a_tensor_are_refused(theirs, tmp_path):
    _, tensors, config = theirs
    shares(tmp_path / "torn", tensors, 2, torn=True)
    with pytest.raises(CheckpointError, match="overlap and leave places empty"):
        zoo.load(tmp_path / "torn", config=config, task="masked-lm")
    shares(tmp_path / "cut", tensors, 2)
    file = tmp_path / "cut" / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="truncated"):
        zoo.load(tmp_path / "cut", config=config, task="masked-lm")
    shares(tmp_path / "away", {**tensors, "x": torch.ones(2)}, 2)
    metadata = tmp_path / "away" / ".metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"__0_0.distcp", b"../../secret"))
    with pytest.raises(CheckpointError, match="only plain names"):
        zoo.load(tmp_path / "away", config=config, task="masked-lm")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "ZeRO stage 3.*\n.*zero_to_fp32.py"),
        (["__0_0.distcp", "__1_0.distcp"], "torch.distributed.checkpoint without the .metadata.*\n.*dcp_to_torch"),
        (["latest", "zero_to_fp32.py"], "folder of a DeepSpeed run whose.*'x'.*\n.*zero_to_fp32.py"),
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
    assert same(zoo.load(tmp_path / "alone.pt", config=tmp_path / "ours" / "config.json"), model)
    assert "without the description" in zoo.inspect(tmp_path / "alone.pt")["why"]
    (tmp_path / "ours" / "model.safetensors").unlink()
    torch.save(under(prefix)(model.state_dict()), tmp_path / "ours" / "pytorch_model.bin")
    assert same(zoo.load(tmp_path / "ours"), model)


@pytest.mark.parametrize("call", ["convert to", "load foreign", "convert foreign"])
def test_our_own_layout_is_no_map(call, theirs, tmp_path):
    model, tensors, config = theirs
    calls = {
        "convert to": lambda: zoo.convert(zoo.save(model, tmp_path / "saved"), tmp_path / "out", to="zoo"),
        "load foreign": lambda: zoo.load(tensors, config=config, layout="zoo"),
        "convert foreign": lambda: zoo.convert(tensors, tmp_path / "out", config=config, layout="zoo"),
    }
    with pytest.raises(CheckpointError, match=r"'zoo' is the layout of the zoo's own files.*hf-bert"):
        calls[call]()


def test_layouts_that_make_the_same_of_a_file_are_no_question(tmp_path):
    model = tiny("pretraining", "visualbert-base", visual_size=6)
    zoo.save(model, tmp_path / "ours")
    report = zoo.convert(tmp_path / "ours", tmp_path / "theirs.safetensors", to="visualbert-original")
    loaded = zoo.load(tmp_path / "theirs.safetensors", config=report.foreign_config, task="pretraining")
    assert same(loaded, model)
    answers = tiny("visual-question-answering", "visualbert-base", visual_size=6, num_labels=7)
    zoo.convert(zoo.save(answers, tmp_path / "vqa"), tmp_path / "vqa.safetensors", to="visualbert-original")
    said = dict(report.foreign_config)
    with pytest.raises(CheckpointError, match="fits several layouts: mmf-visualbert, visualbert-original"):
        zoo.load(tmp_path / "vqa.safetensors", config=said)  # whose classifier it is, they see differently


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
    wrapped = wrapped_models()[kind](model)
    said = {"both": "OptimizedModule in DataParallel", "torch.compile": "OptimizedModule"}.get(kind, kind)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        zoo.save(wrapped, tmp_path / "saved")
    heard = [str(warning.message) for warning in seen if issubclass(warning.category, ZooWarning)]
    assert heard == (
        [f"what is saved is the Objective inside of {said}, with the weights that it has there"]
        if wrapped is not model
        else []
    )
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
