"""A model that left as one file: it runs without zoo, for any batch and length, and gives what the
model gives.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import zoo
from tests.strategies import build, relative, small_config
from zoo.errors import InputError
from zoo.inference.export import ExportError, example_inputs, flat
from zoo.layers.outputs import Encoded, Output

SMALL = {
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_positions": 12,
}


def made(family: str, task: str | None = None) -> Any:
    return build(family, small_config(family), task, seed=2, dtype=torch.float32)


def opened(path: Any) -> Any:
    return torch.export.load(path).module()


def agrees(model: Any, program: Any, **sizes: int) -> None:
    inputs = example_inputs(model, **sizes)
    inputs["attention_mask"][0, -2:] = 0
    with torch.no_grad():
        mine, theirs = flat(model(**inputs)), program(*inputs.values())
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        assert relative(theirs[name].double(), value.double()) < 1e-5, name


@pytest.mark.parametrize(("family", "task"), [("vilbert", None), ("xlm-translation", None), ("bert", "masked-lm")])
def test_a_file_gives_what_the_model_gives_for_other_sizes(family, task, tmp_path):
    model = made(family, task)
    report = zoo.export(model, tmp_path / "model.pt2")
    assert report["inputs"] == list(example_inputs(model))
    assert report["bytes"] == (tmp_path / "model.pt2").stat().st_size
    assert ("text.last_hidden_state" in report["outputs"]) == (family == "vilbert")
    agrees(model, opened(tmp_path / "model.pt2"), rows=5, length=7)


def test_the_file_opens_where_zoo_was_never_imported(tmp_path):
    model = made("bert")
    zoo.export(model, tmp_path / "model.pt2")
    inputs = example_inputs(model, rows=3, length=6)
    code = (
        "import sys, json, torch; given, files = json.load(sys.stdin), {'zoo.json': ''};"
        "run = torch.export.load(sys.argv[1], extra_files=files).module();"
        "names = json.loads(files['zoo.json'])['inputs']; assert 'zoo' not in sys.modules;"
        "print(run(*(torch.tensor(given[name]) for name in names))['last_hidden_state'].sum().item())"
    )
    text = json.dumps({name: tensor.tolist() for name, tensor in inputs.items()})
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt2")],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    with torch.no_grad():
        wanted = float(model(**inputs).last_hidden_state.sum())
    assert float(done.stdout) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "techniques",
    [
        [
            zoo.HeadPruning(kept=0.5),
            zoo.FeedForwardPruning(kept=0.5),
            zoo.WidthPruning(kept=0.75),
            zoo.LayerPruning(layers=(1,)),
        ],
        [zoo.FactorizedEmbedding(size=4), zoo.Int8()],
    ],
    ids=["structured", "int8"],
)
def test_a_compressed_model_leaves_as_small_as_it_is(techniques, tmp_path):
    sizes = SMALL | {"vocab_size": 40_000}  # so that weights outweigh the graph
    model = zoo.create("bert-base", techniques=techniques, generator=torch.Generator().manual_seed(0), **sizes).eval()
    plain = zoo.create("bert-base", **sizes)
    assert zoo.export(model, tmp_path / "small.pt2")["bytes"] < zoo.export(plain, tmp_path / "large.pt2")["bytes"]
    agrees(model, opened(tmp_path / "small.pt2"), rows=3, length=9)


def test_onnx_gives_what_the_model_gives(tmp_path):
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    model = zoo.create("albert-base", generator=torch.Generator().manual_seed(0), embedding_size=8, **SMALL).eval()
    report = zoo.export(model, tmp_path / "model.onnx")
    inputs = example_inputs(model, rows=3, length=5)
    theirs = reference.ReferenceEvaluator(str(tmp_path / "model.onnx")).run(
        None, {name: x.numpy() for name, x in inputs.items()}
    )
    with torch.no_grad():
        mine = flat(model(**inputs))
    assert list(mine) == report["outputs"]
    for value, other in zip(mine.values(), theirs, strict=True):
        assert relative(torch.from_numpy(other).double(), value.double()) < 1e-5


def test_a_training_model_goes_on_training_and_sizes_can_be_fixed(tmp_path):
    model = made("bert").train()
    zoo.export(model, tmp_path / "model.pt2", rows=1, length=6)
    assert model.training
    program = opened(tmp_path / "model.pt2")
    agrees(model.eval(), program, rows=1, length=6)
    with pytest.raises((RuntimeError, AssertionError)):
        program(*example_inputs(model, rows=1, length=7).values())


def test_a_program_that_says_something_else_is_never_written(tmp_path, monkeypatch):
    model, other = made("bert"), build("bert", small_config("bert"), None, seed=3, dtype=torch.float32)
    module = importlib.import_module("zoo.inference.export")
    traced = module._traced
    monkeypatch.setattr(
        module, "_traced", lambda positional, *rest: traced(module.Positional(other, positional.names).eval(), *rest)
    )
    with pytest.raises(ExportError, match="another last_hidden_state"):
        zoo.export(model, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_leave_is_refused_and_leaves_nothing(tmp_path):
    model = made("bert")
    with pytest.raises(InputError, match=r"end in \.pt2 or \.onnx"):
        zoo.export(model, tmp_path / "model.txt")
    with pytest.raises(InputError, match="export the original"):
        zoo.export(zoo.optimize(model), tmp_path / "model.pt2")
    with pytest.raises(ExportError, match="can't trace"):
        zoo.export(zoo.apply(model, zoo.MovementPruning(threshold=0.5)), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class Scored(Output):
    """A user's own result."""

    scores: torch.Tensor
    encoded: Encoded
    extra: torch.Tensor | None = None


class Scorer(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, result=None):
        encoded = self.model(ids)
        scores = encoded.last_hidden_state.sum(-1)
        return Scored(scores if result is None else scores + result.scores, encoded)


def test_a_users_own_result_goes_into_an_exported_program_and_comes_out_of_it(tmp_path):
    scorer = Scorer(zoo.create("bert-base", **SMALL).eval())
    ids = torch.tensor([[1, 2, 3]])
    given = Scored(torch.full((1, 3), 2.0), Encoded(torch.zeros(1, 3, 16)))
    taken = torch.export.export(scorer, (ids, given)).module()(ids, given)
    torch.testing.assert_close(taken.scores, scorer(ids).scores + 2)
    torch.export.save(torch.export.export(scorer, (ids,)), tmp_path / "scorer.pt2")
    found = torch.export.load(tmp_path / "scorer.pt2").module()(ids)
    assert isinstance(found, Scored)
    assert (found.extra, found.encoded.attentions) == (None, None)
    torch.testing.assert_close(found.encoded.last_hidden_state, scorer(ids).encoded.last_hidden_state)
