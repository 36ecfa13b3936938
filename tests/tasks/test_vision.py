"""What holds for every model of pictures and words, and VisualBERT against transformers, in
float64.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tests import oracle, strategies
from tests.families import visualbert
from tests.pictures import for_task, labels_for, reasoning
from tests.references.case import GOLDEN, load_case
from tests.strategies import Batch, build, family, relative, results
from zoo.data.regions.detectors import DETECTORS
from zoo.errors import CheckpointError, ConfigError, FetchError, InputError, TaskError
from zoo.formats.archive import Info
from zoo.formats.opening import open_archive
from zoo.layers import Attention, Run, Runs, Schedule, bert_block, embeddings, interleaved, packing, padding
from zoo.layers.schedule import draw as draw_schedule
from zoo.maps import layouts
from zoo.registry import records as sources
from zoo.registry import variants as registry
from zoo.registry.listing import offers_of
from zoo.registry.tasks import TASKS, spec_for
from zoo.tasks.base import canonical_state, offers_of_class

FAMILIES = [n for n in strategies.registered() if "visual_features" in registry.families()[n][0].inputs]
TOLERANCE = 1e-12
SETTINGS = {"deadline": None, "derandomize": True}


def tasks_of(name: str) -> list[str]:
    """The tasks that fit a family."""
    offers = offers_of(registry.families()[name][0])
    return [task for task in TASKS if not spec_for(task, offers).missing(offers)]


FAMILY_TASKS = [(name, task) for name in FAMILIES for task in tasks_of(name)]


def agree(mine: Tensor, other: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    error = relative(mine, other)
    assert error <= tolerance, f"{what} differs by {error:.2e}"


def run(model: Any, inputs: Any, **more: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **more)


def configs_and_batches(data: st.DataObject, name: str, **fixed: Any) -> tuple[Any, Batch]:
    if name == "vilbert":
        fixed = {"num_tasks": data.draw(st.sampled_from([0, 3])), **fixed}
    config = data.draw(st.composite(lambda draw: family(name).tiny_config(draw, **fixed))())
    return config, data.draw(strategies.batches(name, config, least=1))


def states(name: str, config: Any, out: Any) -> dict[str, Tensor]:
    """Last states along their masks, without a task token."""
    found: dict[str, Tensor] = family(name).states(out)
    if getattr(config, "num_tasks", 0):
        text = found["attention_mask"]
        found["attention_mask"] = torch.cat([text[:, :1], text[:, 2:]], 1)
    return found


def tiny(name: str, **fields: Any) -> Any:
    return strategies.small_config(name, **fields)


def ragged(name: str) -> Batch:
    return strategies.small_batch(name)


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_registry_tells_without_torch_what_the_class_offers(name):
    for variant in registry.families()[name]:
        cls = variant.model_class()
        assert variant.heads == tuple(cls.heads)
        assert variant.inputs == cls.inputs
        assert offers_of(variant) == offers_of_class(cls)
        assert variant.streams == (1 if variant.fusion == "joint" else 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_over_texts_do_not_fit_and_those_over_pictures_do(name):
    variant = registry.families()[name][0].name
    for task in ("token-classification", "question-answering", "sentence-embedding", "next-sentence"):
        with pytest.raises(TaskError, match="does not fit"):
            zoo.create(variant, task=task, device="meta")
    for task in tasks_of(name):
        assert zoo.create(variant, task=task, device="meta").task == task
    with pytest.raises(TaskError, match="regions"):
        zoo.create("bert-base", task="grounding", device="meta")
    assert {"masked-lm", "multiple-choice", "visual-question-answering", "grounding"} <= set(tasks_of(name))
    assert ("pretraining" in tasks_of(name)) == (len(registry.families()[name][0].pretraining) > 1)  # one is a task
    assert {"vilbert-base", "visualbert-base"} <= set(zoo.list_models(task="visual-reasoning"))
    two_streams = zoo.list_models("*", streams=2, fusion="co-attention")
    assert set(two_streams) == {v.name for n in FAMILIES for v in registry.families()[n] if v.streams == 2}


# -- padding, order, packing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=strategies.examples(12), **SETTINGS)
def test_what_stands_at_padding_changes_nothing(name, data):
    config, batch = configs_and_batches(data, name)
    model = build(name, config)
    other = batch.refilled(data.draw(st.integers(0, 99)))
    with zoo.packing(data.draw(st.booleans())):
        mine, theirs = run(model, batch.inputs), run(model, other.inputs)
    for (mask, a), b in zip(states(name, config, mine).items(), states(name, config, theirs).values(), strict=True):
        agree(a, b, mask)


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=strategies.examples(15), **SETTINGS)
def test_more_padding_of_texts_or_regions_changes_nothing_on_real_ones(name, data):
    config, batch = configs_and_batches(data, name)
    model = build(name, config)
    mask = data.draw(st.sampled_from(["attention_mask", "visual_mask"]))
    length = batch.real(mask).shape[1]
    free = (
        mask == "visual_mask"
    )  # regions have no places; region 0 pools in ViLBERT, so padding may stand before it only as padding
    columns = data.draw(st.lists(st.integers(0 if free else length, length), min_size=1, max_size=1))
    longer = batch.lengthened(mask, columns)
    with zoo.packing(data.draw(st.booleans())):
        mine, other = run(model, batch.inputs), run(model, longer.inputs)
    for stream, a in states(name, config, mine).items():
        b = states(name, config, other)[stream]
        agree(a[batch.real(stream)], b[longer.real(stream)], stream)
        assert not a[~batch.real(stream)].any(), "padded positions are zeros"
        assert not b[~longer.real(stream)].any(), "padded positions are zeros"
    if mine.pooler_output is not None:
        agree(mine.pooler_output, other.pooler_output, "pooler_output")


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=strategies.examples(10), **SETTINGS)
def test_the_order_of_the_batch_changes_nothing(name, data):
    config, batch = configs_and_batches(data, name)
    order = data.draw(st.permutations(range(batch.rows)))
    model = build(name, config)
    mine, other = run(model, batch.inputs), run(model, batch.reordered(order).inputs)
    for a, b in zip(states(name, config, mine).values(), states(name, config, other).values(), strict=True):
        agree(a[torch.tensor(order)], b, "states")


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
@settings(max_examples=strategies.examples(15), **SETTINGS)
def test_every_path_gives_the_same(name, data):
    config, batch = configs_and_batches(data, name)
    model = build(name, config)
    packed = run(model, batch.inputs, output_hidden_states=True)
    with zoo.packing(False):
        padded = run(model, batch.inputs, output_hidden_states=True)
    written_out = run(model, batch.inputs, output_hidden_states=True, output_attentions=True)
    for other in (padded, written_out):
        for a, b in zip(every_state(packed), every_state(other), strict=True):
            agree(a, b, "states")
        if packed.pooler_output is not None:
            agree(packed.pooler_output, other.pooler_output, "pooler_output")
    for maps, asking, asked in every_map(written_out, config, batch):
        rows = maps.transpose(1, 2)[asking]
        if asked.any(1).all():
            agree(rows.sum(-1), torch.ones_like(rows.sum(-1)), "the sum of a query's probabilities")
        assert not maps.masked_fill(asked[:, None, None, :], 0).any(), "padded keys get nothing"
        assert not maps.masked_fill(asking[:, None, :, None], 0).any(), "padded queries are zeros"


def every_state(out: Any) -> list[Tensor]:
    streams = [out.text, out.image] if hasattr(out, "entity") else [out]
    return [state for stream in streams for state in (stream.last_hidden_state, *stream.hidden_states)]


def every_map(out: Any, config: Any, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each attention map with the real queries and keys it goes between."""
    text, image = batch.real(), batch.real("visual_mask")
    if not hasattr(out, "entity"):
        joint = torch.cat([text, image], 1)
        more = out.last_hidden_state.shape[1] - joint.shape[1]  # elements behind the regions, which all are real
        joint = torch.nn.functional.pad(joint, (0, more), value=True)
        return [(m, *([joint] * 2 if m.shape[2] == joint.shape[1] else [text] * 2)) for m in out.attentions]
    if getattr(config, "num_tasks", 0):
        text = torch.cat([torch.ones(len(text), 1, dtype=torch.bool), text], 1)
    own = [(m, text, text) for m in out.text.attentions] + [(m, image, image) for m in out.image.attentions]
    return own + [
        pair for to_image, to_text in out.cross_attentions for pair in ((to_image, text, image), (to_text, image, text))
    ]


