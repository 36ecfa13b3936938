"""What the version before saved still loads, and gives what it gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.checkpoints.adapters.files import load_adapter
from zoo.data.regions.files import read_regions
from zoo.errors import CheckpointError, UnknownNameError
from zoo.registry import renames
from zoo.registry.variants import families
from zoo.techniques.base import recorded

SAVED = Path(__file__).parents[1] / "fixtures" / "saved-by-0.1"
STORED = load_file(SAVED / "outputs.safetensors")
TEXT = (STORED["input_ids"], STORED["attention_mask"])


def test_a_saved_task_model_with_two_techniques_loads_and_gives_what_it_gave():
    model = zoo.load(SAVED / "bert")
    assert [type(technique).__name__ for technique in model.model.techniques] == ["LoRA", "StridedAttention"]
    with torch.no_grad():
        torch.testing.assert_close(model(*TEXT).logits, STORED["bert.logits"])


def test_a_saved_model_of_two_streams_loads_and_gives_what_it_gave():
    model = zoo.load(SAVED / "vilbert")
    with torch.no_grad():
        found = model(*TEXT, visual_features=STORED["visual_features"], visual_boxes=STORED["visual_boxes"])
    torch.testing.assert_close(found.text.last_hidden_state, STORED["vilbert.text"])
    torch.testing.assert_close(found.image.last_hidden_state, STORED["vilbert.image"])


def test_a_saved_adapter_goes_onto_its_model():
    model = load_adapter(zoo.load(SAVED / "plain"), SAVED / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(*TEXT).last_hidden_state, STORED["adapter.states"])


def test_a_converted_file_loads_with_its_heads_and_passes_its_checks():
    model = zoo.load(SAVED / "converted.safetensors", task="pretraining")
    with torch.no_grad():
        torch.testing.assert_close(model(*TEXT).prediction_logits, STORED["converted.prediction_logits"])
    found = zoo.verify(SAVED / "converted.safetensors")
    assert (found.ok, found.results[0].passed) == (True, True)


def test_saved_regions_are_read():
    ((name, regions),) = read_regions(SAVED / "regions.safetensors")
    assert name == "a"
    torch.testing.assert_close(regions.features, STORED["regions.features"])
    torch.testing.assert_close(regions.boxes, STORED["regions.boxes"])


def test_every_class_and_technique_of_the_version_before_is_known():
    known = json.loads((SAVED / "names.json").read_text())
    now = {variant.class_path for variants in families().values() for variant in variants}
    assert not {name for name in known["classes"] if renames.CLASSES.get(name, name) not in now}
    for name in known["techniques"]:
        try:
            recorded([{"technique": name}])
        except UnknownNameError as error:
            pytest.fail(str(error))
        except (TypeError, zoo.ZooError):  # it is found, and wants fields
            pass


@pytest.fixture
def renamed(tmp_path) -> Path:
    """A saved folder whose class and technique had other names."""
    for file in (SAVED / "bert").iterdir():
        text = file.read_bytes()
        if file.name == "config.json":
            text = text.replace(b"zoo.models.bert:Bert", b"zoo.old:OldBert").replace(b'"LoRA"', b'"Lora"')
        (tmp_path / file.name).write_bytes(text)
    return tmp_path


def test_a_renamed_class_and_a_renamed_technique_are_found_by_the_table(renamed, monkeypatch):
    with pytest.raises(CheckpointError, match=r"zoo\.old:OldBert"):
        zoo.load(renamed)
    monkeypatch.setitem(renames.CLASSES, "zoo.old:OldBert", "zoo.models.bert:Bert")
    with pytest.raises(UnknownNameError, match="'Lora'"):
        zoo.load(renamed)
    monkeypatch.setitem(renames.TECHNIQUES, "Lora", "LoRA")
    model = zoo.load(renamed)
    with torch.no_grad():
        torch.testing.assert_close(model(*TEXT).logits, STORED["bert.logits"])
    zoo.save(model, renamed / "again")
    assert json.loads((renamed / "again" / "config.json").read_text())["class"] == "zoo.models.bert:Bert"
