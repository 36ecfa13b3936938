"""Two processes on gloo: the same losses and gradients as one, and the same curve after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from tests import strategies as st
from tests.training.test_loop import classifier, rows, tokenizer  # noqa: F401
from zoo.errors import ConfigError
from zoo.training import fit, shard

ROOT = Path(__file__).parents[2]
HEAD = """
import json, os, sys, torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
sys.path.insert(0, "")
rank = dist.get_rank()
"""

# gloo's threads may end the process while a model that was stopped in the middle is taken apart
FOOT = """
dist.barrier()
os._exit(0)
"""


def torchrun(script: str, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes."""
    path = Path(str(arguments[0])).parent / "script.py"
    path.write_text(HEAD + script + FOOT)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(path), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ZOO_TEST_SHAPES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


FAMILIES = """
from tests import strategies as st
from zoo.training import shard
LEARNED = ("image-text-contrast", "masked-lm", "conditional-generation", "pretraining", "causal-lm")
LEARNED += ("image-classification", "sequence-classification")
worst = {}
def all_of(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # single numbers stay whole
for name in st.families():
    tasks = st.tasks_of(name)
    task = next(t for t in LEARNED if t in tasks)
    whole, batch = st.build(name, st.small_config(name), task), st.small_batch(name)
    labels = {} if task == "image-text-contrast" else st.labels_for(task, whole, batch)
    given = {**st.for_task(task, batch), **labels}
    parts = shard(st.build(name, st.small_config(name), task))
    losses = [model(**given).loss for model in (whole, parts)]
    for loss in losses:
        loss.backward()
    gap = abs(float(losses[0].detach()) - float(losses[1].detach()))
    for (key, p), (_, q) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), (name, key)
        if p.grad is not None:
            gap = max(gap, float((all_of(q.grad) - p.grad).abs().max()))
    worst[name] = gap
if rank == 0:
    open(sys.argv[1], "w").write(json.dumps(worst))
"""


@pytest.mark.slow
def test_every_family_is_shared_out_with_the_same_gradients(tmp_path):
    torchrun(FAMILIES, tmp_path / "gaps.json")
    gaps = json.loads((tmp_path / "gaps.json").read_text())
    assert set(gaps) == set(st.families())
    assert {name: gap for name, gap in gaps.items() if gap > 1e-9} == {}


COPIES = """
from tests.training.test_loop import classifier, rows
from torch.nn.parallel import DistributedDataParallel
from zoo.tokenization.wordpiece import wordpiece
from zoo.training import fit
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]
tokenizer = wordpiece({token: number for number, token in enumerate(tokens)})
out, kill = sys.argv[1], int(sys.argv[2])
def event(row):
    if row["step"] == kill:
        raise KeyboardInterrupt
model = DistributedDataParallel(classifier(dropout=float(sys.argv[3]), attention_dropout=0.0).double())
try:
    fit(model, rows(), rows(32, 1), tokenizer=tokenizer, out=out, on_event=event, resume=True, epochs=2,
        batch_size=16, accumulate=2, lr=1e-3, log_every=1, save_every=2)
except KeyboardInterrupt:
    pass
"""


def curve(folder: Path) -> list[dict[str, float]]:
    import csv

    with (folder / "training" / "log.csv").open() as file:
        return [{n: float(v) for n, v in row.items() if v and n != "seconds"} for row in csv.DictReader(file)]


def test_two_copies_learn_what_one_learns(tokenizer, tmp_path):  # noqa: F811
    torchrun(COPIES, tmp_path / "two", 0, 0.0)
    model = classifier(dropout=0.0, attention_dropout=0.0).double()
    settings = {"epochs": 2, "batch_size": 16, "accumulate": 2, "lr": 1e-3, "log_every": 1}
    fit(model, rows(), rows(32, 1), tokenizer=tokenizer, out=tmp_path / "one", **settings)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for left, right in zip(one, two, strict=True):
        assert right == pytest.approx(left, abs=1e-9)
    left, right = (zoo.load(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.allclose(left[name], right[name], atol=1e-9) for name in left)


@pytest.mark.slow
def test_two_copies_go_on_after_a_stop_with_the_same_curve(tmp_path):
    torchrun(COPIES, tmp_path / "whole", 0, 0.1)
    torchrun(COPIES, tmp_path / "cut", 5, 0.1)
    torchrun(COPIES, tmp_path / "cut", 0, 0.1)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


SHARES = """
import os
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
import zoo
from tests import strategies as st
from zoo.training import shard
folder, stop = sys.argv[1], int(sys.argv[2])
model = shard(st.build("albert", st.small_config("albert"), "masked-lm")).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batch = st.small_batch("albert")
given = {**batch.inputs, **st.labels_for("masked-lm", model, batch)}
step, losses = 0, []
if os.path.exists(f"{folder}/.metadata"):
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state, "step": torch.zeros(())}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    step = int(held["step"])
while step < stop:
    loss = model(**given).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
    step += 1
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": state, "step": torch.tensor(float(step))}, checkpoint_id=folder)
zoo.save(model, f"{folder}-saved")
if rank == 0:
    with open(f"{folder}-losses", "a") as file:
        file.write("".join(f"{loss!r}\\n" for loss in losses))
"""


def test_a_model_in_shares_is_saved_whole_and_goes_on(tmp_path):
    torchrun(SHARES, tmp_path / "cut", 3)
    torchrun(SHARES, tmp_path / "cut", 6)
    alone = st.build("albert", st.small_config("albert"), "masked-lm").train()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    batch = st.small_batch("albert")
    given, losses = {**batch.inputs, **st.labels_for("masked-lm", alone, batch)}, []
    for _ in range(6):
        loss = alone(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    found = [float(line) for line in (tmp_path / "cut-losses").read_text().split()]
    assert found == pytest.approx(losses, abs=1e-9)
    saved = zoo.load(tmp_path / "cut-saved").state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(saved[name], tensor, atol=1e-9), name
    described = (
        tmp_path / "cut-saved" / "config.json"
    )  # the sharded folder itself is read, and leaves for another library
    read = zoo.load(tmp_path / "cut", config=described).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in saved.items())
    zoo.convert(tmp_path / "cut", tmp_path / "theirs", to="hf-albert", config=described)
    back = zoo.load(tmp_path / "theirs", task="masked-lm").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in saved.items())


def test_without_a_group_it_is_said():
    with pytest.raises(ConfigError, match="torchrun"):
        shard(classifier())
