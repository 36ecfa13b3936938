"""Adapters that are damaged, not whole, or of another model are refused, and the model stays as it was."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import zoo
from tests.api.test_create import TINY, tiny
from zoo.checkpoints.adapters import load_adapter, save_adapter
from zoo.errors import CheckpointError, TechniqueError, ZooError, ZooWarning

ADAPTERS = {
    "zoo LoRA": zoo.LoRA(rank=2),
    "zoo BottleneckAdapter": zoo.BottleneckAdapter(),
    "peft LoRA": zoo.LoRA(rank=2),
    "peft IA3": zoo.IA3(),
    "peft PrefixTuning": zoo.PrefixTuning(length=2, shift_positions=True),
    "adapters LoRA": zoo.LoRA(rank=2),
    "adapters IA3": zoo.IA3(),
    "adapters BottleneckAdapter": zoo.BottleneckAdapter(),
    "adapters PrefixTuning": zoo.PrefixTuning(length=2, bottleneck=3),
}
"""Libraries, and what they save."""


def lacking(tensors: dict[str, torch.Tensor]) -> None:
    for name in sorted(tensors)[1:]:
        del tensors[name]


def last(change: Any) -> Any:
    """The last tensor changed: others were read before it."""

    def changed(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[-1]
        tensors[name] = change(tensors[name]).contiguous()

    return changed


DAMAGE = {
    "1 of all": lacking,
    "NaN": last(lambda x: x * float("nan")),
    "infinity": last(lambda x: x + float("inf")),
    "int64": last(lambda x: x.long()),
    "bool": last(lambda x: x.bool()),
    "complex": last(lambda x: x.to(torch.complex64)),
    "another shape": last(lambda x: torch.cat([x, x])),
}


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny("sequence-classification", num_labels=3)


def saved(how: str, folder: Path) -> Path:
    model = zoo.apply(tiny("sequence-classification", num_labels=3), ADAPTERS[how])
    return save_adapter(model, folder, library=how.split()[0])


def damage(folder: Path, change: Any) -> None:
    path = next(folder.glob("*.safetensors"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def refused(model: Any, folder: Any, says: str = "[a-z]", **options: Any) -> None:
    """The model is what it was: parts, tensors, techniques."""
    parts = {path: type(part) for path, part in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZooError, match=says):
        load_adapter(model, folder, **options)
    assert {path: type(part) for path, part in model.named_modules()} == parts
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.model.techniques == ()


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("how", ADAPTERS)
def test_a_damaged_adapter_is_refused_and_leaves_the_model_as_it_was(base, tmp_path, how, kind):
    folder = saved(how, tmp_path)
    if kind == "1 of all" and len(load_file(next(folder.glob("*.safetensors")))) == 1:
        return
    damage(folder, DAMAGE[kind])
    refused(base, folder)


@pytest.mark.parametrize("how", ADAPTERS)
def test_an_adapter_of_two_layers_does_not_go_onto_four(tmp_path, how):
    model = zoo.create("bert-base", task="sequence-classification", **{**TINY, "num_layers": 4})
    folder = saved(how, tmp_path)
    refused(model, folder, "num_layers=2; this one has 4")
    path = next(folder.glob("*.safetensors"))  # as the library writes it, which says nothing of the base
    save_file(load_file(path), path, {"format": "pt"})
    config = folder / "adapter_config.json"
    if how.startswith("peft") and "Prefix" not in how:  # which names the ends of paths
        described = json.loads(config.read_text())
        described["target_modules"] = sorted({path.rpartition(".")[2] for path in described["target_modules"]})
        config.write_text(json.dumps(described))
    refused(model, folder)


def test_layers_that_a_config_of_pefts_leaves_out_are_left_out(tmp_path):
    folder = save_adapter(zoo.apply(tiny(), zoo.LoRA(rank=2, depths=(1,))), tmp_path, library="peft")
    described = json.loads((folder / "adapter_config.json").read_text())
    described |= {"target_modules": ["query", "value"], "layers_to_transform": [1]}
    assert load_adapter(tiny(), folder, described).techniques[0].paths == (
        "encoder.blocks.1.attention.query",
        "encoder.blocks.1.attention.value",
    )
    described |= {"target_modules": r".*\.(query|value)", "layers_to_transform": None}
    with pytest.raises(CheckpointError, match=r"targets 'encoder\.layer\.0\.attention\.self\.query'"):
        load_adapter(tiny(), folder, described)


def test_a_head_that_peft_says_it_saved_must_be_there(base, tmp_path):
    folder = saved("peft LoRA", tmp_path)
    damage(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "classifier" in name])
    refused(base, folder, "'classifier' was saved whole, and the file has no tensor of it")


@pytest.mark.parametrize("library", ["zoo", "peft", "adapters"])
def test_an_adapter_of_another_base_warns(tmp_path, library):
    model = tiny()
    folder = save_adapter(zoo.apply(model, zoo.LoRA(rank=2)), tmp_path / "adapter", library=library)
    same = tiny()
    same.load_state_dict({name: x for name, x in model.state_dict().items() if "loras" not in name})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            load_adapter(zoo.load(zoo.save(same, tmp_path / "base"), dtype=dtype), folder)
    with torch.no_grad():
        same.encoder.blocks[1].feed_forward.up.bias += 1e-4
    with pytest.warns(ZooWarning, match="was trained on a base with other weights") as caught:
        load_adapter(same, folder)
    assert caught[0].filename == __file__


def test_what_a_technique_keeps_besides_parameters_goes_along(tmp_path):
    """The ranges of a quantized model are part of it; without them it rounds by others."""
    model = zoo.apply(tiny(), zoo.Q8Bert())
    ids = torch.tensor([[1, 2, 3]])
    model.train()(ids)
    save_adapter(model.eval(), tmp_path)
    other = tiny()
    other.load_state_dict({name: model.state_dict()[name] for name in other.state_dict()})
    assert torch.equal(load_adapter(other, tmp_path).eval()(ids).last_hidden_state, model(ids).last_hidden_state)


ODD: tuple[Any, ...] = (None, True, float("nan"), "x", [1], {"x": 1})
TEXTS = (
    "",
    "{",
    "[]",
    "3",
    "null",
    '{"r": ' + "1" * 5000 + "}",
    '{"config": ' + "9" * 4000 + "}",
    "[" * 100_000,
    "\x00",
)


@pytest.mark.parametrize("how", ["zoo LoRA", "peft LoRA", "adapters LoRA", "adapters BottleneckAdapter"])
def test_an_adapters_config_of_odd_values_never_ends_in_another_error(tmp_path, how):
    folder, model = saved(how, tmp_path), tiny("sequence-classification", num_labels=3)
    path = next(folder.glob("*.json"))
    described = json.loads(path.read_text())
    texts, odd = list(TEXTS), itertools.cycle(ODD)
    texts += [json.dumps({**described, key: next(odd)}) for key in described]
    if isinstance(within := described.get("config"), dict):
        texts += [json.dumps({**described, "config": {**within, key: next(odd)}}) for key in within]
    for text in texts:
        path.write_text(text)
        try:
            load_adapter(model, folder)
        except ZooError:
            assert model.model.techniques == ()
        else:
            model = tiny("sequence-classification", num_labels=3)


def test_several_techniques_are_applied_all_or_none():
    model = tiny()
    with pytest.raises(TechniqueError, match=r"has a LoRA named .default. already"):
        zoo.apply(model, zoo.IA3(), zoo.LoRA(), zoo.LoRA())
    assert model.techniques == ()
    assert model.state_dict().keys() == tiny().state_dict().keys()
