"""What `zoo.inspect` says of a file, `zoo.convert` does: on cases of every reference, as they are and broken,
and on files of fairseq, which hold their config themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.errors import ZooError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/weights.safetensors"))
SYSTEMS = sorted({case.parent.name for case in CASES})


def promised_and_done(source: Path, config: Any, out: Path) -> tuple[str | None, str | None]:
    """Why inspect says that the file can't be converted, and why it was not; None where it can and was."""
    try:
        why = zoo.inspect(source, config=config).get("why")
    except ZooError as error:
        why = str(error)
    try:
        zoo.convert(source, out / "ours.safetensors", config=config)
    except ZooError as error:
        return why, str(error)
    return why, None


def configs_in(case: Path) -> list[Mapping[str, Any] | None]:
    """A case's config, the parts of it that are configs, and none at all."""
    config = json.loads((case / "case.json").read_text(encoding="utf-8")).get("config") or {}
    return [None, config, *(part for part in config.values() if isinstance(part, dict) and "hidden_size" in part)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_on_cases_of_every_reference(system, tmp_path):
    for case in [case for case in CASES if case.parent.name == system][:4]:
        for config in configs_in(case):
            promised, done = promised_and_done(case / "weights.safetensors", config, tmp_path)
            assert (promised is None) == (done is None), f"{case.name}: {promised} | {done}"


@pytest.mark.parametrize("system", ["bert", "albert", "distilbert", "vilbert", "xlm", "mbart"])
@pytest.mark.parametrize("what", ["one less", "one more", "another shape", "as it is"])
def test_on_files_that_were_changed(system, what, tmp_path):
    case = next(case for case in CASES if case.parent.name == system)
    tensors = load_file(case / "weights.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and "att" in name.lower())
    if what == "one less":
        tensors.pop(name)
    elif what == "one more":
        tensors["somebody.else"] = torch.ones(2)
    elif what == "another shape":
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    told = [promised_and_done(tmp_path / "model.safetensors", config, tmp_path) for config in configs_in(case)]
    assert all((promised is None) == (done is None) for promised, done in told), told
    assert any(done is None for _, done in told) == (what == "as it is")


def test_a_file_of_many_unknown_names_is_told_of_at_once(tmp_path, monkeypatch):
    """The search for the closest rule takes 50 ms a name; only five are told."""
    searched = []
    monkeypatch.setattr("zoo.maps.planning.closest", lambda name, known: searched.append(name) or ["?"])
    case = next(case for case in CASES if case.parent.name == "bert")
    odd = {f"odd.{number}": torch.ones(1) for number in range(500)}
    save_file({**load_file(case / "weights.safetensors"), **odd}, tmp_path / "model.safetensors")
    found = zoo.inspect(tmp_path / "model.safetensors", config=configs_in(case)[1])
    assert len(found["problems"]) == 500
    assert "and 495 more" in found["why"]
    assert len(searched) <= 5 * 4  # once for each plan that is made


@pytest.mark.parametrize("entry", ["args", "cfg", "none", "of another model", "beside"])
def test_on_a_file_of_fairseq(entry, tmp_path):
    case = GOLDEN / "xlm-roberta" / "mlm-fairseq-2019"
    config = json.loads((case / "case.json").read_text(encoding="utf-8"))["config"]
    options = {key: value for key, value in config.items() if key != "vocab_size"} | {"arch": "roberta_base"}
    told = {
        "args": {"args": argparse.Namespace(**options)},
        "cfg": {"cfg": {"model": argparse.Namespace(**options), "task": {}}},
        "none": {},
        "of another model": {"args": argparse.Namespace(**options, encoder_normalize_before=True)},
        "beside": {"args": argparse.Namespace(lr=[1e-4])},
    }[entry]
    torch.save({"model": load_file(case / "weights.safetensors"), **told}, tmp_path / "model.pt")
    given = config if entry == "beside" else None
    promised, done = promised_and_done(tmp_path / "model.pt", given, tmp_path)
    assert promised == done
    assert (done is None) == (entry in ("args", "cfg", "beside")), done
