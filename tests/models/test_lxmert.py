"""LXMERT against transformers over the configuration space, in float64, and what only it has."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tests import oracle
from tests.families import lxmert
from tests.pictures import labels_for
from tests.references.case import GOLDEN, load_case
from tests.references.lxmert import RENAMED
from tests.strategies import Batch, batches, build, examples, relative, small_batch, small_config
from zoo.errors import ConfigError, InputError, TaskError
from zoo.registry import records as sources
from zoo.tasks.losses import masked_feature_loss, weighted_class_loss

SETTINGS = {"deadline": None, "derandomize": True}
OWN_NAMES = {own: name for name, own in RENAMED.items()}


def agree(mine: Tensor, other: Tensor, what: str, where: Tensor | None = None) -> None:
    mine, other = (x if where is None else x[where] for x in (mine, other))
    error = relative(mine, other)
    assert error <= 1e-9, f"{what} differs from transformers by {error:.2e}"


def drawn(data: st.DataObject, **fixed: Any) -> tuple[Any, Batch]:
    same = {"fixed_first_rows": True, "norm_eps": 1e-12}  # what their code writes
    config = data.draw(st.composite(lambda draw: lxmert.tiny_config(draw, **same, **fixed))())
    batch = data.draw(batches("lxmert", config)).masked
    without = {name: x for name, x in batch.inputs.items() if name != "position_ids"}  # theirs takes none
    return config, Batch(without)


def as_theirs(inputs: Any) -> dict[str, Tensor]:
    return {OWN_NAMES[name]: x.long() if name.endswith("mask") else x for name, x in inputs.items()}


def gradient(parameter: Tensor) -> Tensor:
    """Zeros for what no loss reads: the last image blocks without heads of regions."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def depths(alone: int, across: int) -> list[int]:
    """Which of our states theirs lists: after each block alone, then after both blocks of a cross layer."""
    return [*range(1, alone + 1), *range(alone + 2, alone + 2 * across + 1, 2)]


@given(data=st.data())
@settings(max_examples=examples(15), **SETTINGS)
def test_the_encoder_is_transformers_encoder(data):
    config, batch = drawn(data)
    ours = build("lxmert", config, seed=data.draw(st.integers(0, 2**16)))
    theirs = oracle.taught(lxmert.LAYOUT, lxmert.theirs(config, None, {}), ours)
    with torch.no_grad():
        reference = theirs(**as_theirs(batch.inputs), output_hidden_states=True, output_attentions=True)
        found = [ours(**batch.inputs, output_hidden_states=True, output_attentions=maps) for maps in (False, True)]
    text, image = batch.real(), batch.real("visual_mask")
    for mine in found:
        agree(mine.pooler_output, reference.pooled_output, "pooled", text[:, 0])
        for stream, real, theirs_too, alone in (
            (mine.text, text, reference.language_hidden_states, config.num_layers),
            (mine.image, image, reference.vision_hidden_states, config.image_num_layers),
        ):
            kept = depths(alone, config.cross_num_layers)
            assert len(kept) == len(theirs_too)
            for depth, state in zip(kept, theirs_too, strict=True):
                agree(stream.hidden_states[depth], state, f"state {depth}", real)
            agree(stream.last_hidden_state, theirs_too[-1], "last state", real)
    for own, other, real in (
        (found[1].text.attentions[: config.num_layers], reference.language_attentions, text),
        (found[1].image.attentions[: config.image_num_layers], reference.vision_attentions, image),
        ([across for across, _ in found[1].cross_attentions], reference.cross_encoder_attentions, text),
    ):
        for a, b in zip(own, other, strict=True):
            agree(a.transpose(1, 2), b.transpose(1, 2), "map", real)


