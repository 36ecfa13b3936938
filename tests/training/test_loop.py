"""The training loop: it learns, chooses the best, stops, and goes on after a kill as if nothing was."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import zoo
from zoo.errors import ConfigError, InputError, TaskError, UnknownNameError
from zoo.tokenization.wordpiece import wordpiece
from zoo.training import Settings, evaluate, fit, task_options
from zoo.training.loop import FOLDER

SIZES = {
    "vocab_size": 45,
    "hidden_size": 16,
    "num_heads": 2,
    "num_layers": 2,
    "intermediate_size": 24,
    "max_positions": 24,
}


@pytest.fixture(scope="module")
def tokenizer():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]
    return wordpiece({token: number for number, token in enumerate(tokens)})


def rows(count: int = 96, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose first word says the label."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = [draw.randrange(40) for _ in range(draw.randrange(2, 9))]
        found.append({"text": " ".join(f"w{w}" for w in words), "label": ("low", "high")[words[0] >= 20]})
    return found


def model_for(task: str = "sequence-classification", name: str = "bert-base", **options):
    generator = torch.Generator().manual_seed(0)
    return zoo.create(name, task=task, generator=generator, **SIZES, **options)


def classifier(**fields):
    return model_for(labels=["low", "high"], **fields)


def test_a_model_learns_and_the_best_one_is_kept(tokenizer, tmp_path):
    model = classifier(dropout=0.0, attention_dropout=0.0)
    report = fit(
        model, rows(), rows(64, 1), tokenizer=tokenizer, out=tmp_path / "run", epochs=8, batch_size=16, lr=5e-3
    )
    assert report.best is not None
    assert report.best["eval_accuracy"] > 0.75  # chance: 0.5
    assert report.steps == 48
    assert not model.training
    found = evaluate(model, rows(64, 1), tokenizer=tokenizer)
    saved = evaluate(zoo.load(tmp_path / "run"), rows(64, 1), tokenizer=zoo.tokenizer(tmp_path / "run"))
    for name, value in found.items():
        assert value == pytest.approx(report.best[f"eval_{name}"], abs=1e-6)
        assert saved[name] == pytest.approx(value, abs=1e-6)
    with (tmp_path / "run" / FOLDER / "log.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert [int(row["step"]) for row in logged] == [row["step"] for row in report.history]
    assert max(float(row["eval_accuracy"]) for row in logged if row["eval_accuracy"]) == report.best["eval_accuracy"]


def test_the_best_and_not_the_last_weights_come_back(tokenizer):
    """With a rate that ruins the model in the end, what comes back is better than the last."""
    model = classifier(dropout=0.0, attention_dropout=0.0)
    report = fit(
        model,
        rows(),
        rows(64, 1),
        tokenizer=tokenizer,
        epochs=10,
        batch_size=16,
        lr=6e-3,
        decay="constant",
        metric="loss",
    )
    losses = [row["eval_loss"] for row in report.history if "eval_loss" in row]
    assert report.best["eval_loss"] == min(losses)
    assert evaluate(model, rows(64, 1), tokenizer=tokenizer)["loss"] == pytest.approx(min(losses), abs=1e-6)


def test_patience_ends_a_run_that_gets_no_better(tokenizer):
    model = classifier()
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    report = fit(model, rows(32), rows(32), tokenizer=tokenizer, epochs=9, lr=1e-12, metric="accuracy", patience=2)
    assert report.stopped_early
    assert report.steps == 3


def test_accumulated_batches_are_one_update(tokenizer):
    """Four batches of four make the step of one of sixteen: rows of one length, so that means agree."""
    texts = [{"text": f"w{n} w{n + 1} w{n + 2}", "label": ("low", "high")[n % 2]} for n in range(16)]
    trained = []
    for settings in ({"batch_size": 16}, {"batch_size": 4, "accumulate": 4}):
        model = classifier(dropout=0.0, attention_dropout=0.0).double()
        fit(model, texts, tokenizer=tokenizer, epochs=2, lr=1e-2, warmup=0.0, **settings)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*trained, atol=1e-9)


def test_the_rate_warms_up_and_falls_and_layers_have_their_share():
    settings = Settings(warmup=4, lr=1.0)
    shares = [settings.schedule(12)(step) for step in range(13)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[4:] == pytest.approx([1 - n / 8 for n in range(9)])
    assert Settings(warmup=0.0, decay="cosine").schedule(10)(5) == pytest.approx(0.5)
    assert Settings(warmup=0.5, decay="constant").schedule(4)(3) == 1.0


def test_an_interrupted_run_goes_on_with_the_same_curve(tokenizer, tmp_path):
    """Stopped in the middle of an epoch by an error, dropout and all."""
    settings = {"epochs": 3, "batch_size": 16, "lr": 1e-3, "log_every": 1, "save_every": 2, "seed": 3}
    whole_model, cut_model = classifier(), classifier()
    whole = fit(whole_model, rows(), rows(32, 1), tokenizer=tokenizer, out=tmp_path / "a", **settings)

    class Cut(Exception):
        pass

    def stop(row):
        if row["step"] == 9:
            raise Cut

    with pytest.raises(Cut):
        fit(cut_model, rows(), rows(32, 1), tokenizer=tokenizer, out=tmp_path / "b", on_event=stop, **settings)
    torch.manual_seed(99)
    fresh = classifier()
    rest = fit(fresh, rows(), rows(32, 1), tokenizer=tokenizer, out=tmp_path / "b", resume=True, **settings)
    assert [r["step"] for r in rest.history] == [r["step"] for r in whole.history]
    for left, right in zip(rest.history, whole.history, strict=True):
        assert {n: v for n, v in left.items() if n != "seconds"} == {n: v for n, v in right.items() if n != "seconds"}
    for left, right in zip(fresh.parameters(), whole_model.parameters(), strict=True):
        assert torch.equal(left, right)
    again = classifier()
    done = fit(again, rows(), rows(32, 1), tokenizer=tokenizer, out=tmp_path / "b", resume=True, **settings)
    assert done.steps == whole.steps
    for left, right in zip(again.parameters(), whole_model.parameters(), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(ConfigError, match="other settings: lr"):
        fit(
            classifier(),
            rows(),
            rows(32, 1),
            tokenizer=tokenizer,
            out=tmp_path / "b",
            resume=True,
            **{**settings, "lr": 1},
        )


def test_batches_of_a_loader_are_trained_on_without_a_tokenizer(tokenizer):
    model = classifier(dropout=0.0, attention_dropout=0.0)
    batch = {**tokenizer(["w1 w2", "w30 w3 w4"]), "labels": torch.tensor([0, 1])}
    report = fit(model, [batch] * 5, epochs=6, lr=1e-2)
    assert report.steps == 30
    assert report.history[-1]["loss"] < 0.1
    with pytest.raises(TaskError, match="made no loss"):
        fit(model, [tokenizer(["w1"])], epochs=1)


def test_bfloat16_trains_float32_weights(tokenizer):
    model = classifier()
    fit(model, rows(32), tokenizer=tokenizer, epochs=1, precision="bfloat16")
    assert model.dtype == torch.float32


def test_with_lora_the_base_stays(tokenizer, tmp_path):
    model = classifier()
    zoo.apply(model, zoo.LoRA(rank=2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, rows(), rows(32, 1), tokenizer=tokenizer, out=tmp_path, epochs=1, lr=1e-2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in changed)
    loaded = zoo.load(tmp_path)
    for (name, p), (_, q) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_what_makes_no_sense_is_refused(tokenizer):
    model = classifier()
    with pytest.raises(UnknownNameError, match="'lr' here"):
        fit(model, rows(4), tokenizer=tokenizer, learning_rate=1)
    with pytest.raises(ConfigError, match="epochs=0"):
        fit(model, rows(4), tokenizer=tokenizer, epochs=0)
    with pytest.raises(ConfigError, match="give rows to evaluate on"):
        fit(model, rows(4), tokenizer=tokenizer, patience=2)
    with pytest.raises(ConfigError, match="no 'f2'"):
        fit(model, rows(4), rows(4), tokenizer=tokenizer, metric="f2")
    with pytest.raises(InputError, match=r"tokenizer=zoo\.tokenizer"):
        fit(model, rows(4))
    with pytest.raises(InputError, match="'middle' is none that the model knows: low, high"):
        fit(model, [{"text": "w1", "label": "middle"}], tokenizer=tokenizer)
    with pytest.raises(TaskError, match="a bare model has no loss"):
        fit(zoo.create("bert-base", **SIZES), rows(4), tokenizer=tokenizer)
    with torch.no_grad():
        model.heads["sequence_classification"].bias.fill_(float("inf"))
    with pytest.raises(ConfigError, match="the loss is"):
        fit(model, rows(4), tokenizer=tokenizer)


def test_options_are_read_from_the_rows():
    def of(values, **options):
        return task_options([{"text": "a", "label": value} for value in values], "sequence-classification", **options)

    assert of(["b", "a", "b"]) == {"labels": ["a", "b"]}
    assert of(["1", "0", "3"]) == {"labels": ["0", "1", "2", "3"]}
    assert of([5, 1, 3]) == {"labels": ["1", "3", "5"]}
    assert of(["0.5", "1"]) == {"problem_type": "regression", "num_labels": 1}
    assert of([["x"], ["y", "x"], []]) == {"problem_type": "multi-label", "labels": ["x", "y"]}
    assert of(["a", "b"], labels=["b", "a", "c"]) == {"labels": ["b", "a", "c"]}


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_curve(tokenizer, tmp_path):
    """SIGKILL in the middle, twice, then to the end: the log and the weights of a run left alone."""
    script = f"""
import sys, torch
sys.path.insert(0, {os.getcwd()!r})
from tests.training.test_loop import classifier, rows
from zoo.tokenization.wordpiece import wordpiece
from zoo.training import fit
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{{n}}" for n in range(40))]
tokenizer = wordpiece({{token: number for number, token in enumerate(tokens)}})
torch.set_num_threads(1)
fit(classifier(), rows(), rows(32, 1), tokenizer=tokenizer, out=sys.argv[1], resume=True, epochs=6,
    batch_size=8, lr=1e-3, log_every=1, save_every=3, seed=5)
"""
    run = [sys.executable, "-c", script]
    subprocess.run([*run, str(tmp_path / "whole")], check=True)
    state = tmp_path / "cut" / FOLDER / "state.safetensors"
    for _ in range(2):
        child = subprocess.Popen([*run, str(tmp_path / "cut")])
        seen = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if state.exists() and state.stat().st_mtime_ns != seen:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([*run, str(tmp_path / "cut")], check=True)
    logs = []
    for name in ("whole", "cut"):
        with (tmp_path / name / FOLDER / "log.csv").open() as file:
            logs.append([{n: v for n, v in row.items() if n != "seconds"} for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    left, right = (zoo.load(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(left[name], right[name]) for name in left)
