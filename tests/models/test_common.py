"""What holds for every registered family and every variant. A family that breaks one of these
declares it in `exceptions`.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tests import strategies
from tests.strategies import (
    batches,
    build,
    configs,
    family_tasks,
    labels_for,
    mask_of,
    model_class,
    pooled,
    relative,
    results,
    several_streams,
    small_batch,
    small_config,
    states,
    task_options,
)
from zoo.errors import TaskError
from zoo.layers import Mask
from zoo.registry import variants as registry
from zoo.registry.listing import offers_of
from zoo.registry.tasks import TASKS
from zoo.tasks.base import canonical_state, offers_of_class
from zoo.tasks.losses import FAR

FAMILIES = strategies.families()
FAMILY_TASKS = family_tasks()
TEXT_FAMILIES = [name for name in FAMILIES if not several_streams(name)]
PADDED = [name for name in FAMILIES if small_batch(name).streams]  # the others read pictures of one size
PADDED_TASKS = [(name, task) for name, task in FAMILY_TASKS if name in PADDED]
REGISTERED = strategies.registered()
VARIANTS = sorted(v.name for name in REGISTERED for v in registry.families()[name])
NAMES = [n for v in VARIANTS for n in (v, *(f"{v}.{tag}" for tag in registry.variant(v).tags))]
TOLERANCE = 2e-12  # two paths to one result in float64; norms over two dimensions widened rounding to 1.02e-12
SETTINGS = {"deadline": None, "derandomize": True}
PROPERTIES = (
    "padding",
    "batch-order",
    "packing",
    "gradients",
)  # those that a family may declare broken, with its reason


def agree(mine: Tensor, other: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    error = relative(mine, other)
    assert error <= tolerance, f"{what} differs by {error:.2e}"


def breaks(name: str, property_name: str) -> bool:
    """Whether the family declares that its paper's model does not have a property; then the test
    asserts just that.
    """
    return property_name in model_class(name).exceptions


def run(model: Any, inputs: Any, **more: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **more)


@functools.cache
def small(name: str, task: str | None = None, **fields: Any) -> Any:
    """One fixed small model of a family; tests must not change it."""
    return build(name, small_config(name, **fields), task, seed=1)


# -- the registry ------------------------------------------------------------------------------------------------------


def test_every_registered_family_is_known_to_these_tests():
    assert FAMILIES == REGISTERED, (
        f"write {', '.join(f'tests/families/{n}.py' for n in set(REGISTERED) - set(FAMILIES))}"
    )
    for name in FAMILIES:
        assert strategies.family(name).tiny_config
        assert strategies.family(name).inputs


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_parameter_count_is_met_and_the_build_on_meta_is_complete(name):
    variant, tag = registry.resolve(name)
    config = zoo.config(name)
    overrides = {
        key: value for key, value in config.to_dict().items() if value != zoo.config(variant.name).to_dict()[key]
    }
    model = zoo.create(variant.name, device="meta", **overrides)
    assert model.config == config
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    stated = (variant.tags[tag].parameters if tag else {}) or ({} if overrides else variant.parameters)
    if stated:
        assert stated["source"]
        assert model.num_parameters() == stated["count"]
    if variant.inputs == ("pixel_values",):
        out = model(torch.zeros(2, 3, config.image_size, config.image_size, device="meta"))
        assert out.last_hidden_state.shape[::2] == (2, config.hidden_size)
        assert out.pooler_output.device.type == "meta"
    if {"visual_features", "pixel_values", "decoder_input_ids"} & set(variant.inputs):
        return
    ids = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    out = model(ids, torch.ones_like(ids), **({"language_ids": ids} if "language_ids" in variant.inputs else {}))
    assert out.last_hidden_state.shape == (2, 5, config.hidden_size)
    assert out.last_hidden_state.device.type == "meta"


def test_most_variants_state_a_parameter_count():
    if os.environ.get("ZOO_TEST_FAMILIES"):
        pytest.skip("said of all families together")
    assert sum(bool(registry.variant(name).parameters) for name in VARIANTS) >= 0.8 * len(VARIANTS)


@pytest.mark.parametrize("name", REGISTERED)
def test_the_registry_tells_without_torch_what_the_class_offers(name):
    for variant in registry.families()[name]:
        cls = variant.model_class()
        assert set(variant.heads) == set(cls.heads)
        assert variant.offers == tuple(cls.offers)
        assert variant.inputs == cls.inputs
        assert variant.pretraining == tuple(term.name for term in cls.pretraining)
        assert {term.head_name for term in cls.pretraining} - {""} <= set(cls.heads)
        assert {what for term in cls.pretraining for what in term.reads} <= set(cls.offers)
        assert offers_of(variant) == offers_of_class(cls)
        signature = inspect.signature(cls.forward).parameters
        assert set(variant.inputs) <= set(signature)
        assert set(signature) - {"self"} <= set(cls.input_table), "the table names every argument"
        for reason in cls.exceptions.values():
            assert len(reason.split()) > 3
        assert set(cls.exceptions) <= set(PROPERTIES)


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("task", TASKS)
def test_exactly_the_tasks_that_fit_can_be_built(name, task):
    variant = registry.families()[name][0].name
    if task in strategies.tasks_of(name):
        assert zoo.create(variant, task=task, device="meta").task == task
        assert variant in zoo.list_models(task=task)
        return
    assert variant not in zoo.list_models(task=task)
    with pytest.raises(TaskError) as caught:
        zoo.create(variant, task=task, device="meta")
    for fitting in strategies.tasks_of(name):
        assert fitting in str(caught.value)


# -- padding, order, packing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PADDED)
@given(data=st.data())
@settings(max_examples=strategies.examples(30), **SETTINGS)
def test_what_stands_at_padding_changes_nothing(name, data):
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config, least=0))
    model = build(name, config)
    other = batch.refilled(data.draw(st.integers(0, 99)))
    with zoo.packing(data.draw(st.booleans())):
        mine, theirs = run(model, batch.inputs), run(model, other.inputs)
    same = all(
        relative(a, b) <= TOLERANCE
        for a, b in zip(states(name, mine).values(), states(name, theirs).values(), strict=True)
    )
    assert same or breaks(name, "padding")


@pytest.mark.parametrize("name", [n for n in FAMILIES if breaks(n, "padding")])
def test_the_families_that_declare_it_really_read_what_stands_at_padding(name):
    model, batch = small(name), small_batch(name)
    outcomes = [states(name, run(model, batch.refilled(seed).inputs)) for seed in range(4)]
    assert any(
        relative(a, b) > 1e-6
        for other in outcomes[1:]
        for a, b in zip(outcomes[0].values(), other.values(), strict=True)
    )


@pytest.mark.parametrize("name", PADDED)
@given(data=st.data())
@settings(max_examples=strategies.examples(40), **SETTINGS)
def test_more_padding_anywhere_changes_nothing_on_real_tokens(name, data):
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config, least=0))
    model = build(name, config)
    mask = next(iter(batch.streams))
    length = batch.real(mask).shape[1]
    free = "position_ids" in batch.inputs  # without them the place in the row is the position
    room = getattr(config, "longest", config.max_positions) - length
    columns = data.draw(st.lists(st.integers(0 if free else length, length), min_size=1, max_size=max(1, min(3, room))))
    longer = batch.lengthened(mask, columns)
    with zoo.packing(data.draw(st.booleans())):
        mine, other = (
            run(model, batch.inputs, output_hidden_states=True),
            run(model, longer.inputs, output_hidden_states=True),
        )
    for (key, a), b in zip(states(name, mine).items(), states(name, other).values(), strict=True):
        real, real_longer = batch.real(mask_of(name, key)), longer.real(mask_of(name, key))
        assert relative(a[real], b[real_longer]) <= TOLERANCE or breaks(name, "padding")
        assert not a[~real].any(), "padded positions are zeros"
        assert not b[~real_longer].any(), "padded positions are zeros"
    if pooled(mine) is not None:
        assert relative(pooled(mine), pooled(other)) <= TOLERANCE or breaks(name, "padding")


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=strategies.examples(15), **SETTINGS)
def test_the_order_of_the_batch_changes_nothing(name, data):
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config, least=0))
    order = data.draw(st.permutations(range(batch.rows)))
    model = build(name, config)
    mine, other = run(model, batch.inputs), run(model, batch.reordered(order).inputs)
    where = torch.tensor(order)
    for a, b in zip(states(name, mine).values(), states(name, other).values(), strict=True):
        assert relative(a[where], b) <= TOLERANCE or breaks(name, "batch-order")
    if pooled(mine) is not None:
        agree(pooled(mine)[where], pooled(other), "pooler_output")


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=strategies.examples(40), **SETTINGS)
def test_every_path_gives_the_same(name, data):
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config, least=0))
    model = build(name, config)
    packed = run(model, batch.inputs, output_hidden_states=True)
    with zoo.packing(False):
        assert not model.packing
        padded = run(model, batch.inputs, output_hidden_states=True)
    written_out = run(model, batch.inputs, output_hidden_states=True, output_attentions=True)
    assert getattr(packed, "attentions", None) is None
    for other in (padded, written_out):
        for (field, a), b in zip(states(name, packed).items(), states(name, other).values(), strict=True):
            agree(a, b, field)
        if pooled(packed) is not None:
            agree(pooled(packed), pooled(other), "pooler_output")
    if several_streams(name):
        return
    assert len(packed.hidden_states) == len(written_out.attentions) + 1
    real = batch.real()
    for probabilities in written_out.attentions:
        rows = probabilities.transpose(1, 2)[real]
        agree(rows.sum(-1), torch.ones_like(rows.sum(-1)), "the sum of a query's probabilities")
        assert not probabilities.masked_fill(real[:, None, None, :], 0).any(), "padded keys get nothing"
        assert not probabilities.masked_fill(real[:, None, :, None], 0).any(), "padded queries are zeros"


@pytest.mark.parametrize(("name", "task"), FAMILY_TASKS)
def test_in_training_packed_and_unpacked_give_one_loss_and_one_gradient(name, task):
    batch = small_batch(name)
    outcomes = []
    for on in (True, False):
        model = build(name, small_config(name), task, seed=2).train()
        with zoo.packing(on):
            out = model(**strategies.for_task(task, batch), **labels_for(task, model, batch))
        loss = out.embedding.square().sum(0)[0] if task == "sentence-embedding" else out.loss
        loss.backward()
        outcomes.append((loss, results(out), dict(model.named_parameters())))
    (loss, mine, parameters), (other_loss, other, other_parameters) = outcomes
    agree(loss, other_loss, "loss")
    for key, value in mine.items():
        agree(value, other[key], key)
    reached = {key: p for key, p in parameters.items() if p.grad is not None}
    assert len(reached) == len(parameters) or breaks(name, "gradients")
    largest = max(float(p.grad.abs().max()) for p in reached.values())
    for key, parameter in reached.items():
        assert float((parameter.grad - other_parameters[key].grad).abs().max()) <= TOLERANCE * largest, key


@pytest.mark.parametrize(("name", "task"), PADDED_TASKS)
@pytest.mark.parametrize("packed", [True, False])
def test_padding_changes_no_loss_and_no_logits(name, task, packed):
    model, batch = small(name, task), small_batch(name)
    labels = labels_for(task, model, batch)
    longer = batch.lengthened("attention_mask", [6, 6])
    more = {
        key: torch.cat([x, torch.full((4, 2), -100)], 1) if x.dim() == 2 and x.shape[1] == 6 else x
        for key, x in labels.items()
    }
    with zoo.packing(packed):
        mine = results(run(model, strategies.for_task(task, batch), **labels))
        other = results(run(model, strategies.for_task(task, longer), **more))
    real, real_longer = batch.real(), longer.real()
    assert set(mine) == set(other)
    for key, value in mine.items():
        if value.shape[:2] == real.shape:
            far = FAR if key in ("start_logits", "end_logits") else 0  # where places compete, padding loses
            assert (value[~real] == far).all(), f"{key} is {far} at padding"
            assert (other[key][~real_longer] == far).all(), f"{key} is {far} at padding"
            assert relative(value[real], other[key][real_longer]) <= TOLERANCE or breaks(name, "padding"), key
        else:
            assert relative(value, other[key]) <= TOLERANCE or breaks(name, "padding"), key


@pytest.mark.parametrize(
    ("name", "task"),
    [
        (n, t)
        for n, t in FAMILY_TASKS
        if t != "multiple-choice" and "lengths" in inspect.signature(strategies.model_class(n).forward).parameters
    ],
)
def test_lengths_stand_in_for_the_mask(name, task):
    model, batch, lengths = small(name, task), small_batch(name), [3, 6, 1, 4]
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    batch = batch.with_(attention_mask=mask)
    labels = labels_for(task, model, batch)
    bare = {key: x for key, x in batch.inputs.items() if key != "attention_mask"}
    wanted = results(run(model, batch.inputs, **labels))
    for given_mask in ({}, {"attention_mask": mask}):
        got = results(run(model, {**bare, **given_mask}, lengths=lengths, **labels))
        for key, value in wanted.items():
            agree(value, got[key], key)


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_mask_by_position_is_a_mask_by_name(name):
    batch = small_batch(name)
    for task in (None, "token-classification", "sentence-embedding"):
        model = small(name, task)
        by_name = run(model, batch.inputs)
        with torch.no_grad():
            more = {key: x for key, x in batch.inputs.items() if key not in ("input_ids", "attention_mask")}
            by_position = model(batch.inputs["input_ids"], batch.inputs["attention_mask"], **more)
        for (key, a), (_, b) in zip(results(by_name).items(), results(by_position).items(), strict=True):
            agree(a, b, key)


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_the_first_hidden_state_is_what_enters_the_first_block_and_the_last_is_the_result(name):
    model, batch, seen = small(name), small_batch(name), []
    block = model.encoder
    while hasattr(block, "plan"):
        block = block.blocks[block.plan[0]]
    hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with zoo.packing(False):
            out = run(model, batch.inputs, output_hidden_states=True)
    finally:
        hook.remove()
    real = batch.real()
    assert torch.equal(out.hidden_states[0][real], seen[0][real])
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    depth = len(run(model, batch.inputs, output_attentions=True).attentions)
    assert len(out.hidden_states) == depth + 1
    bare = run(model, batch.inputs)
    assert bare.hidden_states is None
    assert bare.attentions is None


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_task_model_gives_the_extras_of_the_model_below(name):
    for task in strategies.tasks_of(name):
        model, batch = small(name, task), small_batch(name)
        out = run(model, strategies.for_task(task, batch), output_hidden_states=True, output_attentions=True)
        assert len(out.encoded.hidden_states) == len(out.encoded.attentions) + 1
        assert out.loss is None
        assert out.losses == {}


@pytest.mark.parametrize(("name", "task"), FAMILY_TASKS)
def test_the_loss_is_the_sum_of_the_named_losses(name, task):
    model, batch = small(name, task), small_batch(name)
    labels = labels_for(task, model, batch)
    if not labels:
        return
    out = run(model, strategies.for_task(task, batch), **labels)
    agree(sum(out.losses.values()), out.loss, "the sum of the losses")
    if task == "pretraining":
        wanted = [label for label in labels if label not in strategies.COMPANIONS.values()]
        assert len(out.losses) == len(wanted) >= 2
        for label in wanted:
            alone = run(
                model, batch.inputs, **{key: labels[key] for key in (label, strategies.COMPANIONS.get(label)) if key}
            )
            assert list(alone.losses.values()) == [alone.loss]


@pytest.mark.parametrize(("name", "task"), FAMILY_TASKS)
@given(data=st.data())
@settings(max_examples=strategies.examples(3), **SETTINGS)
def test_every_parameter_is_reached_by_the_gradient(name, task, data):
    config = data.draw(configs(name))
    batch = small_batch(name)
    own = {key: value for key, value in getattr(strategies.family(name), "SMALL", {}).items() if key == "image_size"}
    size = {key: value for key, value in {**strategies.READ, **own}.items() if key in config.field_names()}
    model = build(name, config.replace(**size), task, **data.draw(task_options(task))).train()
    if "token_type_ids" in batch.inputs:
        ids = batch.inputs["input_ids"]
        batch = batch.with_(token_type_ids=torch.arange(ids.numel()).reshape(ids.shape) % config.num_segments)
    out = model(**strategies.for_task(task, batch), **labels_for(task, model, batch))
    vector = out.embedding if task == "sentence-embedding" else out.loss
    (
        vector * torch.randn(vector.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).sum().backward()
    never = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not never or breaks(name, "gradients")


# -- save and load -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), [*((n, None) for n in FAMILIES), *FAMILY_TASKS])
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_is_exact(name, task, tied, tmp_path):
    if not tied and task not in ("masked-lm", "pretraining"):
        pytest.skip("nothing is tied here")
    options = {"num_labels": 3} if task and "num_labels" in TASKS[task].options else {}
    model = build(name, small_config(name, tie_word_embeddings=tied, activation="relu", norm_eps=1e-3), task, **options)
    folder = zoo.save(model, tmp_path / "saved")
    beside = {"preprocessor_config.json"} if registry.families()[name][0].images else set()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"} | beside
    loaded = zoo.load(folder)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.dtype == torch.float64
    assert not loaded.training
    mine, theirs = canonical_state(model), canonical_state(loaded)
    assert list(mine) == list(theirs)
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    batch = small_batch(name)
    inputs = batch.inputs if task is None else strategies.for_task(task, batch)
    for (key, a), (_, b) in zip(results(run(model, inputs)).items(), results(run(loaded, inputs)).items(), strict=True):
        assert torch.equal(a, b), key
    if task is not None:
        assert loaded.task == task
        assert loaded.options == model.options
        assert not [key for key in mine if key.startswith("model.")]
    again = zoo.save(loaded, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


TYING = [
    n
    for n, t in FAMILY_TASKS
    if t == "masked-lm" and "tie_word_embeddings" in strategies.model_class(n).Config.field_names()
]


@pytest.mark.parametrize("name", TYING)
def test_a_tied_decoder_stays_tied_through_load_save_and_to(name, tmp_path):
    model = zoo.load(zoo.save(small(name, "masked-lm", tie_word_embeddings=True), tmp_path / "saved"))
    for moved in (model, model.to(torch.float32), model.to("cpu"), zoo.load(zoo.save(model, tmp_path / "again"))):
        assert "heads.masked_lm.decoder.weight" not in canonical_state(moved)
        batch = small_batch(name)
        before = run(moved, batch.inputs).logits
        with torch.no_grad():
            moved.model.embeddings.token.weight[18] *= 3  # a row that no input reads: only the decoder can show it
        after = run(moved, {**batch.inputs, "input_ids": batch.inputs["input_ids"]}).logits
        used = bool((batch.inputs["input_ids"] == 18).any())
        assert not torch.equal(before[..., 18], after[..., 18])
        assert used or torch.equal(before[..., :18], after[..., :18])


@pytest.mark.parametrize("name", [n for n, t in FAMILY_TASKS if t == "pretraining"])
def test_a_saved_pretraining_model_serves_other_tasks_and_the_bare_model(name, tmp_path):
    whole = small(name, "pretraining")
    folder = zoo.save(whole, tmp_path / "saved")
    bare = zoo.load(folder, task="sentence-embedding")
    for key, tensor in canonical_state(bare).items():
        assert torch.equal(tensor, canonical_state(whole)[key]), key
    assert all(key.startswith(("heads.", "pooler.")) for key in bare.load_report.left_out)
    assert bare.load_report.left_out
    tuned = zoo.load(folder, task="sequence-classification", num_labels=5)
    assert set(tuned.load_report.random) == {
        "heads.sequence_classification.weight",
        "heads.sequence_classification.bias",
    }
    assert tuned.heads["sequence_classification"].weight.shape[0] == 5
    assert tuned.heads["sequence_classification"].weight.dtype == torch.float64
    assert float(tuned.heads["sequence_classification"].weight.abs().max()) > 0


# -- compile, export, dtype, device ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task"),
    [*((n, None) for n in FAMILIES), *((n, t) for n, t in FAMILY_TASKS if t in ("masked-lm", "question-answering"))],
)
def test_it_compiles_as_one_graph_and_agrees(name, task):
    model, batch = small(name, task), small_batch(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mine, theirs = results(run(model, batch.inputs)), results(run(compiled, batch.inputs))
    for key, value in mine.items():
        agree(value, theirs[key], key)


@pytest.mark.parametrize(
    ("name", "task"),
    [*((n, None) for n in TEXT_FAMILIES), *((n, t) for n, t in FAMILY_TASKS if t == "sequence-classification")],
)
def test_it_exports_for_any_batch_and_length_and_agrees(name, task):
    model, batch = small(name, task), small_batch(name)
    rows, length = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("length", min=3, max=10)
    shape = {0: rows, 1: length}
    if task is None:
        program = torch.export.export(
            model, (), dict(batch.inputs), dynamic_shapes=dict.fromkeys(batch.inputs, shape)
        ).module()
    else:  # a task hands its inputs on: by position, since torch.export can't tell the shapes of keywords there
        positions = list(inspect.signature(model.model.forward).parameters)[: len(batch.inputs)]
        if set(positions) != set(batch.inputs):
            pytest.skip("its inputs are not the first of the model below")
        batch = strategies.Batch({key: batch.inputs[key] for key in positions})
        program = torch.export.export(
            model, tuple(batch.inputs.values()), dynamic_shapes={"inputs": (shape,) * len(positions)}
        ).module()
    for inputs in (batch.inputs, {key: x[:3, 1:5] for key, x in batch.inputs.items()}):
        with torch.no_grad():
            mine = results(model(**inputs))
            theirs = results(program(**inputs) if task is None else program(*inputs.values()))
        assert set(mine) == set(theirs)
        for key, value in mine.items():
            agree(value, theirs[key], key)


@pytest.mark.parametrize(("name", "task"), [*((n, None) for n in FAMILIES), *FAMILY_TASKS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_asked_for_dtype_is_honored(name, task, dtype):
    config, batch = small_config(name), small_batch(name)
    drawn = {"generator": torch.Generator().manual_seed(0), **config.to_dict()}
    model = zoo.create(registry.families()[name][0].name, task=task, dtype=dtype, **drawn).eval()
    assert model.dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}
    inputs = batch.inputs if task is None else strategies.for_task(task, batch)
    out = run(model, inputs)
    exact = results(run(model.double(), inputs))
    for key, value in results(out).items():
        assert value.dtype == dtype, key
        assert value.isfinite().all(), key
        loose = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4, torch.float64: 0}[dtype]
        assert float((value.double() - exact[key]).abs().max()) <= loose * max(1.0, float(exact[key].abs().max())), key


@pytest.mark.parametrize(("name", "task"), FAMILY_TASKS)
def test_a_loss_of_a_half_precision_model_is_computed_in_single(name, task):
    labels_model, batch = small(name, task), small_batch(name)
    labels = {
        key: x.float() if x.is_floating_point() else x for key, x in labels_for(task, labels_model, batch).items()
    }
    if not labels:
        return
    model = build(name, small_config(name), task, dtype=torch.bfloat16)
    assert run(model, strategies.for_task(task, batch), **labels).loss.dtype == torch.float32


@pytest.mark.parametrize("name", [n for n, t in FAMILY_TASKS if t == "masked-lm"])
def test_weights_are_drawn_as_the_config_says_and_by_the_generator(name):
    variant = registry.families()[name][0].name
    fields = small_config(name, hidden_size=64, intermediate_size=128, vocab_size=300, initializer_range=0.05).to_dict()
    one, same, other = (
        zoo.create(variant, task="masked-lm", generator=torch.Generator().manual_seed(seed), **fields)
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    for path, part in one.named_modules():
        if type(part) is torch.nn.LayerNorm:
            assert (part.weight == 1).all(), path
        if type(part) in (torch.nn.Linear, torch.nn.Embedding):
            assert not torch.equal(part.weight, other.get_submodule(path).weight), path
            assert float(part.weight.abs().max()) <= 0.1, path
            if part.weight.numel() > 1000:  # a normal cut at two deviations has 0.88 of its deviation
                assert 0.82 * 0.05 < float(part.weight.std()) < 0.94 * 0.05, path
        if getattr(part, "bias", None) is not None:
            assert not part.bias.any(), path


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_acts_in_training_alone_and_everywhere_the_config_says(name):
    batch = small_batch(name)
    for field in ("dropout", "attention_dropout"):
        model = build(name, small_config(name, **{field: 0.5}))
        first, second = (next(iter(states(name, run(model, batch.inputs)).values())) for _ in range(2))
        assert torch.equal(first, second), field
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(next(iter(states(name, run(model, batch.inputs)).values())), first), field


@pytest.mark.parametrize("name", [n for n, t in FAMILY_TASKS if t == "sequence-classification"])
def test_a_task_drops_its_pooled_vector_out_at_its_own_rate(name):
    batch = small_batch(name)
    quiet = build(name, small_config(name), "sequence-classification").train()
    assert torch.equal(run(quiet, batch.inputs).logits, run(quiet, batch.inputs).logits)
    loud = build(name, small_config(name, classifier_dropout=0.5), "sequence-classification").train()
    assert not torch.equal(run(loud, batch.inputs).logits, run(quiet, batch.inputs).logits)
    assert torch.equal(run(loud.eval(), batch.inputs).logits, run(quiet.eval(), batch.inputs).logits)


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_dropout_stands_behind_each_sublayer_and_behind_the_embeddings_norm(name):
    """A rate close to one drops nearly all: what is left is the other summand, or zeros."""
    model = build(name, small_config(name, dropout=0.999999)).train()
    ids = small_batch(name).inputs["input_ids"]
    embedded = model.embeddings(ids)
    projection = model.embeddings.projection
    assert torch.equal(
        embedded, torch.zeros_like(embedded) if projection is None else projection.bias.expand_as(embedded)
    )
    block = model.encoder
    while hasattr(block, "plan"):
        block = block.blocks[block.plan[0]]
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        agree(
            block(x, Mask()),
            block.feed_forward_norm(block.attention_norm(x)),
            "a block of which all sublayers are dropped",
        )
