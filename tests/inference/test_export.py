"""A model that left as one file: it runs without zoo, for any batch and length, and gives what the
model gives.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import zoo
from tests.cli.test_cli import run
from tests.strategies import build, randomised, relative, small_config
from zoo.errors import InputError
from zoo.inference.export import ExportError, example_inputs, flat
from zoo.layers.outputs import Encoded, Output
from zoo.models.bert import Bert, BertConfig

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


def small(name: str, task: str | None = None, **options: Any) -> Any:
    return randomised(zoo.create(name, task=task, **SMALL, **options))


class Named(Bert):
    """A user's model whose result bears names that torch gives to operations."""

    def forward(self, *inputs, **named):
        states = super().forward(*inputs, **named).last_hidden_state
        return NamedOutput(softmax=states.softmax(-1), linear=states.mean(1), add=states + 1)


@dataclasses.dataclass(frozen=True)
class NamedOutput(Output):
    softmax: torch.Tensor
    linear: torch.Tensor
    add: torch.Tensor


ONNX = {
    "plain": lambda: small("albert-base", embedding_size=8),
    "embedding": lambda: small("minilm-l6-h384", "sentence-embedding"),  # as torch calls the look-up of tokens
    "one segment": lambda: small("roberta-base", "masked-lm"),
    "choices": lambda: small("distilbert-base", "multiple-choice"),
    "named like operations": lambda: randomised(Named(BertConfig(**SMALL))),
}


@pytest.mark.parametrize("kind", ONNX)
def test_an_onnx_file_is_valid_and_gives_what_the_model_gives(kind, tmp_path):
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    model = ONNX[kind]()
    report = zoo.export(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert ("token_type_ids" in report["inputs"]) == (kind not in ("one segment", "choices"))
    assert (report["ran_in"] is None) == (importlib.util.find_spec("onnxruntime") is None)
    inputs = example_inputs(model, rows=3, length=5)
    inputs["attention_mask"][0, ..., -2:] = 0
    theirs = reference.ReferenceEvaluator(str(tmp_path / "model.onnx")).run(
        None, {name: x.numpy() for name, x in inputs.items()}
    )
    with torch.no_grad():
        mine = flat(model(**inputs))
    assert list(mine) == report["outputs"]
    for value, other in zip(mine.values(), theirs, strict=True):
        assert relative(torch.from_numpy(other).double(), value.double()) < 1e-5


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [(lambda x: x + 1, "by .* of its largest value"), (lambda x: x * float("nan"), "by nan of its largest value")],
)
def test_a_file_that_gives_something_else_never_takes_its_name(ending, wrong, message, tmp_path, monkeypatch):
    """The program was right; what was written is not."""
    if ending == ".onnx":
        pytest.importorskip("onnxscript")
    module = importlib.import_module("zoo.inference.export")
    model = made("bert")
    (tmp_path / f"model{ending}").write_text("an older one")

    def opened(path, outputs):
        return lambda batch: {name: wrong(x) for name, x in flat(model(**batch)).items()}, "another library"

    monkeypatch.setattr(module, "_opened", opened)
    with pytest.raises(ExportError, match=f"the file, in another library, gives another .* than the model, {message}"):
        zoo.export(model, tmp_path / f"model{ending}", rows=2, length=5)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an older one"]


def test_an_onnx_file_that_is_not_valid_never_takes_its_name(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(importlib.import_module("zoo.inference.onnx_files"), "_rename", twice)
    with pytest.raises(ExportError, match=r"onnx's checker refuses the file: .*single static assignment"):
        zoo.export(made("bert"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def twice(model: Any, inputs: list[str], outputs: list[str]) -> None:
    first = next(value for node in model.graph for value in node.outputs)
    model.graph.outputs[0].name = first.name


def test_an_onnx_file_that_nobody_could_run_says_so(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    zoo.save(made("bert"), tmp_path / "bert")
    code, out, _ = run(monkeypatch, capsys, "export", str(tmp_path / "bert"), str(tmp_path / "model.onnx"))
    assert code == 0
    assert "not run: onnxruntime is not installed" in out


def test_what_onnx_cannot_say_is_refused_by_its_name(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match=r"as ONNX: it has nothing for aten\._int_mm; write \.pt2 instead"):
        zoo.export(zoo.apply(made("bert"), zoo.Int8()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 8e-3), (torch.bfloat16, 7e-2)])
def test_half_precision_is_held_to_its_own_steps(dtype, bound, tmp_path, monkeypatch):
    module = importlib.import_module("zoo.inference.export")
    model = made("bert").to(dtype)
    off = {"by": bound * 0.5}

    def opened(path, outputs):
        return lambda batch: {n: x + off["by"] * x.abs().max() for n, x in flat(model(**batch)).items()}, "another"

    monkeypatch.setattr(module, "_opened", opened)
    zoo.export(model, tmp_path / "model.pt2", rows=2, length=5)
    off["by"] = bound * 2
    with pytest.raises(ExportError, match="gives another"):
        zoo.export(model, tmp_path / "model.pt2", rows=2, length=5)


def test_a_model_that_gives_no_numbers_is_not_exported(tmp_path):
    model = made("bert")
    with torch.no_grad():
        model.embeddings.norm.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="the model gives NaN or infinity in last_hidden_state"):
        zoo.export(model, tmp_path / "model.pt2")


def test_a_row_of_several_choices_leaves_for_other_numbers_of_them(tmp_path):
    model = made("distilbert", "multiple-choice")
    zoo.export(model, tmp_path / "model.pt2")
    inputs = {name: x[:, :2] for name, x in example_inputs(model, rows=3, length=7).items()}
    with torch.no_grad():
        mine, theirs = model(**inputs).logits, opened(tmp_path / "model.pt2")(*inputs.values())["logits"]
    assert mine.shape == (3, 2)
    assert relative(theirs.double(), mine.double()) < 1e-5


def test_a_pair_of_pictures_and_every_head_of_several_leave(tmp_path):
    zoo.export(made("vilbert", "visual-reasoning"), tmp_path / "pairs.pt2", rows=1, length=6)
    model = made("vilbert", "multi-task")
    with pytest.raises(ExportError, match="the examples' rows alone; fix them with rows= and length="):
        zoo.export(model, tmp_path / "model.pt2")  # two rows are a pair of pictures to NLVR2's head
    report = zoo.export(model, tmp_path / "model.pt2", rows=2, length=6)
    scores = model(**example_inputs(model, length=6)).scores
    assert "visual_reasoning" in scores
    assert {f"scores.{name}" for name in scores} <= set(report["outputs"])


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
