"""Every golden case that the repository carries: what public reference code computed, held against
ours through the converters.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.reference import check, main, run, run_case
from tests.references.case import expected, load_case
from tests.references.compare import compare

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(str(file.parent.relative_to(GOLDEN)) for file in GOLDEN.rglob("case.json"))


def test_the_cases_are_there():
    assert len(CASES) >= 14
    assert all(expected(load_case(GOLDEN / case)) for case in CASES)


@pytest.mark.parametrize("case", CASES)
def test_ours_equals_the_reference(case):
    assert check(GOLDEN / case) == []


def test_the_entry_needs_no_stored_outputs_and_gives_tensors(tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bert" / "case"
    shutil.copytree(GOLDEN / "bert" / "hf-pretraining", folder)
    stored = load_file(folder / "io.safetensors")
    save_file({name: tensor for name, tensor in stored.items() if name.startswith("input.")}, folder / "io.safetensors")
    ours = run_case(folder)
    assert all(isinstance(value, torch.Tensor) for value in ours.values())
    assert {name.removeprefix("output.") for name in stored if name.startswith("output.")} <= set(ours)


def test_a_difference_is_seen(tmp_path):
    case = load_case(GOLDEN / "bert" / "hf-encoder-pooler")
    ours = run(case)
    ours["pooler_output"] = ours["pooler_output"] + 2e-5
    assert [line.split(":")[0] for line in compare(case, ours)] == ["pooler_output"]
    del ours["pooler_output"]
    assert compare(case, ours) == ["pooler_output: missing"]


def test_the_command_reports_and_fails_where_a_case_fails(tmp_path, capsys):
    assert main([str(GOLDEN / "bert" / "hf-token-classification"), "--out", str(tmp_path)]) == 0
    assert "1 passed, 0 failed" in capsys.readouterr().out
    assert (tmp_path / "bert--hf-token-classification.safetensors").is_file()
