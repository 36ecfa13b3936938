"""What goes onto the hub: a folder that loads, a card that says what the model says, errors in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import zoo
from tests.api.test_create import tiny
from tests.training.test_loop import rows, tokenizer  # noqa: F401
from zoo.checkpoints.publishing import model_card
from zoo.errors import CheckpointError, InputError
from zoo.training import fit


class Hub:
    """Stands for the hub: what would be uploaded lies in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.fault, self.card = folder, [], None, False

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repository, **options):
        if self.fault:
            raise self.fault
        self.calls.append(("create", repository, options))

    def file_exists(self, repository, name, revision=None):
        return self.card

    def upload_folder(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, self.folder)
        self.calls.append(("upload", repo_id, options))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "uploaded")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    return hub


def test_a_model_goes_up_whole_with_its_card(hub, tokenizer):  # noqa: F811
    model = tiny("sequence-classification", labels=["low", "high"])
    zoo.apply(model, zoo.LoRA(rank=2))
    address = zoo.push_to_hub(model, "org/mine", tokenizer, private=True, revision="draft", token="secret")
    assert address == "https://hub/org/mine/commit/1"
    assert hub.calls[0] == ("token", "secret")
    assert hub.calls[1] == ("create", "org/mine", {"private": True, "exist_ok": True})
    assert hub.calls[2][2]["revision"] == "draft"
    loaded = zoo.load(hub.folder)
    batch = zoo.tokenizer(hub.folder)(["w1 w2"])
    assert torch.allclose(loaded(**batch).logits, model.eval()(**batch).logits, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    card = (hub.folder / "README.md").read_text()
    for said in (
        "pipeline_tag: text-classification",
        "Labels: low, high",
        "rank=2",
        'zoo.load("hub:org/mine")',
        "1810.04805",
    ):
        assert said in card, card
    assert "secret" not in card


def test_a_fine_tuned_folder_goes_up_with_its_figures_and_without_its_log(hub, tokenizer, tmp_path):  # noqa: F811
    model = zoo.create(
        "bert-base",
        task="sequence-classification",
        labels=["low", "high"],
        vocab_size=45,
        hidden_size=8,
        num_heads=2,
        num_layers=1,
        intermediate_size=8,
        max_positions=24,
    )
    report = fit(model, rows(32), rows(16, 1), tokenizer=tokenizer, out=tmp_path / "run", epochs=2)
    zoo.push_to_hub(tmp_path / "run", "org/mine")
    lowest = min(row["eval_loss"] for row in report.history if "eval_loss" in row)
    assert f"| loss | {lowest:.4f} |" in (hub.folder / "README.md").read_text()
    assert not (hub.folder / "training").exists()
    assert zoo.tokenizer(hub.folder).encode("w1").ids == tokenizer.encode("w1").ids


def test_a_card_that_is_there_is_left_alone(hub):
    hub.card = True
    zoo.push_to_hub(tiny(), "org/mine")
    assert not (hub.folder / "README.md").exists()


def test_what_goes_wrong_is_said(hub, tmp_path):
    for wrong in ("mine", "a/b/c", "/x", "x/"):
        with pytest.raises(InputError, match="organization/name"):
            zoo.push_to_hub(tiny(), wrong)
    with pytest.raises(InputError, match=r"no config\.json"):
        zoo.push_to_hub(tmp_path, "org/mine")
    hub.fault = OSError("no way there")
    with pytest.raises(CheckpointError, match="did not take org/mine: no way there"):
        zoo.push_to_hub(tiny(), "org/mine")


def test_a_card_says_nothing_that_the_model_does_not():
    card = model_card(tiny())
    assert "Task" not in card
    assert "Techniques" not in card
    assert "pipeline_tag" not in card
