"""The configuration space against transformers, in float64: states, maps, pooled vectors, every
head's logits, losses and gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import zoo
from tests import oracle, strategies
from tests.families import albert
from tests.strategies import batches, build, configs, family, labels_for, randomised, relative, results, task_options
from zoo.errors import ConfigError
from zoo.layers import Mask
from zoo.maps import layouts

ROWS_ONLY = ("xlm",)
TOLERANCE = 1e-9  # max|difference| / max|reference|
CASES = [(name, task) for name in strategies.with_oracle() for task in family(name).CLASSES if task is not None]
WITH_WORDS = {
    name: task for wanted in ("masked-lm", "causal-lm", "pretraining") for name, task in CASES if task == wanted
}


def check(mine: Tensor, theirs: Tensor, what: str, where: Tensor | None = None) -> None:
    mine, theirs = (x if where is None else x[where] for x in (mine, theirs))
    error = relative(mine, theirs)
    assert error <= TOLERANCE, f"{what} differs from transformers by {error:.2e}"


def at(where: Tensor, hidden: Tensor) -> Tensor:
    """(batch, heads, query, key) -> the maps of real queries."""
    return hidden.transpose(1, 2)[where]


@pytest.mark.parametrize("name", strategies.with_oracle())
@given(data=st.data())
@settings(max_examples=strategies.examples(40), deadline=None, derandomize=True)
def test_the_encoder_is_transformers_encoder(name, data):
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config))
    ours = build(name, config, seed=data.draw(st.integers(0, 2**16)))
    theirs = oracle.asked(
        oracle.taught(family(name).LAYOUT, family(name).oracle(config, None, {}), ours),
        batch.inputs,
        output_hidden_states=True,
        output_attentions=True,
    )
    real = batch.real()
    for attentions in (False, True):
        with torch.no_grad():
            mine = ours(**batch.inputs, output_hidden_states=True, output_attentions=attentions)
        check(mine.last_hidden_state, theirs.last_hidden_state, "last_hidden_state", real)
        assert len(mine.hidden_states) == len(theirs.hidden_states)
        for depth, (a, b) in enumerate(zip(mine.hidden_states, theirs.hidden_states, strict=True)):
            check(a, b, f"hidden_states[{depth}]", real)
        if getattr(config, "pooler", False):  # theirs reads column 0 whatever stands there
            check(mine.pooler_output, theirs.pooler_output, "pooler_output", real[:, 0])
        else:
            assert mine.pooler_output is None
    for depth, (a, b) in enumerate(zip(mine.attentions, theirs.attentions, strict=True)):
        check(at(real, a), at(real, b), f"attentions[{depth}]")


@pytest.mark.parametrize(("name", "task"), CASES)
@given(data=st.data())
@settings(max_examples=strategies.examples(15), deadline=None, derandomize=True)
def test_each_head_gives_transformers_logits_and_losses(name, task, data):
    config, options = data.draw(configs(name)), data.draw(task_options(task))
    batch = data.draw(batches(name, config, embeds=task != "multiple-choice"))
    seed = data.draw(st.integers(0, 2**16))
    ours = build(name, config, task, seed=seed, **options)
    theirs = oracle.taught(family(name).LAYOUT, family(name).oracle(ours.config, task, options), ours)
    inputs, labels = task_inputs(task, batch), labels_for(task, ours, batch, seed)
    with torch.no_grad():
        mine = results(ours(**inputs, **labels))
    reference = oracle.asked(theirs, inputs, **labels)
    compare_task(task, mine, reference, labels, batch)


def task_inputs(task: str, batch: strategies.Batch) -> dict[str, Tensor]:
    """A batch as both sides take it: not all of transformers' classes take positions for several
    choices.
    """
    return {
        key: x
        for key, x in strategies.for_task(task, batch).items()
        if task != "multiple-choice" or key != "position_ids"
    }


def compare_task(
    task: str, mine: dict[str, Tensor], reference: Any, labels: dict[str, Tensor], batch: strategies.Batch
) -> None:
    """Logits at real tokens, and the loss. transformers pools column 0, whatever stands there: such
    logits count where it is real.
    """
    real = batch.real()
    pooled = task in ("next-sentence", "sequence-classification", "multiple-choice")
    names = {
        "pretraining": {
            "prediction_logits": "prediction_logits",
            "seq_relationship_logits": "seq_relationship_logits",
            "sop_logits": "sop_logits",
        },
        "question-answering": {"start_logits": "start_logits", "end_logits": "end_logits"},
    }.get(task, {"logits": "logits"})
    compared = 0
    for own, foreign in names.items():
        if own not in mine:
            assert foreign not in reference
            continue
        compared += 1
        a, b = mine[own], reference[foreign]
        if task == "multiple-choice":
            check(a.flatten(), b.flatten(), own, real[:, 0])
        else:
            check(a, b, own, real[:, 0] if pooled or own in ("seq_relationship_logits", "sop_logits") else real)
    assert compared == (2 if task in ("pretraining", "question-answering") else 1)
    if task == "question-answering":  # transformers lets padding compete for the answer; ours does not
        check(mine["loss"], answer_loss(reference, labels, real), "loss")
        if not real.all():
            return
    if task == "replaced-token-detection":  # theirs takes the labels in float32
        targets = labels["labels"][real].double()
        check(mine["loss"], F.binary_cross_entropy_with_logits(reference.logits[real], targets), "loss")
    elif task == "causal-lm" and (labels["labels"][:, 1:] == -100).all():  # a text's first label never counts
        assert mine["loss"] == 0
        assert reference.loss.isnan()
    elif task in ("masked-lm", "causal-lm", "token-classification") or real[:, 0].all():
        check(mine["loss"], reference.loss, "loss")


def answer_loss(reference: Any, labels: dict[str, Tensor], real: Tensor) -> Tensor:
    """The span loss over real tokens, written out: mean over the rows whose answer lies in the
    text, then over start and end.
    """
    both = []
    for logits, places in (
        (reference.start_logits, labels["start_positions"]),
        (reference.end_logits, labels["end_positions"]),
    ):
        terms = [
            logits[row][real[row]].logsumexp(0) - logits[row, place]
            for row, place in enumerate(places.tolist())
            if place < real.shape[1]
        ]
        both.append(torch.stack(terms).mean())
    return (both[0] + both[1]) / 2


@pytest.mark.parametrize(("name", "task"), [*((n, None) for n in strategies.with_oracle()), *CASES])
@given(data=st.data())
@settings(max_examples=strategies.examples(8), deadline=None, derandomize=True)
def test_a_transformers_model_loads_and_gives_its_numbers(name, task, data):
    config, options = data.draw(configs(name)), {} if task is None else data.draw(task_options(task))
    if task is not None:
        config = build(name, config, task, **options).config
    theirs = randomised(family(name).oracle(config, task, options), data.draw(st.integers(0, 2**16)))
    ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict(), task=task)
    assert ours.dtype == torch.float64
    assert not ours.load_report.random
    batch = data.draw(batches(name, config, embeds=task != "multiple-choice"))
    if task is None:
        with torch.no_grad():
            mine = ours(**batch.inputs)
        check(
            mine.last_hidden_state,
            oracle.asked(theirs, batch.inputs).last_hidden_state,
            "last_hidden_state",
            batch.real(),
        )
        return
    inputs, labels = task_inputs(task, batch), labels_for(task, ours, batch)
    with torch.no_grad():
        mine = results(ours(**inputs, **labels))
    compare_task(task, mine, oracle.asked(theirs, inputs, **labels), labels, batch)


def test_the_sentence_order_head_alone_is_the_one_of_pretraining():
    config = albert.AlbertConfig(
        vocab_size=20, embedding_size=4, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=9, max_positions=8
    )
    theirs = randomised(albert.oracle(config, "pretraining", {}), 5)
    ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict(), task="sentence-order")
    ids, labels = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1])
    reference = oracle.asked(theirs, {"input_ids": ids})
    with torch.no_grad():
        mine = ours(ids, labels=labels)
    check(mine.sop_logits, reference.sop_logits, "sop_logits")
    check(mine.loss, F.cross_entropy(reference.sop_logits, labels), "loss")


@pytest.mark.parametrize("problem", ["regression", "single-label", "multi-label"])
@pytest.mark.parametrize("name", [name for name, task in CASES if task == "sequence-classification"])
def test_a_stated_problem_type_gives_transformers_loss(name, problem):
    config = fixed_config(name)
    options = {"num_labels": 3, "problem_type": problem}
    ours = build(name, config, "sequence-classification", **options)
    theirs = oracle.taught(
        family(name).LAYOUT, family(name).oracle(ours.config, "sequence-classification", options), ours
    )
    inputs = {key: x for key, x in strategies.small_batch(name).inputs.items() if key != "attention_mask"}
    labels = torch.tensor([2, 0, 1, 1]) if problem == "single-label" else torch.rand(4, 3, dtype=torch.float64)
    with torch.no_grad():
        check(ours(**inputs, labels=labels).loss, oracle.asked(theirs, inputs, labels=labels).loss, "loss")


def fixed_config(name: str) -> Any:
    """One small config with nothing at its default that matters; a family's ``SMALL`` adds to the
    sizes here.
    """
    cls = strategies.model_class(name).Config
    sizes = {
        "vocab_size": 23,
        "hidden_size": 8,
        "num_layers": 4,
        "num_heads": 2,
        "intermediate_size": 11,
        "max_positions": 9,
        "num_segments": 3,
        "embedding_size": 5,
        "num_groups": 2,
        "num_inner_blocks": 2,
        "num_languages": 1,
        "pad_token_id": 0,
        "norm_eps": 1e-3,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        **getattr(family(name), "SMALL", {}),
    }
    return cls(**{key: value for key, value in sizes.items() if key in cls.field_names()})


@pytest.mark.parametrize(("name", "task"), WITH_WORDS.items())
@pytest.mark.parametrize("packed", [True, False])
def test_gradients_are_transformers_gradients_through_the_map(name, task, packed):
    ours = build(name, fixed_config(name), task, seed=3)
    theirs = oracle.taught(family(name).LAYOUT, family(name).oracle(ours.config, task, {}), ours)
    batch = strategies.small_batch(name)
    right_padded = (torch.arange(6) < torch.tensor([4, 6, 2, 5])[:, None]).long()
    batch = batch.with_(attention_mask=right_padded)
    labels = labels_for(task, ours, batch)
    with zoo.packing(packed):
        ours(**batch.inputs, **labels).loss.backward()
    oracle.asked(theirs, batch.inputs, gradients=True, **labels).loss.backward()
    theirs_by_name = {key: p.grad for key, p in theirs.named_parameters(remove_duplicate=False)}
    prefix = "model."
    mine = oracle.way_back(
        family(name).LAYOUT, ours, {key.removeprefix(prefix): p.grad for key, p in ours.named_parameters()}
    )
    assert set(mine) == set(theirs_by_name)
    vanished, tiny = 0, 1e-12 * max(float(gradient.abs().max()) for gradient in mine.values())
    for key, gradient in mine.items():
        theirs_too = theirs_by_name[key]
        if (
            max(float(gradient.abs().max()), float(theirs_too.abs().max())) > tiny
        ):  # the softmax takes the key's bias away
            check(gradient, theirs_too, key)
        else:
            vanished += 1
    assert vanished <= ours.config.num_layers


@pytest.mark.parametrize("name", strategies.with_oracle())
@given(data=st.data())
@settings(max_examples=strategies.examples(15), deadline=None, derandomize=True)
def test_a_visible_matrix_is_transformers_four_dimensional_mask(name, data):
    if name in ROWS_ONLY:
        pytest.skip("its class there takes no mask of four dimensions")
    config = data.draw(configs(name))
    batch = data.draw(batches(name, config, kinds=("none",)))
    rows, length = batch.real().shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    visible = (torch.rand(rows, length, length, generator=generator) < 0.5) | torch.eye(length, dtype=torch.bool)
    ours = build(name, config)
    theirs = oracle.taught(family(name).LAYOUT, family(name).oracle(config, None, {}), ours)
    seen = visible if strategies.model_class(name).pattern is None else visible.tril()  # ours stays causal
    additive = torch.zeros(rows, 1, length, length, dtype=torch.float64).masked_fill(
        ~seen[:, None], torch.finfo(torch.float64).min
    )
    with torch.no_grad():
        mine = ours(**batch.inputs, attention_mask=visible)
    check(
        mine.last_hidden_state,
        oracle.asked(theirs, {**batch.inputs, "attention_mask": additive}).last_hidden_state,
        "states",
    )


@pytest.mark.parametrize(("layers", "groups"), albert.WRONG_GROUPS)
def test_where_transformers_takes_the_wrong_albert_group_ours_takes_the_right_one(layers, groups):
    config = albert.AlbertConfig(
        vocab_size=7,
        embedding_size=3,
        hidden_size=4,
        num_layers=layers,
        num_heads=2,
        intermediate_size=3,
        max_positions=8,
        num_groups=groups,
    )
    right = [i * groups // layers for i in range(layers)]  # floor(i G / L), in whole numbers
    theirs = [int(i / (layers / groups)) for i in range(layers)]  # what transformers computes
    assert right != theirs, "transformers has mended this: take the pair out of WRONG_GROUPS"
    assert list(config.plan) == right
    ours = build("albert", config)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        mine = ours(ids, output_hidden_states=True)
        x = mine.hidden_states[0]
        for group, state in zip(right, mine.hidden_states[1:], strict=True):
            x = ours.encoder.blocks[group](x, Mask())
            assert torch.equal(x, state)
    reference = oracle.asked(oracle.taught("hf-albert", albert.oracle(config, None, {}), ours), {"input_ids": ids})
    assert relative(mine.last_hidden_state, reference.last_hidden_state) > TOLERANCE


def test_no_other_albert_plan_of_up_to_thirty_layers_needs_an_exclusion():
    pairs = [(layers, groups) for layers in range(1, 31) for groups in range(1, layers + 1)]
    wrong = [(n, g) for n, g in pairs if any(int(i / (n / g)) != i * g // n for i in range(n))]
    assert tuple(wrong) == albert.WRONG_GROUPS


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("mean", False), ("max", False), ("cls", True)])
def test_a_sentence_vector_is_the_pooled_states_of_real_tokens(pooling, normalize):
    config = fixed_config("bert")
    ours = build("bert", config, "sentence-embedding", pooling=pooling, normalize=normalize)
    theirs = oracle.taught("hf-bert", family("bert").oracle(ours.config, None, {}), ours)
    ids = torch.randint(1, 19, (4, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0]])
    states = oracle.asked(theirs, {"input_ids": ids, "attention_mask": mask}).last_hidden_state
    with torch.no_grad():
        mine = ours(ids, attention_mask=mask).embedding
    for row in range(4):
        tokens = [states[row, column] for column in range(6) if mask[row, column]]
        vector = {"mean": sum(tokens) / len(tokens), "max": torch.stack(tokens).amax(0), "cls": tokens[0]}[pooling]
        check(mine[row], vector / vector.square().sum().sqrt() if normalize else vector, f"row {row}")


def foreign_defaults(name: str) -> dict[str, Any]:
    """The config that transformers' class has of itself."""
    values: dict[str, Any] = oracle.config_class(family(name).CLASSES[None])().to_dict()
    return {**values, "architectures": None}


@pytest.mark.parametrize("name", strategies.with_oracle())
def test_a_config_that_leaves_a_key_out_means_transformers_default(name):
    keymap, foreign = layouts.load(family(name).LAYOUT), foreign_defaults(name)
    wanted = keymap.config_forward(foreign)
    for key, entry in keymap.config.entries.items():
        if key in foreign and not entry.none:  # not those that follow another key where absent
            without = {other: value for other, value in foreign.items() if other != key}
            try:
                got = keymap.config_forward(without)
            except ConfigError:  # a size that every config states
                continue
            assert got.get(entry.field) == wanted[entry.field] or (
                entry.field not in got and wanted[entry.field] is None
            ), key


@pytest.mark.parametrize("name", [name for name in strategies.with_oracle() if hasattr(family(name), "DEFAULT")])
def test_the_variant_that_transformers_takes_by_default_has_its_config(name):
    keymap = layouts.load(family(name).LAYOUT)
    wanted = keymap.config_forward(foreign_defaults(name))
    ours = zoo.config(family(name).DEFAULT).to_dict()
    assert {key: ours[key] for key in wanted} == wanted