@given(data=st.data())
@settings(max_examples=examples(10), **SETTINGS)
def test_every_head_every_loss_and_every_gradient_of_pretraining_is_transformers(data):
    config, batch = drawn(data)
    text, image = batch.real(), batch.real("visual_mask")
    batch = batch.with_(attention_mask=text.index_fill(1, torch.tensor([0]), True))  # theirs pools column 0
    weight = float(image.sum()) / image.numel()  # theirs divides the losses of regions by padding too
    ours = build("lxmert", config, "pretraining", seed=data.draw(st.integers(0, 99)), region_loss_weight=6.67 * weight)
    theirs = oracle.taught(lxmert.LAYOUT, lxmert.theirs(ours.config, "pretraining", {}), ours)
    labels = lxmert.pretraining_labels(ours, batch)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    labels["labels"] = torch.randint(config.vocab_size, text.shape, generator=generator).masked_fill(
        ~batch.real(), -100
    )
    labels["match_labels"] = torch.randint(2, (batch.rows,), generator=generator)
    if "answer_labels" in labels:
        labels["answer_labels"] = labels["answer_labels"].clamp(min=0)
    given: dict[str, Any] = {"labels": labels["labels"], "matched_label": labels["match_labels"]}
    given["ans"] = labels.get("answer_labels")
    parts = {"obj": ("object_labels", "object_confidence"), "attr": ("attribute_labels", "attribute_confidence")}
    parts["feat"] = ("region_targets", "region_labels")
    if config.predict_regions:
        given["obj_labels"] = {n: tuple(labels[own] for own in pair) for n, pair in parts.items() if pair[0] in labels}
    mine, reference = ours(**batch.inputs, **labels), theirs(**as_theirs(batch.inputs), **given)
    assert relative(mine.loss, reference.loss.double()) < 1e-6  # theirs sums in float32
    agree(mine.prediction_logits, reference.prediction_logits, "words", batch.real())
    agree(mine.seq_relationship_logits, reference.cross_relationship_score, "matching")
    if config.predict_answers:
        agree(mine.scores["image_question_answering"], reference.question_answering_score, "answers")
    mine.loss.backward()
    reference.loss.backward()
    back = oracle.way_back(
        lxmert.LAYOUT, ours, {key.removeprefix("model."): gradient(p) for key, p in ours.named_parameters()}
    )
    other = {key: gradient(p) for key, p in theirs.named_parameters(remove_duplicate=False)}
    assert set(back) == set(other)
    largest = max(float(x.abs().max()) for x in back.values())
    for key, x in back.items():
        assert float((x - other[key]).abs().max()) <= 1e-9 * largest, key


@given(data=st.data())
@settings(max_examples=examples(5), **SETTINGS)
def test_the_answers_are_transformers_answers(data):
    config, batch = drawn(data)
    batch = batch.with_(attention_mask=batch.real().index_fill(1, torch.tensor([0]), True))
    ours = build("lxmert", config, "visual-question-answering", num_labels=3)
    assert ours.config.num_answers == 3
    theirs = oracle.taught(lxmert.LAYOUT, lxmert.theirs(ours.config, "visual-question-answering", {}), ours)
    labels = torch.arange(batch.rows) % 3
    with torch.no_grad():
        mine = ours(**batch.inputs, labels=labels)
        reference = theirs(**as_theirs(batch.inputs), labels=labels)
    agree(mine.logits, reference.question_answering_score, "answers")
    agree(mine.loss, reference.loss, "loss")


# -- the losses, written out -------------------------------------------------------------------------------------------


def test_the_losses_of_regions_are_the_loops_written_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    targets = 3 * torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    labels, weights = torch.randint(5, (3, 4), generator=generator), torch.rand(3, 4, generator=generator)
    labels[0, 1] = -100
    chosen = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 1]])
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    classes, features, count = 0.0, 0.0, 0
    for row in range(3):
        for region in range(4):
            if not real[row, region]:
                continue
            count += 1
            scores = logits[row, region].tolist()
            if labels[row, region] != -100:
                total = math.log(sum(math.exp(score) for score in scores))
                classes += float(weights[row, region]) * (total - scores[int(labels[row, region])])
            if chosen[row, region] == 1:
                apart = [abs(a - b) for a, b in zip(scores, targets[row, region].tolist(), strict=True)]
                features += sum(x * x / 2 if x < 1 else x - 0.5 for x in apart) / 5
    assert float(weighted_class_loss(logits, labels, weights, real)) == pytest.approx(classes / count, rel=1e-12)
    assert float(masked_feature_loss(logits, chosen, targets, real)) == pytest.approx(features / count, rel=1e-12)
    nothing = masked_feature_loss(logits.requires_grad_(), torch.zeros_like(chosen), targets, real)
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert not logits.grad.any()


def test_labels_of_regions_need_what_stands_beside_them():
    model, batch = build("lxmert", small_config("lxmert"), "pretraining"), small_batch("lxmert")
    labels = labels_for("pretraining", model, batch)
    for missing in ("object_confidence", "region_targets"):
        left = {name: value for name, value in labels.items() if name != missing}
        with pytest.raises(InputError, match=missing):
            model(**batch.inputs, **left)
    with pytest.raises(TaskError, match=r"object_labels must lie in 0\.\.5"):
        model(**batch.inputs, **labels | {"object_labels": torch.full((4, 3), 6)})


# -- its own traps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [True, False])
def test_the_first_position_and_the_first_segment_learn_nothing_where_the_config_says_so(fixed):
    model = build("lxmert", small_config("lxmert", fixed_first_rows=fixed))
    batch = small_batch("lxmert")
    segments = torch.tensor([[0, 0, 1, 1, 1, 1]] * 4)
    model(**batch.inputs, token_type_ids=segments).pooler_output.sum().backward()
    for table in (model.embeddings.position.weight, model.embeddings.segment.weight):
        assert bool(table.grad[0].any()) is not fixed
        assert table.grad[1].any()