LENGTHS, VISUAL_LENGTHS = [3, 6, 1, 4], [3, 1, 2, 2]
REAL_FIRST = {
    "attention_mask": (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long(),
    "visual_mask": (torch.arange(3) < torch.tensor(VISUAL_LENGTHS)[:, None]).long(),
}


def with_states(out: Any) -> dict[str, Tensor]:
    """What a model or a task model gives, the last states of text and regions among it."""
    encoded = getattr(out, "encoded", out)
    return results(out) | {"text": encoded.text.last_hidden_state, "image": encoded.image.last_hidden_state}


@pytest.mark.parametrize(("name", "task"), [*((name, None) for name in FAMILIES), *FAMILY_TASKS])
def test_lengths_of_texts_and_pictures_stand_in_for_their_masks(name, task):
    model, batch = build(name, tiny(name), task), ragged(name).with_(**REAL_FIRST)
    labels = labels_for(task, model, batch) if task else {}
    shaped = reasoning(model, for_task(task, batch)) if task else dict(batch.inputs)
    wanted = with_states(run(model, shaped, **labels))
    bare = {key: x for key, x in shaped.items() if key not in REAL_FIRST}
    for masks, counts in (
        ((), {"lengths": LENGTHS, "visual_lengths": VISUAL_LENGTHS}),
        (("visual_mask",), {"lengths": LENGTHS}),
        (("attention_mask",), {"visual_lengths": VISUAL_LENGTHS}),
        (tuple(REAL_FIRST), {"lengths": LENGTHS, "visual_lengths": VISUAL_LENGTHS}),
    ):
        got = with_states(run(model, {**bare, **{key: shaped[key] for key in masks}}, **counts, **labels))
        for key, value in wanted.items():
            agree(value, got[key], key)


class Silent(Tensor):
    """A tensor that answers no question, as one on an accelerator that nobody should wait for; what
    is made of it answers none either.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "__index__", "numpy"):
            raise AssertionError(f"{func.__name__} was asked of a tensor")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    ("name", "changes", "pictures"),
    [
        ("visualbert", {}, 4),
        ("visualbert", {"bypass": True}, 4),
        ("vilbert", {}, 4),
        ("vilbert", {}, 1),
        ("lxmert", {}, 4),
    ]
    + [("lxmert", {}, 4), ("lxmert", {}, 1)]
    + [("vilbert", change, 4) for change in ({"num_tasks": 3}, {"dynamic_attention": True})],
)
def test_with_lengths_no_tensor_is_asked_what_is_real(name, changes, pictures, monkeypatch):
    for module in (padding, embeddings):
        monkeypatch.setattr(module, "at_hand", lambda x: not isinstance(x, Silent) and x.device.type == "cpu")
    model = build(name, tiny(name, **changes))
    generator = torch.Generator().manual_seed(0)
    given_ = {
        key: x[:pictures] if key.startswith("visual") else x
        for key, x in ragged(name).inputs.items()
        if key not in REAL_FIRST
    }
    given_ |= {"inputs_embeds": torch.randn(4, 6, model.config.hidden_size, generator=generator, dtype=torch.float64)}
    given_ |= {"all_pairs": True} if pictures == 1 else {}
    ids = given_.pop("input_ids")[:, 0]
    given_ |= {"task_type_ids": ids % 3} if changes.get("num_tasks") else {}
    counts = {"lengths": LENGTHS, "visual_lengths": VISUAL_LENGTHS[-pictures:]}
    silent = {
        key: x.as_subclass(Silent) if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in given_.items()
    }
    masks = {
        key: x[-len(counts[number]) :].as_subclass(Silent)
        for (key, x), number in zip(REAL_FIRST.items(), counts, strict=True)
    }
    wanted = with_states(run(model, {**given_, **{key: x.as_subclass(Tensor) for key, x in masks.items()}}))
    for more in ({}, masks):  # a collator hands masks and lengths over
        mine = run(model, {**silent, **more}, **counts)
        assert isinstance(mine.text.last_hidden_state, Silent)
        for key, value in wanted.items():
            agree(value, with_states(mine)[key].as_subclass(Tensor), key)
    with pytest.raises(AssertionError, match="was asked"):
        run(model, {**silent, **masks})


@pytest.mark.parametrize(("name", "task"), FAMILY_TASKS)
def test_in_training_packed_and_unpacked_give_one_loss_and_one_gradient(name, task):
    batch, outcomes = ragged(name), []
    for on in (True, False):
        model = build(name, tiny(name), task, seed=2).train()
        model.model.matching_dropout = 0.0
        with zoo.packing(on):
            out = model(**reasoning(model, for_task(task, batch)), **labels_for(task, model, batch))
        out.loss.backward()
        outcomes.append((out, {key: p.grad for key, p in model.named_parameters()}))
        assert set(out.losses)
        agree(sum(out.losses.values()), out.loss, "the sum of the losses")
    (mine, gradients), (other, other_gradients) = outcomes
    agree(mine.loss, other.loss, "loss")
    for key, value in results(mine).items():
        agree(value, results(other)[key], key)
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for key, gradient in gradients.items():
        assert (gradient is None) == (other_gradients[key] is None), key
        if gradient is not None:
            assert float((gradient - other_gradients[key]).abs().max()) <= TOLERANCE * largest, key


# -- save and load, export, compile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), [*((name, None) for name in FAMILIES), *FAMILY_TASKS])
def test_save_and_load_is_exact(name, task, tmp_path):
    options = (
        {"num_labels": 3}
        if task and "num_labels" in spec_for(task, offers_of(registry.families()[name][0])).options
        else {}
    )
    model = build(name, tiny(name), task, **options)
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert loaded.config == model.config
    mine, theirs = canonical_state(model), canonical_state(loaded)
    assert list(mine) == list(theirs)
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key
    if task is not None:
        assert loaded.task == task
        assert loaded.options == model.options


@pytest.mark.parametrize(
    ("name", "form"), [(n, f) for n in FAMILIES for f in ("linear", "mlp", "transform", "weight-normed")]
)
def test_a_heads_form_is_seen_from_its_tensors(name, form, tmp_path):
    model = build(name, tiny(name), "visual-question-answering", head=form, num_labels=7)
    folder = zoo.save(model, tmp_path / "saved")
    again = zoo.load(folder)
    inputs = ragged(name).inputs
    agree(run(model, inputs).logits, run(again, inputs).logits, "logits")
    assert again.options["head"] == form


@pytest.mark.parametrize(
    ("name", "task"),
    [(n, t) for n in FAMILIES for t in (None, "pretraining", "visual-question-answering") if t in (None, *tasks_of(n))],
)
def test_it_compiles_as_one_graph_and_agrees(name, task):
    model, batch = build(name, tiny(name), task), ragged(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mine, theirs = run(model, batch.inputs), run(compiled, batch.inputs)
    for key, value in results(mine).items():
        agree(value, results(theirs)[key], key)


@pytest.mark.parametrize(("name", "task"), [(n, t) for n in FAMILIES for t in (None, "visual-question-answering")])
def test_it_exports_for_any_batch_length_and_number_of_regions(name, task):
    model, batch = build(name, tiny(name), task), ragged(name)
    rows, length, regions = (torch.export.Dim(n, min=2, max=10) for n in ("rows", "length", "regions"))
    order = [n for n in inspect.signature(registry.families()[name][0].model_class().forward).parameters if n != "self"]
    order = order[: max(order.index(n) for n in batch.inputs) + 1]
    given = tuple(batch.inputs.get(n) for n in order)
    shape = tuple(
        None if n not in batch.inputs else {0: rows, 1: regions if n.startswith("visual") else length} for n in order
    )
    shapes: Any = dict(zip(order, shape, strict=True)) if task is None else {"inputs": shape}
    program = torch.export.export(model, given, dynamic_shapes=shapes).module()
    cut = {n: x[:3, :2] if n.startswith("visual") else x[:3, 2:] for n, x in batch.inputs.items()}
    for inputs in (batch.inputs, cut):
        mine = run(model, inputs)
        with torch.no_grad():
            theirs = program(*(inputs.get(n) for n in order))
        for key, value in results(mine).items():
            agree(value, results(theirs)[key], key)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_drawn_by_the_generator_and_norms_and_biases_are_plain(name):
    variant, fields = registry.families()[name][0].name, tiny(name).to_dict()
    for head in (None, "weight-normed"):
        one, same = (
            canonical_state(
                zoo.create(
                    variant,
                    task="visual-question-answering",
                    head=head,
                    generator=torch.Generator().manual_seed(1),
                    **fields,
                )
            )
            for _ in range(2)
        )
        for key, tensor in one.items():
            assert torch.equal(tensor, same[key]), key
            assert tensor.isfinite().all(), key
            if key.endswith("bias"):
                assert not tensor.any(), key
            elif "norm" in key:
                assert (tensor == 1).all(), key


# -- VisualBERT against transformers -----------------------------------------------------------------------------------


def theirs_of(task: str | None, ours: Any, options: dict[str, Any]) -> Any:
    config = ours.config if task is None else ours.model.config
    theirs = visualbert.theirs(config, task, options)
    if task == "region-to-phrase":  # their class carries pre-training heads and a pooler, which it does not use
        own = {**theirs.state_dict(), **oracle.way_back(visualbert.LAYOUT, ours)}
        theirs.load_state_dict(own, strict=True)
        return theirs
    return oracle.taught(visualbert.LAYOUT, theirs, ours)


def as_theirs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"visual_features": "visual_embeds", "visual_mask": "visual_attention_mask"}
    given = {names.get(name, name): x.long() if "mask" in name else x for name, x in inputs.items()}
    # theirs takes no mask of one side alone: where we have none, all is real
    given.setdefault("attention_mask", torch.ones(inputs["input_ids"].shape, dtype=torch.long))
    given.setdefault("visual_attention_mask", torch.ones(inputs["visual_features"].shape[:-1], dtype=torch.long))
    return given


def with_their_segments(config: Any, batch: Batch) -> Batch:
    """Theirs means segment 1 where nothing is given; a config that means another writes it down."""
    if "visual_token_type_ids" in batch.inputs or config.visual_segment == 1:
        return batch
    shape = batch.inputs["visual_features"].shape[:2]
    return batch.with_(visual_token_type_ids=torch.full(shape, config.visual_segment))


@given(data=st.data())
@settings(max_examples=strategies.examples(25), **SETTINGS)
def test_the_encoder_is_transformers_encoder(data):
    config, batch = configs_and_batches(data, "visualbert", bypass=False)
    batch = with_their_segments(config, batch)
    ours = build("visualbert", config, seed=data.draw(st.integers(0, 2**16)))
    with torch.no_grad():
        reference = theirs_of(None, ours, {})(
            **as_theirs(batch.inputs), output_hidden_states=True, output_attentions=True
        )
    real = torch.cat([batch.real(), batch.real("visual_mask")], 1)
    for attentions in (False, True):
        mine = run(ours, batch.inputs, output_hidden_states=True, output_attentions=attentions)
        agree(mine.last_hidden_state[real], reference.last_hidden_state[real], "last_hidden_state", 1e-9)
        for a, b in zip(mine.hidden_states, reference.hidden_states, strict=True):
            agree(a[real], b[real], "hidden_states", 1e-9)
        if config.pooler:
            agree(mine.pooler_output[real[:, 0]], reference.pooler_output[real[:, 0]], "pooler_output", 1e-9)
    for a, b in zip(mine.attentions, reference.attentions, strict=True):
        agree(a.transpose(1, 2)[real], b.transpose(1, 2)[real], "attentions", 1e-9)


@pytest.mark.parametrize("task", [task for task in visualbert.CLASSES if task])
@given(data=st.data())
@settings(max_examples=strategies.examples(10), **SETTINGS)
def test_each_head_gives_transformers_logits_and_losses(task, data):
    config, batch = configs_and_batches(data, "visualbert", bypass=False, pooler=True)
    batch = with_their_segments(config, batch).masked
    text, image = batch.real().clone(), batch.real("visual_mask")
    text[:, :2] = True  # theirs pools column 0 and reads answers at the last but one word of right-padded texts
    text = text.cummin(1).values if text.shape[1] > 1 else text
    batch = batch.with_(attention_mask=text)
    if text.shape[1] < 2:
        return
    options = (
        {"num_labels": data.draw(st.integers(2, 4))}
        if task in ("visual-question-answering", "visual-reasoning")
        else {}
    )
    ours = build("visualbert", config, task, seed=data.draw(st.integers(0, 99)), **options)
    rows, length = text.shape
    labels = labels_for(task, ours, batch) if task != "pretraining" else {}
    generator = torch.Generator().manual_seed(3)
    if task == "pretraining":
        total = length + image.shape[1]
        words = torch.randint(config.vocab_size, (rows, total), generator=generator)
        labels = {"labels": words, "match_labels": torch.randint(2, (rows,), generator=generator)}
        labels["labels"] = words.masked_fill(~torch.cat([text, image], 1), -100)
    if task == "visual-reasoning":
        labels = {"labels": torch.randint(options["num_labels"], (rows,), generator=generator)}
    if task == "multiple-choice":
        labels = {"labels": torch.zeros(1, dtype=torch.long)}
    inputs = for_task(task, batch)
    inputs.pop("position_ids", None)
    if task == "multiple-choice":  # theirs forgets to fold the choices of the alignment
        inputs.pop("image_text_alignment", None)
    mine = run(ours, inputs, **labels)
    names = {"match_labels": "sentence_image_labels", "phrase_positions": "region_to_phrase_position"}
    bare = {names.get(name, name): x for name, x in labels.items()}
    theirs = theirs_of(task, ours, options)
    with torch.no_grad():
        reference = theirs(**as_theirs(inputs), **bare)
        unlabelled = theirs(**as_theirs(inputs), **{k: v for k, v in bare.items() if k == "region_to_phrase_position"})
    if task != "region-to-phrase" or image.all():  # theirs masks by the lowest float, which overflows in the loss
        agree(mine.loss, reference.loss, "loss", 1e-9)
    if task == "pretraining":
        real = torch.cat([text, image], 1)
        agree(mine.prediction_logits[real], reference.prediction_logits[real], "prediction_logits", 1e-9)
        agree(mine.seq_relationship_logits, reference.seq_relationship_logits, "seq_relationship_logits", 1e-9)
    elif task == "region-to-phrase":
        where = image[:, None].expand_as(mine.logits)
        agree(mine.logits[where], unlabelled.logits[where], "logits", 1e-9)
    else:
        agree(mine.logits, unlabelled.logits, "logits", 1e-9)


# -- ViLBERT's own -----------------------------------------------------------------------------------------------------


def naive_co_attention(
    ours: Any, text: Tensor, image: Tensor, text_real: Tensor, image_real: Tensor
) -> tuple[Tensor, Tensor]:
    """The connection written out with loops over heads, one row at a time."""

    def one(side: Any, x: Tensor, other: Tensor) -> Tensor:
        a = side.attention
        q, k, v = a.query(x), a.key(other), a.value(other)
        heads = []
        for h in range(a.num_heads):
            cut = slice(h * a.head_size, (h + 1) * a.head_size)
            scores = (q[:, cut] @ k[:, cut].T) / a.head_size**0.5
            heads.append(scores.softmax(-1) @ v[:, cut])
        x = side.attention_norm(x + a.output(torch.cat(heads, -1)))
        return side.feed_forward_norm(x + side.feed_forward(x))

    new_text, new_image = torch.zeros_like(text), torch.zeros_like(image)
    for row in range(len(text)):
        t, i = text[row][text_real[row]], image[row][image_real[row]]
        new_text[row][text_real[row]], new_image[row][image_real[row]] = one(ours.text, t, i), one(ours.image, i, t)
    return new_text, new_image


def test_a_connection_is_the_formula_written_out():
    model, batch = (
        build(
            "vilbert", tiny("vilbert", num_layers=1, image_num_layers=1, text_connections=(0,), image_connections=(0,))
        ),
        ragged("vilbert"),
    )
    with torch.no_grad():
        out = run(model, batch.inputs, output_hidden_states=True)
        wanted = naive_co_attention(
            model.encoder.block(model.encoder.steps[0]),
            out.text.hidden_states[0],
            out.image.hidden_states[0],
            batch.real(),
            batch.real("visual_mask"),
        )
    agree(out.text.hidden_states[1], wanted[0], "text")
    agree(out.image.hidden_states[1], wanted[1], "image")


class SharedCross(nn.Module):
    """LXMERT's cross layer: one attention serves both directions, then each stream runs a block of
    its own.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.cross, self.norm = Attention(size, 2), nn.LayerNorm(size)
        self.text, self.image = bert_block(size, 2, 5), bert_block(size, 2, 5)

    def forward(self, text: Tensor, image: Tensor, words: Run, regions: Run) -> tuple[Tensor, Tensor]:
        new_text = self.norm(text + self.cross(text, image, image, words.looking_at(regions)))
        new_image = self.norm(image + self.cross(image, text, text, regions.looking_at(words)))
        return self.text(new_text, words.mask), self.image(new_image, regions.mask)


def through(schedule: Schedule, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both streams through a schedule, with the padding of `REAL_FIRST`."""
    return Runs({name: Run(x[name], mask) for name, mask in zip(x, REAL_FIRST.values(), strict=True)}).through(schedule)


def test_a_new_wiring_of_two_streams_is_a_block_of_its_own_and_runs_packed():
    torch.manual_seed(0)
    parts = {"text": [bert_block(4, 2, 5)], "image": [], "both": [SharedCross(4)]}
    schedule = Schedule(
        {name: blocks for name, blocks in parts.items() if blocks}, interleaved({"text": (1, (1,)), "image": (0, (0,))})
    ).double()
    x = {name: torch.randn(4, length, 4, dtype=torch.float64) for name, length in (("text", 6), ("image", 3))}
    made = []
    for pack in (True, False):
        with packing(pack):
            made.append(through(schedule, x))
    text, image = made[0]["text"], made[0]["image"]
    agree(text, made[1]["text"], "text")
    agree(image, made[1]["image"], "image")
    longer = {name: value.clone() for name, value in x.items()}
    longer["image"][1, 1:] += 1  # padding of row 1
    longer["image"][0, 0] += 1
    changed = through(schedule, longer)
    assert relative(changed["text"][0], text[0]) > 1e-3, "the text sees its picture"
    agree(changed["text"][1:], text[1:], "the others")


def test_the_published_schedule_is_the_papers():
    steps = [str(step) for step in zoo.config("vilbert-base").schedule]
    assert steps[:6] == [f"text {i}" for i in range(6)]
    assert steps[6:11] == ["both 0", "text 6", "image 0", "both 1", "text 7"]
    assert steps[-3:] == ["both 5", "image 5", "text 11"]
    assert len(steps) == 12 + 6 + 6
    for name in ("vilbert-base-2", "vilbert-base-4", "vilbert-base-8", "vilbert-large"):
        config = zoo.config(name)
        assert len(config.schedule) == config.num_layers + config.image_num_layers + len(config.text_connections)
    drawn = draw_schedule(interleaved({"text": (3, (1, 2)), "image": (2, (0, 1))}))
    assert drawn.splitlines()[0].split() == ["text", "image"]
    assert drawn.count("<=>") == 2


@given(data=st.data())
@settings(max_examples=strategies.examples(12), **SETTINGS)
def test_one_text_with_many_pictures_is_the_text_repeated(data):
    config, batch = configs_and_batches(data, "vilbert")
    model = build("vilbert", config)
    texts = {name: x[:1] for name, x in batch.inputs.items() if not name.startswith("visual")}
    pictures = {name: x for name, x in batch.inputs.items() if name.startswith("visual")}
    repeated = {name: x.expand(batch.rows, *x.shape[1:]) for name, x in texts.items()}
    for attentions in (False, True):
        mine = run(model, {**texts, **pictures}, output_attentions=attentions)
        other = run(model, {**repeated, **pictures}, output_attentions=attentions)
        agree(mine.text.last_hidden_state, other.text.last_hidden_state, "text")
        agree(mine.image.last_hidden_state, other.image.last_hidden_state, "image")
        agree(mine.pooler_output, other.pooler_output, "pooler_output")


@given(data=st.data())
@settings(max_examples=strategies.examples(12), **SETTINGS)
def test_all_pairs_are_each_text_with_each_picture_pictures_running_fast(data):
    config, batch = configs_and_batches(data, "vilbert", dynamic_attention=False)
    model = build("vilbert", config)
    mine = run(model, batch.inputs, all_pairs=True)
    pick = [(t, p) for t in range(batch.rows) for p in range(batch.rows)]
    paired = {
        name: torch.stack([x[p if name.startswith("visual") else t] for t, p in pick])
        for name, x in batch.inputs.items()
    }
    other = run(model, paired)
    agree(mine.pooler_output, other.pooler_output, "pooler_output")
    agree(mine.text.last_hidden_state, other.text.last_hidden_state, "text")


@pytest.mark.parametrize("task", ["pretraining", "grounding", "multi-task"])
def test_heads_score_each_text_with_each_picture_too(task):
    model, batch = build("vilbert", tiny("vilbert"), task), ragged("vilbert")
    pick = [(t, p) for t in range(batch.rows) for p in range(batch.rows)]
    paired = {
        name: torch.stack([x[p if name.startswith("visual") else t] for t, p in pick])
        for name, x in batch.inputs.items()
    }
    one = {name: x if name.startswith("visual") else x[:1] for name, x in batch.inputs.items()}
    repeated = {name: x if name.startswith("visual") else x.expand(batch.rows, -1) for name, x in one.items()}
    for mine, other in (
        (run(model, batch.inputs, all_pairs=True), run(model, paired)),
        (run(model, one), run(model, repeated)),
    ):
        found = {**dict(mine.present()), **(mine.scores or {})}
        for name, wanted in {**dict(other.present()), **(other.scores or {})}.items():
            if isinstance(wanted, Tensor):
                agree(found[name], wanted, name)


def test_every_sublayer_is_a_site_with_its_stream_and_depth():
    model = build("vilbert", tiny("vilbert"))
    sites = list(model.sites())
    queries = {site.path: (site.stream, site.depths) for site in sites if site.role == "attention-query"}
    assert queries["encoder.text.0.attention.query"] == ("text", (1,))
    assert queries["encoder.image.0.attention.query"] == ("image", (2,))
    assert queries["encoder.both.0.text.attention.query"] == ("text", (0,))
    assert queries["encoder.both.1.image.attention.query"] == ("image", (3,))
    assert len(queries) == 2 + 2 + 4


def test_wrong_inputs_are_refused_where_they_enter():
    model, batch = build("vilbert", tiny("vilbert")), ragged("vilbert")
    with pytest.raises(InputError, match="visual_features and visual_boxes"):
        model(batch.inputs["input_ids"])
    with pytest.raises(InputError, match="trained on features 5 wide"):
        model(**batch.with_(visual_features=torch.zeros(4, 3, 7, dtype=torch.float64)).inputs)
    with pytest.raises(InputError, match="visual_mask"):
        model(**batch.with_(visual_mask=torch.ones(4, 2)).inputs)
    with pytest.raises(InputError, match="task tokens"):
        model(**batch.inputs, task_type_ids=torch.zeros(4, dtype=torch.long))
    for places in ((1, 0), (0, 3), (-1, 0)):  # 2 stands behind the last of two blocks
        with pytest.raises(ConfigError, match="must rise"):
            tiny("vilbert", text_connections=places)
    with pytest.raises(ConfigError, match="visual_segment"):
        tiny("visualbert", visual_segment=2)
    words = build("visualbert", tiny("visualbert"), "masked-lm")
    with pytest.raises(TaskError, match="labels must be"):
        words(**ragged("visualbert").inputs, labels=torch.zeros(4, 7, dtype=torch.long))


def test_visualbert_reads_a_text_without_a_picture_as_bert_does():
    visual, plain = build("visualbert", tiny("visualbert"), seed=5), build("bert", bert_like(), seed=5)
    plain.load_state_dict({k: v for k, v in visual.state_dict().items() if "visual" not in k})
    ids, mask = ragged("visualbert").inputs["input_ids"], ragged("visualbert").inputs["attention_mask"]
    with torch.no_grad():
        agree(visual(ids, mask).last_hidden_state, plain(ids, mask).last_hidden_state, "last_hidden_state")


def bert_like() -> Any:
    from zoo.models.bert import BertConfig

    fields = {k: v for k, v in tiny("visualbert").to_dict().items() if k in BertConfig.field_names()}
    return BertConfig(**fields)


# -- the maps ----------------------------------------------------------------------------------------------------------

PRETRAINING = ("masked_lm", "image_text_matching")
SHARED = (
    *PRETRAINING,
    "masked_region",
    "visual_question_answering",
    "image_text_retrieval",
    "grounding",
    "token_score",
)
LXMERT = ("masked_lm", "image_text_matching", "masked_object", "visual_question_answering")
ROUND_TRIPS = {
    "visualbert/encoder": ("hf-visualbert", ()),
    "visualbert/pretraining": ("hf-visualbert", PRETRAINING),
    "visualbert/region-to-phrase": ("hf-visualbert", (*PRETRAINING, "region_to_phrase")),
    "visualbert/vqa": ("hf-visualbert", ("visual_question_answering",)),
    "visualbert/original-pretraining": ("visualbert-original", PRETRAINING),
    "mmf-visualbert/classification": ("mmf-visualbert", ("sequence_classification",)),
    "mmf-visualbert/pretraining": ("mmf-visualbert", PRETRAINING),
    "lxmert/encoder": ("hf-lxmert", ()),
    "lxmert/pretraining": ("hf-lxmert", LXMERT),
    "lxmert/qa": ("hf-lxmert", ("visual_question_answering",)),
    "vilbert/encoder-default-layout": ("vilbert-multi-task", ()),
    "vilbert/task-heads": ("vilbert-multi-task", (*SHARED, "gqa", "visual_reasoning", "visual_entailment")),
    "vilbert/beta-task-heads": ("vilbert-beta", SHARED),
    "12-in-1/task-tokens": ("vilbert-multi-task", (*SHARED, "gqa", "visual_reasoning", "visual_entailment")),
    "mmf-vilbert/pretraining": ("mmf-vilbert", (*PRETRAINING, "masked_region")),
    "mmf-vilbert/classification": ("mmf-vilbert", ("sequence_classification",)),
    "visualbert/original-bypass": ("visualbert-original", PRETRAINING),
    "visualbert/original-multiple-choice": ("visualbert-original", ("multiple_choice",)),
    "mmf-visualbert/nlvr2": ("mmf-visualbert", ("visual_reasoning",)),
    "vilbert/encoder-dynamic-attention": ("vilbert-multi-task", ()),
    "vilbert/encoder-behind-the-last": ("vilbert-multi-task", ()),
    "mmf-vilbert/nlvr2": ("mmf-vilbert", ("visual_reasoning",)),
    "mmf-vilbert/classification-dynamic": ("mmf-vilbert", ("sequence_classification",)),
    "uniter/encoder": ("uniter", ()),
    "uniter/pretrain-heads": ("uniter", (*PRETRAINING, "region_feature", "region_class")),
    "uniter/vqa": ("uniter", ("visual_question_answering",)),
    "uniter/vcr": ("uniter", ("multiple_choice",)),
    "uniter/nlvr2-paired": ("uniter", ("visual_reasoning",)),
    "uniter/nlvr2-paired-attn": ("uniter", ("visual_reasoning",)),
    "uniter/refexp-mlp1": ("uniter", ("grounding",)),
    "uniter/refexp-mlp2": ("uniter", ("grounding",)),
    "uniter/itm-rank": ("uniter", ("image_text_matching", "image_text_retrieval")),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_checkpoint_goes_through_ours_and_back_bit_by_bit(name):
    layout, heads = ROUND_TRIPS[name]
    case, keymap = load_case(GOLDEN / name), layouts.load(layout)
    infos = {key: Info(tuple(tensor.shape)) for key, tensor in case.weights.items()}
    config = keymap.config_forward(case.config, infos)
    plan = keymap.forward(infos, config, heads=heads)
    made = plan.run(lambda key: case.weights[key])
    assert not plan.left_out
    assert ("vilbert" in layout) == any("q_dense" in key for key in plan.passengers)
    ours = {key: Info(tuple(tensor.shape)) for key, tensor in made.items()}
    back = keymap.back(ours, config, heads=heads or None, ties=True, prefix=plan.prefix).run(lambda key: made[key])
    there = {
        key.removeprefix("model."): tensor for key, tensor in case.weights.items() if not key.endswith("position_ids")
    }
    tied = {key for key in case.info.get("tied", ()) if key not in there}  # files hold these copies, the case does not
    assert set(back) == set(there) | tied
    for key, tensor in there.items():
        assert torch.equal(tensor, back[key]), key
    assert keymap.config_forward(keymap.config_back(config, heads), infos) == config


# -- which layout a file is in -----------------------------------------------------------------------------------------

SYSTEMS = {
    "visualbert": "visualbert",
    "mmf-visualbert": "visualbert",
    "vilbert": "vilbert",
    "mmf-vilbert": "vilbert",
    "12-in-1": "vilbert",
    "ernie-vil": "ernie-vil",
    "villa": "uniter",
    "lxmert": "lxmert",
    "uniter": "uniter",
}
WEIGHTS = [path for system in SYSTEMS for path in sorted((GOLDEN / system).glob("*/weights.safetensors"))]


def test_a_checkpoint_says_whose_features_it_was_trained_on_and_they_are_as_wide_as_it_reads():
    said = {name: record.detector for name, record in sources.records().items() if record.detector}
    assert {said["vilbert-base.beta"], said["vilbert-base-12-in-1.multi-task"]} == {"bottom-up-attention", "x152"}
    for name, detector in said.items():
        config = zoo.config(name.split(".")[0])
        box = 6 if hasattr(config, "box_in_features") else 0  # which Oscar reads behind a region's features
        assert DETECTORS[detector].width + box == config.visual_size, name
    assert (
        zoo.info("visualbert-base-vcr")["checkpoints"]["vcr"]["features"] == "resnet50-vcr (512 wide, RGB, boxes xyxy)"
    )


def test_a_file_that_was_saved_by_hand_takes_the_config_of_its_tag(monkeypatch):
    case = load_case(GOLDEN / "vilbert" / "beta-task-heads")
    file, name = case.folder / "weights.safetensors", "vilbert-base.beta-vqa"
    with pytest.raises(
        FetchError, match=r"(?s)beta-vqa.*open https://drive.google.com/.* in a browser.*pretrained='path"
    ):
        zoo.create(name, pretrained=True, task="visual-question-answering")
    known = dataclasses.replace(sources.record(name), config=case.config)
    monkeypatch.setattr(sys.modules["zoo.checkpoints.checkpoint"], "record_of", lambda asked: {name: known}[asked])
    model = zoo.create(name, pretrained=file, task="visual-question-answering")
    assert (model.load_report.layout, model.options["num_labels"]) == ("vilbert-beta", 19)
    with pytest.raises(ConfigError, match="lacks 'vocab_size'"):
        zoo.create("vilbert-base", pretrained=file)


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_without_a_config_a_file_fits_layouts_of_its_own_family_alone(path):
    with open_archive(path) as archive:
        try:
            fitting = [layouts.recognise(archive)]
        except CheckpointError as error:
            fitting = re.findall(r"[\w-]+", str(error).partition("several layouts: ")[2].partition(";")[0])
    assert {layouts.load(name).family for name in fitting} == {SYSTEMS[path.parts[-3]]}