def test_one_attention_serves_both_directions_and_is_one_site_of_no_single_stream():
    model = build("lxmert", small_config("lxmert"))
    sites = {site.path: site for site in model.sites()}
    shared = sites["encoder.cross.0.attention"]
    assert (shared.role, shared.stream, shared.depths) == ("cross-attention", "joint", (3,))
    assert sites["encoder.cross_image.1.attention"].stream == "image"
    heads = zoo.HeadPruning(roles=("cross-attention",), kept=0.5)
    batch = small_batch("lxmert")
    before = model(**batch.inputs)
    zoo.apply(model, heads)
    after = model(**batch.inputs)
    for stream in ("text", "image"):
        change = getattr(after, stream).last_hidden_state - getattr(before, stream).last_hidden_state
        assert float(change.abs().max().detach()) > 1e-3, stream


def test_a_config_without_any_head_of_regions_says_so():
    with pytest.raises(ConfigError, match="predict_regions=False"):
        small_config("lxmert", predict_objects=False, predict_attributes=False, predict_features=False)


# -- the authors' own files --------------------------------------------------------------------------------------------


def originals(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A golden case under the names that the authors' code saves it with."""
    case = load_case(GOLDEN / "lxmert" / name)
    named = {f"module.{key}".replace("module.lxmert.", "module.bert."): x for key, x in case.weights.items()}
    return named, case.config


def test_the_authors_pretrained_file_is_read_and_written():
    named, config = originals("pretraining")
    model = zoo.load(named, config=config, task="pretraining")
    assert model.load_report.layout in ("lxmert-original", "hf-lxmert")
    named_model = zoo.load(named, config=config, layout="lxmert-original", task="pretraining")
    assert not named_model.load_report.random
    back = oracle.way_back("lxmert-original", named_model)
    assert set(back) == {key.removeprefix("module.") for key in named}
    assert all(torch.equal(back[key.removeprefix("module.")], x) for key, x in named.items())


@pytest.mark.parametrize("wrapped", ["lxrt_encoder.model.bert.", "lxrt_encoder.model.module.bert."])
@pytest.mark.parametrize(("task", "factor"), [("visual-question-answering", 1), ("visual-reasoning", 2)])
def test_the_authors_fine_tuned_files_are_read_for_the_task_that_is_asked_for(wrapped, task, factor):
    case = load_case(GOLDEN / "lxmert" / "qa")
    trunk = {key.replace("lxmert.", wrapped): x for key, x in case.weights.items() if key.startswith("lxmert.")}
    head = build("lxmert", small_config("lxmert", hidden_size=24), task, num_labels=5, dtype=torch.float32).heads
    part: Any = head[task.replace("-", "_")]
    assert part.dense.weight.shape == (48, 24 * factor)
    named = {"logit_fc.0": part.dense, "logit_fc.2": part.norm, "logit_fc.3": part.output}
    file = trunk | {f"{key}.{n}": x for key, module in named.items() for n, x in module.state_dict().items()}
    model = zoo.load(file, config=case.config, layout="lxmert-fine-tuned", task=task)
    assert not model.load_report.random
    assert model.options["num_labels"] == 5
    assert torch.equal(model.heads[task.replace("-", "_")].output.weight, part.output.weight)


@pytest.mark.parametrize(
    ("layout", "prefix", "head"),
    [
        ("hf-lxmert", "lxmert.", "answer_head.logit_fc"),
        ("lxmert-original", "module.bert.", "module.answer_head.logit_fc"),
        ("lxmert-fine-tuned", "lxrt_encoder.model.bert.", "logit_fc"),
    ],
)
def test_somebodys_own_file_takes_the_config_of_a_tag_in_whatever_layout(layout, prefix, head, monkeypatch, tmp_path):
    case, name = load_case(GOLDEN / "lxmert" / "qa"), "lxmert-base.vqa"
    known = dataclasses.replace(sources.record(name), config=case.config)
    assert not isinstance(sources.record(name).config, str)
    module = importlib.import_module("zoo.checkpoints.checkpoint")
    monkeypatch.setattr(module, "record_of", lambda asked: {name: known}[asked])
    renamed = {
        key.replace("lxmert.", prefix).replace("answer_head.logit_fc", head): x for key, x in case.weights.items()
    }
    torch.save(renamed, tmp_path / "their.pth")
    model = zoo.create(name, pretrained=tmp_path / "their.pth", task="visual-question-answering")
    assert model.load_report.layout == layout
    assert model.options["num_labels"] == 17
