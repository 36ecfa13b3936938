"""Techniques: every one on every family that takes it, and what each of them promises."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests import strategies
from tests.matrix import check_cell, run, same, seeded
from tests.strategies import build, randomised, relative, small_batch, small_config, states
from zoo.checkpoints.adapters import adapter_hub, peft
from zoo.checkpoints.adapters import files as foreign
from zoo.checkpoints.adapters.stored import read_adapter
from zoo.errors import CheckpointError, ConfigError, InputError, TechniqueError, UnknownNameError
from zoo.formats.opening import open_archive
from zoo.layers import Mask, causal
from zoo.layers.attention import AttentionArgs, DenseAttention
from zoo.techniques import freeze_all_but, new_tensors
from zoo.techniques.adapters import technique as adapters
from zoo.techniques.adapters.layers import Coupling
from zoo.techniques.adaptive_span.layers import AttentionSpan, SpanCore
from zoo.techniques.adaptive_span.technique import clamp_spans, span_loss, spans_of
from zoo.techniques.lora import technique as lora
from zoo.techniques.lora.layers import LowRank
from zoo.techniques.matrix import EXAMPLES, refusal
from zoo.techniques.prefix import technique as prefix
from zoo.techniques.pruning.weights import bake
from zoo.techniques.sharing import factors
from zoo.techniques.sparse import flex
from zoo.techniques.sparse.flex import block_mask, flex_sparse_attention
from zoo.techniques.sparse.layers import SparseAttention, sparse_attention
from zoo.techniques.sparse.patterns import everything, fixed, local, strided, windowed

FAMILIES = strategies.families()
GOLDEN = Path(__file__).parents[1] / "golden"
SETTINGS = {"deadline": None, "derandomize": True}
CELLS = [(technique, family) for family in FAMILIES for technique in EXAMPLES]
SAMPLE = [cell for number, cell in enumerate(CELLS) if strategies.FULL or number % 13 == 0 or cell[1] == "bert"]


def bert(task: str | None = None, **fields: object) -> nn.Module:
    return build("bert", small_config("bert", **fields), task, seed=3)


# -- the matrix --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("technique", "family"), SAMPLE)
def test_a_technique_works_on_a_family_or_says_why_not(technique, family, tmp_path):
    check_cell(technique, family, tmp_path / "saved")


@pytest.mark.parametrize("technique", EXAMPLES)
def test_a_model_with_a_technique_copies_pickles_compiles_and_moves(technique):
    model = bert()
    zoo.apply(model, *EXAMPLES[technique], generator=seeded())
    randomised(model, 4)
    wanted = run(model)
    assert same(run(copy.deepcopy(model)), wanted, 0)
    assert same(run(pickle.loads(pickle.dumps(model))), wanted, 0)
    assert {p.dtype for p in copy.deepcopy(model).float().parameters()} == {torch.float32}
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**small_batch("bert").inputs)
    assert relative(compiled.last_hidden_state, next(iter(wanted.values()))) <= (
        1e-7 if technique == "AdaptiveSpan" else 1e-12
    )


@pytest.mark.parametrize("technique", EXAMPLES)
@pytest.mark.parametrize("family", ["bert", "albert", "mobilebert"])
def test_packing_changes_nothing_under_a_technique(technique, family):
    model = build(family, small_config(family), seed=1)
    if refusal(type(model), model.config, EXAMPLES[technique]) is not None:
        pytest.skip("does not go together")
    zoo.apply(model, *EXAMPLES[technique], generator=seeded())
    randomised(model, 4)
    packed = run(model, family)
    with zoo.packing(False):
        unpacked = run(model, family)
    assert same(packed, unpacked)


def test_create_takes_techniques_and_a_task(tmp_path):
    fields = small_config("bert").to_dict()
    model = zoo.create(
        "bert-base",
        task="sequence-classification",
        techniques=[zoo.StridedAttention(stride=2), zoo.LoRA(rank=2)],
        **fields,
    )
    assert [type(t).__name__ for t in model.model.techniques] == ["StridedAttention", "LoRA"]
    folder = zoo.save(model, tmp_path / "saved")
    loaded = zoo.load(folder)
    assert loaded.task == "sequence-classification"
    again = zoo.create("bert-base", pretrained=folder, techniques=[zoo.BottleneckAdapter()])
    assert [type(t).__name__ for t in again.model.techniques] == ["StridedAttention", "LoRA", "BottleneckAdapter"]
    assert str(again.model.changes[-1]).startswith("BottleneckAdapter")


@pytest.mark.parametrize("stream", ["text", "image"])
def test_places_are_found_by_role_in_either_of_two_streams(stream):
    model = build("vilbert", small_config("vilbert"), seed=3)
    sites = {site.path: site for site in model.sites() if site.stream == stream}
    assert {"self-attention", "cross-attention", "feed-forward", "attention-norm", "cross-attention-norm"} <= {
        s.role for s in sites.values()
    }
    assert all(model.get_submodule(path) is site.module for path, site in sites.items())
    before = run(model, "vilbert")
    lora = zoo.LoRA(rank=2, streams=(stream,))
    houlsby = zoo.BottleneckAdapter(
        kind="houlsby", after=("attention", "cross-attention", "feed-forward"), reduction=2.0, streams=(stream,)
    )
    zoo.apply(model, lora, houlsby, generator=seeded())
    homes = {re.split(r"\.(?:loras|adapters)\.", name)[0] for change in model.changes for name in change.added}
    roles = {"attention-query", "attention-value", "attention-norm", "cross-attention-norm", "feed-forward-norm"}
    assert homes == {path for path, site in sites.items() if site.role in roles}
    assert {depth for home in homes for depth in sites[home].depths} == {
        depth for site in sites.values() for depth in site.depths
    }
    last = {name: part for name, part in model.named_modules() if name in homes}
    width = {"text": model.config.hidden_size, "image": model.config.image_hidden_size}[stream]
    assert all(part.weight.numel() == width for name, part in last.items() if name.endswith("norm"))
    assert not same(run(model, "vilbert"), before)


def test_what_does_not_fit_is_refused_with_the_reason():
    model = bert()
    with pytest.raises(TechniqueError, match="streams text at depths"):
        zoo.apply(model, zoo.LoRA(streams=("image",)))
    with pytest.raises(TechniqueError, match="is an object like"):
        zoo.apply(model, "LoRA")
    zoo.apply(model, zoo.LoRA())
    with pytest.raises(TechniqueError, match="another name"):
        zoo.apply(model, zoo.LoRA())
    zoo.apply(model, zoo.SlidingWindow(radius=2))
    with pytest.raises(TechniqueError, match="already"):
        zoo.apply(model, zoo.StridedAttention())
    with pytest.raises(UnknownNameError, match="rank"):
        zoo.LoRA.from_dict({"rnk": 3})
    with pytest.raises(ConfigError, match="do not fit"):
        zoo.FixedAttention(stretch=4, summary=3, groups=2)
    with pytest.raises(TechniqueError, match="no adapter named"):
        zoo.apply(bert(), zoo.ActiveAdapters(names=("a",)))


def test_an_unknown_technique_in_a_file_is_refused(tmp_path):
    model = bert()
    zoo.apply(model, zoo.LoRA())
    folder = zoo.save(model, tmp_path / "saved")
    text = (folder / "config.json").read_text().replace('"technique": "LoRA"', '"technique": "LoRa"')
    (folder / "config.json").write_text(text)
    with pytest.raises(UnknownNameError, match="LoRA"):
        zoo.load(folder)


def test_a_layout_without_names_for_new_tensors_is_refused(tmp_path):
    model = bert("masked-lm")
    zoo.apply(model, zoo.LoRA())
    with pytest.raises(CheckpointError, match="merge"):
        zoo.convert(zoo.save(model, tmp_path / "lora"), tmp_path / "other.safetensors", to="hf-bert")
    lora.merge(model)
    zoo.convert(zoo.save(model, tmp_path / "merged"), tmp_path / "other.safetensors", to="hf-bert")


# -- LoRA and adapters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_merging_lora_changes_no_result_and_unmerging_gives_the_weights_back(dora):
    model = bert()
    zoo.apply(model, zoo.LoRA(rank=3, alpha=5, dora=dora, rank_stabilized=True), generator=seeded())
    randomised(model, 4)
    wanted, weights = run(model), copy.deepcopy(model.state_dict())
    merged = lora.merge(model)
    assert same(run(model), wanted)
    assert list(model.state_dict()) == list(bert().state_dict())
    assert not model.techniques
    lora.unmerge(model, merged)
    assert same(model.state_dict(), weights)


PAIRED = zoo.LoRA(rank=2, name="paired", roles=("attention-query", "attention-value", *lora.LINEAR_ROLES[4:]))


@pytest.mark.parametrize("first", [False, True], ids=["on-top", "below"])
@pytest.mark.parametrize("technique", EXAMPLES)
def test_a_merge_beside_any_technique_is_exact_or_refused_before_anything_changes(technique, first, tmp_path):
    model = build("bert", small_config("bert"), seed=1)
    techniques = (PAIRED, *EXAMPLES[technique]) if first else (*EXAMPLES[technique], PAIRED)
    try:
        zoo.apply(model, *techniques, generator=seeded())
    except TechniqueError:
        return
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=seeded(number), dtype=parameter.dtype)
            parameter.add_(0.2 * noise)
    model.eval()
    wanted, tensors = run(model), copy.deepcopy(model.state_dict())
    without_update = copy.deepcopy(model)
    for part in without_update.modules():
        if isinstance(part, LowRank):
            part.up.data.zero_()
    assert not same(run(without_update), wanted, 1e-3), "the update acts"
    assert same(run(zoo.load(zoo.save(model, tmp_path / "whole"))), wanted)
    try:
        merged, refused = lora.merge(model, "paired"), ""
    except TechniqueError as error:
        merged, refused = None, str(error)
    if merged is None:
        assert "can't be merged" in refused
        assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
        assert same(run(model), wanted, 0)
        assert model.techniques == techniques
        return
    assert not any(".paired." in name for name in model.state_dict())
    assert same(run(model), wanted, 1e-9)
    assert same(run(zoo.load(zoo.save(model, tmp_path / "merged"))), wanted, 1e-9)
    lora.unmerge(model, merged)
    assert model.techniques == techniques
    assert same(run(model), wanted, 1e-9)
    assert same(run(zoo.load(zoo.save(model, tmp_path / "again"))), wanted, 1e-9)


@pytest.mark.parametrize(
    ("techniques", "says"),
    [
        ([zoo.WeightOnly(bits=4, block=8), zoo.LoRA()], "is a CodedLinear, whose weight is rounded, packed"),
        ([zoo.WeightPruning(sparsity=0.5), zoo.LoRA()], "MaskedLayer, which the layer was before"),
        ([zoo.IA3(), zoo.LoRA()], "Rescaled, which the layer was before"),
        ([zoo.LoRA(name="a"), zoo.LoRA(name="b", dora=True)], "a DoRA's norm depends on the weight.*'a', 'b'"),
        ([zoo.LoRA(), zoo.LoRA(name="deep", roles=("feed-forward-down",), bias=True)], "has a bias or a gate"),
    ],
)
def test_a_merge_that_would_change_the_result_is_refused_saying_why(techniques, says):
    model = bert()
    zoo.apply(model, *techniques, generator=seeded())
    randomised(model, 4)
    wanted = run(model)
    with pytest.raises(TechniqueError, match=says):
        lora.merge(model)
    assert same(run(model), wanted, 0)
    assert model.techniques == tuple(techniques)


def test_a_merge_beside_a_dora_or_of_what_is_switched_off_or_unknown_is_refused():
    model = bert()
    zoo.apply(model, zoo.LoRA(name="a"), zoo.LoRA(name="b", dora=True), generator=seeded())
    with pytest.raises(TechniqueError, match="DoRA"):
        lora.merge(model, "a")
    model = bert()
    zoo.apply(model, zoo.LoRA(name="a"), zoo.LoRA(name="b"), generator=seeded())
    lora.switch(model, ["a"])
    with pytest.raises(TechniqueError, match=r"'b' at .* switched off"):
        lora.merge(model)
    lora.merge(model, "a")
    with pytest.raises(UnknownNameError, match="'a'"):
        lora.merge(model, "a")


def test_a_weight_that_another_part_reads_is_not_merged_into():
    model = bert()
    attention = model.encoder.blocks[0].attention
    attention.key.weight = attention.query.weight
    zoo.apply(model, zoo.LoRA(roles=("attention-query",)), generator=seeded())
    with pytest.raises(TechniqueError, match="another part reads the same weight"):
        lora.merge(model)


def test_a_merge_into_half_precision_rounds_the_sum_once():
    model = bert()
    zoo.apply(model, zoo.LoRA(rank=3, alpha=5), generator=seeded())
    randomised(model, 4).bfloat16()
    part = model.encoder.blocks[0].attention.query
    update = part.loras["default"]
    wanted = part.weight.double() + 5 / 3 * update.up.double() @ update.down.double()
    lora.merge(model)
    torch.testing.assert_close(part.weight, wanted.bfloat16(), rtol=2**-8, atol=0)
    assert (part.weight != wanted.bfloat16()).double().mean() < 0.01


def test_unmerging_after_the_layer_became_something_else_is_refused():
    model = bert()
    zoo.apply(model, zoo.LoRA(), generator=seeded())
    merged = lora.merge(model)
    zoo.apply(model, zoo.IA3(), generator=seeded())
    wanted = run(model)
    with pytest.raises(TechniqueError, match="is a RescaledLinear now"):
        lora.unmerge(model, merged)
    assert same(run(model), wanted, 0)


@pytest.mark.parametrize("technique", [zoo.WeightPruning(sparsity=0.5), zoo.MovementPruning(threshold=0.5)], ids=str)
def test_masks_below_an_update_are_not_half_baked(technique):
    model = bert()
    zoo.apply(model, technique, zoo.LoRA(), generator=seeded())
    randomised(model, 4)
    wanted = run(model)
    with pytest.raises(TechniqueError, match="LowRankUpdated"):
        bake(model)
    assert same(run(model), wanted, 0)


def test_loras_add_up_and_are_switched_from_batch_to_batch():
    model = bert()
    none = run(model)
    zoo.apply(
        model,
        zoo.LoRA(name="a", rank=2),
        zoo.LoRA(name="b", rank=3, roles=("attention-query", "feed-forward-up")),
        generator=seeded(),
    )
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".loras." not in name}
    randomised(model, 5)
    model.load_state_dict({**model.state_dict(), **base})
    both = run(model)
    lora.switch(model, ["a"])
    only = run(model)
    other = copy.deepcopy(model)
    lora.switch(other)
    lora.merge(other, "a")
    lora.switch(other, [])
    assert same(run(other), only)
    lora.switch(model, [])
    assert same(run(model), none, 0)
    lora.switch(model)
    assert same(run(model), both, 0)
    assert not same(only, both)
    with pytest.raises(UnknownNameError, match="'c'"):
        lora.switch(model, ["c"])


def test_lora_starts_at_the_model_and_its_size_is_the_papers():
    model = bert()
    before = run(model)
    zoo.apply(model, zoo.LoRA(rank=8))
    assert same(run(model), before)
    with torch.device("meta"):
        base = zoo.create("bert-base", device="meta", techniques=[zoo.LoRA(rank=8)])
        adapted = zoo.create("bert-base", device="meta", techniques=[zoo.BottleneckAdapter(reduction=16)])
        houlsby = zoo.create(
            "bert-base", device="meta", techniques=[zoo.BottleneckAdapter(kind="houlsby", reduction=16)]
        )
        prefixed = zoo.create("bert-base", device="meta", techniques=[zoo.PrefixTuning()])
    assert base.changes[0].after - base.changes[0].before == 294_912
    assert adapted.changes[0].after - adapted.changes[0].before == 894_528
    assert houlsby.changes[0].after - houlsby.changes[0].before == 1_789_056
    assert prefixed.changes[0].after - prefixed.changes[0].before == 9_872_384


def test_a_shared_block_has_one_adapter_for_all_of_its_depths():
    model = zoo.create("albert-base", device="meta", techniques=[zoo.BottleneckAdapter(), zoo.LoRA()])
    assert [name for name in model.changes[0].added if name.endswith("down.weight")] == [
        "encoder.blocks.0.blocks.0.feed_forward_norm.adapters.default.down.weight"
    ]
    (site,) = [site for site in model.sites() if site.role == "attention-query"]
    assert site.depths == tuple(range(12))


def test_adapters_can_be_switched_stacked_averaged_and_fused():
    model = bert()
    zoo.apply(
        model,
        zoo.BottleneckAdapter(name="a", reduction=2.0),
        zoo.BottleneckAdapter(name="b", reduction=4.0),
        generator=seeded(),
    )
    randomised(model, 3)
    results = {}
    ways = [
        (("a",), "stack"),
        (("b",), "stack"),
        (("a", "b"), "stack"),
        (("b", "a"), "stack"),
        (("a", "b"), "average"),
        ((), "stack"),
    ]
    for names, how in ways:
        zoo.apply(model, zoo.ActiveAdapters(names=names, how=how))
        results[names, how] = next(iter(run(model).values()))
    zoo.apply(model, zoo.AdapterFusion(names=("a", "b")), generator=seeded())
    results["fused"] = next(iter(run(model).values()))
    values = list(results.values())
    assert all(relative(a, b) > 1e-6 for i, a in enumerate(values) for b in values[:i])
    bare = bert()
    bare.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in bare.state_dict()})
    assert torch.equal(results[(), "stack"], next(iter(run(bare).values())))


def test_an_adapter_that_is_not_named_rests_even_where_none_of_the_named_stands():
    model = bert()
    wanted = run(zoo.apply(bert(), zoo.BottleneckAdapter(name="b"), generator=seeded()))
    zoo.apply(model, zoo.BottleneckAdapter(name="b"), generator=seeded())
    zoo.apply(model, zoo.BottleneckAdapter(name="a", kind="houlsby", reduction=2.0), generator=seeded(1))
    zoo.apply(model, zoo.ActiveAdapters(names=("b",)))
    assert [
        norm.active for norm in (model.encoder.blocks[0].attention_norm, model.encoder.blocks[0].feed_forward_norm)
    ] == [(), ("b",)]
    assert same(run(model), wanted, 0)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta-xl", "albert", "vilbert", "mbart"])
def test_in_parallel_each_part_of_a_batch_has_its_own_adapter(family, tmp_path):
    model = build(family, small_config(family), seed=3)
    one = zoo.BottleneckAdapter(name="a", reduction=2.0, kind="houlsby")
    zoo.apply(
        model,
        one,
        zoo.BottleneckAdapter(name="b", kind="parallel"),
        zoo.BottleneckAdapter(name="c"),
        generator=seeded(),
    )
    randomised(model, 3)
    batch = small_batch(family).inputs
    alone = {}
    for name in ("a", "b", "c"):
        zoo.apply(model, zoo.ActiveAdapters(names=(name,)))
        alone[name] = run(model, family)
    zoo.apply(model, zoo.ActiveAdapters(names=("c", "a", "b"), how="parallel"))

    def parts(model: nn.Module) -> dict[str, dict[str, Tensor]]:
        with torch.no_grad():
            both = states(family, model(**adapters.repeated(batch, 3)))
        return {name: {key: value.chunk(3)[i] for key, value in both.items()} for i, name in enumerate(("c", "a", "b"))}

    assert all(same(found, alone[name]) for name, found in parts(model).items())
    assert all(same(found, alone[name]) for name, found in parts(zoo.load(zoo.save(model, tmp_path / "saved"))).items())
    rows = {key: value[:2] for key, value in batch.items()}
    with pytest.raises(InputError, match="batch of 2 can't be shared evenly by 3"):
        model(**rows)
    zoo.apply(model, zoo.ActiveAdapters(names=("a",)))  # and back
    assert same(run(model, family), alone["a"])


def test_an_average_may_be_weighted():
    model = bert()
    zoo.apply(
        model,
        zoo.BottleneckAdapter(name="a", reduction=2.0),
        zoo.BottleneckAdapter(name="b", reduction=4.0),
        generator=seeded(),
    )
    randomised(model, 3)
    found = {}
    for names, weights in (
        (("a", "b"), ()),
        (("a", "b"), (0.5, 0.5)),
        (("b", "a"), (0.0, 1.0)),
        (("a", "b"), (0.75, 0.25)),
    ):
        zoo.apply(model, zoo.ActiveAdapters(names=names, how="average", weights=weights))
        found[names, weights] = run(model)
    even, halves, one, other = found.values()
    assert same(even, halves)
    assert not same(even, other)
    zoo.apply(model, zoo.ActiveAdapters(names=("a",)))
    assert same(run(model), one)
    with pytest.raises(ConfigError, match="one for each of 2 names"):
        zoo.ActiveAdapters(names=("a", "b"), how="average", weights=(1.0,))
    with pytest.raises(ConfigError, match="how='stack'"):
        zoo.ActiveAdapters(names=("a",), weights=(1.0,))


def test_parallel_adapters_need_their_names():
    with pytest.raises(ConfigError, match="one part for each"):
        zoo.ActiveAdapters(how="parallel")


def test_adapters_are_switched_from_batch_to_batch_without_a_growing_record(tmp_path):
    model = bert()
    zoo.apply(
        model,
        zoo.BottleneckAdapter(name="a", reduction=2.0),
        zoo.BottleneckAdapter(name="b", reduction=4.0),
        generator=seeded(),
    )
    randomised(model, 3)
    given = {}
    for name in ("a", "b", "a", "b", "a"):
        zoo.apply(model, zoo.ActiveAdapters(names=(name,)))
        found = run(model)
        assert same(given.setdefault(name, found), found, 0)
    assert not same(given["a"], given["b"])
    assert [type(t).__name__ for t in model.techniques] == ["BottleneckAdapter", "BottleneckAdapter", "ActiveAdapters"]
    assert same(run(zoo.load(zoo.save(model, tmp_path / "saved"))), given["a"], 1e-14)


def test_a_switch_of_one_layer_stays_in_the_record_beside_that_of_another(tmp_path):
    model = bert(num_layers=2)
    zoo.apply(
        model,
        zoo.BottleneckAdapter(name="a", reduction=2.0),
        zoo.BottleneckAdapter(name="b", reduction=4.0),
        generator=seeded(),
    )
    randomised(model, 3)
    zoo.apply(model, zoo.ActiveAdapters(names=("a",), depths=(0,)), zoo.ActiveAdapters(names=("b",), depths=(1,)))
    assert [norm.active for norm in (block.feed_forward_norm for block in model.encoder.blocks)] == [("a",), ("b",)]
    assert same(run(zoo.load(zoo.save(model, tmp_path / "saved"))), run(model), 1e-14)


# -- K-Adapter ---------------------------------------------------------------------------------------------------------

SMALL_K = {"size": 4, "num_heads": 2, "intermediate_size": 6, "num_layers": 1, "dropout": 0.0}


@pytest.mark.parametrize("family", ["albert", "electra", "xlm", "knowbert", "mobilebert"])
@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_k_adapters_stand_beside_other_families_one_or_several_at_once(family, fusion):
    for names in (("facts",), ("facts", "grammar"), ("facts", "grammar", "names")):
        model = build(family, small_config(family), seed=1)
        hidden = model(**small_batch(family).inputs, output_hidden_states=True)
        zoo.apply(model, zoo.KAdapter(names=names, fusion=fusion, **SMALL_K), generator=seeded())
        added = {name for name, _ in new_tensors(model)}
        assert {name.split(".")[1] for name in added if name.startswith("knowledge.")} == set(names)
        with torch.no_grad():
            for _, parameter in new_tensors(model):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=seeded(parameter.numel()), dtype=parameter.dtype) * 0.3
                )
        given = model(**small_batch(family).inputs, output_hidden_states=True)
        assert relative(given.last_hidden_state, hidden.last_hidden_state) > 1e-3
        for mine, old in zip(
            given.hidden_states, hidden.hidden_states, strict=True
        ):  # the model itself is left as it is
            assert relative(mine, old) <= 1e-12
        last, results = hidden.last_hidden_state, []
        for name in names:  # by hand, on a row without padding
            state = torch.zeros_like(last[:1])
            for tap, at in zip(model.knowledge[name].adapters, model.knowledge[name].taps, strict=True):
                f = hidden.hidden_states[at][-1:] + state[-1:] if state.shape[0] == 1 else None
                state = f + tap.up(tap.encoder(tap.down(f), Mask(keys=real_row(family))))
            results.append(state)
        fusing = model.knowledge_fusion
        if fusion == "add":
            wanted = last[-1:] + sum(results)
        else:
            parts = [
                fusing.each[name](torch.cat([last[-1:], result], -1))
                for name, result in zip(names, results, strict=True)
            ]
            wanted = parts[0] if len(parts) == 1 else fusing.joint(torch.cat(parts, -1))
        keep = real_row(family)[..., None]
        assert relative(given.last_hidden_state[-1:] * keep, wanted * keep) <= 1e-10


def real_row(family: str) -> Tensor:
    """The real tokens of the last row, (1, length) bool."""
    return small_batch(family).inputs["attention_mask"][-1:].bool()


def test_a_knowledge_adapter_trains_alone_and_is_combined_with_lora_and_strided_attention(tmp_path):
    model = bert("sequence-classification")
    zoo.apply(
        model,
        zoo.KAdapter(names=("facts", "grammar"), **SMALL_K),
        zoo.LoRA(rank=2),
        zoo.StridedAttention(stride=2),
        generator=seeded(),
    )
    names = freeze_all_but(model)
    assert all(
        part in " ".join(names)
        for part in ("knowledge.facts", "knowledge.grammar", "knowledge_fusion", "loras", "heads.")
    )
    model(**small_batch("bert").inputs).logits.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(names)
    assert (
        relative(
            zoo.load(zoo.save(model, tmp_path / "s"))(**small_batch("bert").inputs).logits,
            model(**small_batch("bert").inputs).logits,
        )
        <= 1e-14
    )
    with pytest.raises(TechniqueError, match="name all of them"):
        zoo.apply(model, zoo.KAdapter(names=("more",), **SMALL_K))


def test_the_coupling_is_undone_by_its_inverse():
    coupling = randomised(Coupling(7, "relu", 2.0).double())
    x = torch.randn(3, 4, 7, generator=seeded(), dtype=torch.float64)
    assert relative(coupling.inverse(coupling(x)), x) <= 1e-12


def test_freezing_leaves_what_is_new_and_the_heads():
    model = bert("sequence-classification")
    zoo.apply(model, zoo.LoRA(rank=2))
    names = freeze_all_but(model)
    assert names
    assert all("loras" in name or name.startswith("heads.") for name in names)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(names)


@pytest.mark.parametrize("technique", ["LoRA", "BottleneckAdapter", "PrefixTuning", "KAdapter"])
def test_an_adapter_is_saved_and_loaded_alone(technique, tmp_path):
    model = bert("sequence-classification")
    zoo.apply(model, *EXAMPLES[technique], generator=seeded())
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomised(model, 7)
    with torch.no_grad():
        added = {name for name, _ in new_tensors(model)}
        for name, tensor in model.state_dict().items():
            if name not in added and not name.startswith("heads."):
                tensor.copy_(base[name])
    folder = foreign.save_adapter(model, tmp_path / "adapter")
    assert (folder / "adapter.safetensors").stat().st_size < 60_000
    other = bert("sequence-classification")
    foreign.load_adapter(other, folder)
    inputs = small_batch("bert").inputs
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    with pytest.raises(CheckpointError, match="not of"):
        foreign.load_adapter(build("albert", small_config("albert")), folder)


def test_lora_travels_to_peft_and_back_with_its_scale(tmp_path):
    model = bert("sequence-classification")
    zoo.apply(model, zoo.LoRA(rank=3, alpha=7, rank_stabilized=True), generator=seeded())
    randomised(model, 7)
    bare = copy.deepcopy(model)
    lora.merge(bare)  # only to have the same weights below
    folder = foreign.save_adapter(model, tmp_path / "peft", library="peft")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    other = bert("sequence-classification")
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "loras" not in name})
    foreign.load_adapter(other, folder)
    assert same({"x": other(**small_batch("bert").inputs).logits}, {"x": model(**small_batch("bert").inputs).logits})


def test_a_gated_lora_weighs_its_update_for_each_text_and_refuses_what_would_lose_the_gate():
    model = bert()
    zoo.apply(model, zoo.LoRA(rank=3, gate=True, roles=("attention-query",)), generator=seeded())
    randomised(model, 7)
    part = model.encoder.blocks[0].attention.query
    x = torch.randn(2, 5, part.in_features, generator=seeded(), dtype=part.weight.dtype)
    update = part.loras["default"]
    for text, found in zip(x, part(x) - nn.functional.linear(x, part.weight, part.bias), strict=True):
        share = torch.stack(
            [torch.sigmoid(token @ update.gate.weight[0] + update.gate.bias[0]) for token in text]
        ).mean()
        torch.testing.assert_close(found, share * text @ update.down.T @ update.up.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="packing off"):
        part(x.flatten(0, 1))
    with pytest.raises(TechniqueError, match="gate"):
        lora.merge(model)
    for library in ("peft", "adapters"):
        with pytest.raises(TechniqueError, match="gate"):
            foreign.save_adapter(model, "nowhere", library=library)
    with pytest.raises(TechniqueError, match="gated LoRA"):
        zoo.LoRA(gate=True, dora=True)


PAPERS_IA3 = zoo.IA3(name="a", roles=("attention-key", "attention-value"), input_roles=("feed-forward-down",))
TO_PEFT = {
    "lora": [zoo.LoRA(name="a", rank=3, alpha=7), zoo.LoRA(name="b", rank=2)],
    "dora": [zoo.LoRA(name="a", rank=3, alpha=7, dora=True, rank_stabilized=True)],
    "a bias of B": [zoo.LoRA(name="a", rank=3, bias=True)],
    "ia3": [zoo.IA3(name="a"), zoo.LoRA(name="b")],
    "the paper's ia3": [PAPERS_IA3, zoo.IA3(name="b")],
    "prefix": [zoo.PrefixTuning(name="a", length=2, bottleneck=None, shift_positions=True)],
    "prefix behind a network": [
        zoo.PrefixTuning(name="a", length=2, bottleneck=3, shift_positions=True),
        zoo.IA3(name="b"),
    ],
}


@pytest.mark.parametrize("techniques", TO_PEFT)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_one_name_travels_to_peft_and_back_with_the_task_s_head(techniques, family, tmp_path):
    config = small_config(family, max_positions=20)
    model = build(family, config, "sequence-classification", seed=3)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("heads.")}
    first, *others = TO_PEFT[techniques]
    zoo.apply(model, first, generator=seeded())
    randomised(model, 7)
    model.load_state_dict({**model.state_dict(), **base})
    inputs = small_batch(family).inputs
    wanted = model(**inputs).logits
    zoo.apply(model, *others, generator=seeded())  # which start without effect
    folder = foreign.save_adapter(model, tmp_path / "peft", library="peft", name="a")
    other = build(family, config, "sequence-classification", seed=3)
    foreign.load_adapter(other, folder, name="a")
    assert relative(other(**inputs).logits, wanted) <= 1e-12
    assert {t.name for t in other.model.techniques} == {"a"}
    if others:
        with pytest.raises(TechniqueError, match="which are a, b"):
            foreign.save_adapter(model, tmp_path / "none", library="peft")
        assert not (tmp_path / "none").exists()


def test_what_peft_saved_is_written_again_as_it_was():
    from tests.references.case import load_case
    from zoo.checkpoints.adapters.peft import to_peft

    case = load_case(GOLDEN / "ia3" / "peft-default")
    base, own = peft.split_peft(case.weights)
    model = zoo.load(
        base, config={"model_type": "bert", **case.config["bert"]}, task="sequence-classification", num_labels=3
    )
    peft.from_peft(model, own, case.config["peft"], layout="hf-bert")
    tensors, config = to_peft(model)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == case.info[
        "shapes"
    ]  # of the file that peft wrote
    in_memory = {
        re.sub(r"\.(ia3_l)\.default$|\.modules_to_save\.default(\.)", r".\1\2", key).replace("..", "."): t
        for key, t in own.items()
    }
    assert all(torch.equal(tensor, in_memory[name]) for name, tensor in tensors.items())
    assert config["peft_type"] == "IA3"
    assert all(path.endswith("output.dense") for path in config["feedforward_modules"])
    assert set(config["feedforward_modules"]) < set(config["target_modules"])


def test_the_biases_that_peft_trained_along_are_read():
    model = bert()
    zoo.apply(model, zoo.LoRA(rank=2, roles=("attention-query",)), generator=seeded())
    from zoo.checkpoints.adapters.peft import to_peft

    tensors, config = to_peft(model)
    bias = torch.arange(8.0, dtype=torch.float64)
    at = "base_model.model.encoder.layer.1.attention.self.query"
    other = bert()
    foreign.load_adapter(other, {**tensors, f"{at}.base_layer.bias": bias}, {**config, "bias": "lora_only"})
    assert torch.equal(other.encoder.blocks[1].attention.query.bias, bias)


@pytest.mark.parametrize("library", ["peft", "adapters"])
@pytest.mark.parametrize(
    "technique",
    sorted(set(EXAMPLES) - {"LongShortRange", "Sharing", "Theseus", "LayerPruning"}),  # other layers
)
def test_a_library_s_lora_goes_onto_every_base_that_ours_goes_onto(technique, library, tmp_path):
    lora_of = zoo.LoRA(rank=2, alpha=5, name="theirs", roles=("attention-query", "feed-forward-down"))
    plain = zoo.apply(bert(), lora_of, generator=seeded())
    for number, (_, parameter) in enumerate(new_tensors(plain)):
        parameter.data.copy_(torch.randn(parameter.shape, generator=seeded(number), dtype=parameter.dtype))
    updates = {name: tensor for name, tensor in plain.state_dict().items() if ".theirs." in name}
    folder = foreign.save_adapter(plain, tmp_path / library, library=library)

    direct, loaded = (zoo.apply(bert(), *EXAMPLES[technique], generator=seeded()) for _ in range(2))
    try:
        zoo.apply(direct, lora_of)
    except TechniqueError as error:
        with pytest.raises(TechniqueError, match=re.escape(str(error)[-40:])):
            foreign.load_adapter(loaded, folder, name="theirs")
        return
    if any(direct.state_dict()[name].shape != tensor.shape for name, tensor in updates.items()):
        with pytest.raises(CheckpointError, match=r"has A .* and B .*; the layer here"):
            foreign.load_adapter(loaded, folder, name="theirs")
        return
    direct.load_state_dict({**direct.state_dict(), **updates})
    foreign.load_adapter(loaded, folder, name="theirs")
    assert same(run(loaded), run(direct))
    assert not same(run(loaded), run(zoo.apply(bert(), *EXAMPLES[technique], generator=seeded())), 1e-3)
    again = foreign.save_adapter(loaded, tmp_path / "again", library=library, name="theirs")
    stored, written = (read_adapter(place).tensors for place in (folder, again))
    assert all(torch.equal(stored[key], written[key]) for key in stored)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"init_lora_weights": "pissa"}, "'pissa': this adapter belongs to a base that lost its principal part"),
        ({"init_lora_weights": "pissa_niter_16"}, r"lost its principal part \(PiSSA\).*path_initial_model"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"init_lora_weights": "OLoRA"}, "OLoRA"),
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "loftq"}, "LoftQ"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"init_lora_weights": "somehow"}, "'somehow' is not known here"),
        ({"alora_invocation_tokens": [5, 6]}, r"\[5, 6\]: an activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_a_peft_adapter_of_another_base_or_meaning_is_refused_before_anything_changes(options, says):
    from zoo.checkpoints.adapters.peft import to_peft

    tensors, config = to_peft(zoo.apply(bert(), zoo.LoRA(rank=2), generator=seeded()))
    other = bert()
    names = list(other.state_dict())
    with pytest.raises(TechniqueError, match=says):
        foreign.load_adapter(other, tensors, {**config, **options})
    assert list(other.state_dict()) == names
    assert not other.techniques


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_a_peft_adapter_that_started_on_the_plain_base_is_taken(start):
    from zoo.checkpoints.adapters.peft import to_peft

    tensors, config = to_peft(zoo.apply(bert(), zoo.LoRA(rank=2), generator=seeded()))
    foreign.load_adapter(bert(), tensors, {**config, "init_lora_weights": start, "alora_invocation_tokens": None})


def test_what_means_something_else_in_peft_is_refused(tmp_path):
    for family, technique, why in (
        ("bert", zoo.PrefixTuning(length=2, bottleneck=None), "positions"),
        ("bert", zoo.PrefixTuning(length=2, depths=(0,), shift_positions=True), "leaves some out"),
        ("albert", zoo.PrefixTuning(length=2, shift_positions=True), "several depths"),
        ("vilbert", zoo.PrefixTuning(length=2), "one stack"),
        ("bert", zoo.IA3(roles=("attention-key",), input_roles=("attention-key",)), "both its inputs and its outputs"),
        ("bert", zoo.BottleneckAdapter(), "which are none"),
    ):
        fields = {"num_groups": 1} if family == "albert" else {}
        model = zoo.apply(build(family, small_config(family, **fields)), technique)
        with pytest.raises(TechniqueError, match=why):
            foreign.save_adapter(model, tmp_path / "none", library="peft")


@pytest.mark.parametrize("family", ["bert", "roberta", "mobilebert", "xlm"])
def test_behind_a_shifting_prefix_the_text_stands_that_much_further(family):
    model = build(family, small_config(family, max_positions=20), seed=3)
    zoo.apply(model, zoo.PrefixTuning(length=3, bottleneck=None, shift_positions=True), generator=seeded())
    inputs = {**small_batch(family).inputs}
    if family == "roberta":  # which counts no padding
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.pad_token_id, 0)
    shifted = model(**inputs).last_hidden_state
    length = inputs["input_ids"].shape[1]
    begin = model.embeddings.padding + 1 if family == "roberta" else 0
    model.embeddings.first_position = 0
    positions = torch.arange(length)[None].expand_as(inputs["input_ids"]) + begin + 3
    assert relative(model(**inputs, position_ids=positions).last_hidden_state, shifted) <= 1e-12
    assert relative(model(**inputs).last_hidden_state, shifted) > 1e-6


WIRINGS = {
    "houlsby": [zoo.BottleneckAdapter(kind="houlsby", name="a", reduction=2.0)],
    "pfeiffer": [
        zoo.BottleneckAdapter(kind="pfeiffer", name="a", reduction=3.0, input_norm=True),
        zoo.InvertibleAdapter(name="a"),
    ],
    "parallel": [zoo.BottleneckAdapter(kind="parallel", name="a", reduction=2.0, scaling="learned")],
    "by layer": [
        zoo.BottleneckAdapter(name="a", reduction=r, depths=(d,), residual="sum") for r, d in ((2.0, 0), (3.0, 1))
    ],
    "lora": [zoo.LoRA(name="a", rank=3, alpha=7, roles=("attention-query", "attention-key", "feed-forward-up"))],
    "dora": [zoo.LoRA(name="a", rank=3, alpha=7, dora=True, dora_whole=True)],
    "ia3": [zoo.IA3(name="a")],
    "prefix": [zoo.PrefixTuning(name="a", length=2, bottleneck=3)],
    "flat prefix before one layer": [zoo.PrefixTuning(name="a", length=2, bottleneck=None, depths=(1,))],
}


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_adapter_travels_to_the_library_adapters_and_back(wiring, family, tmp_path):
    model = build(family, small_config(family), seed=3)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.apply(model, *WIRINGS[wiring], zoo.BottleneckAdapter(name="other"), generator=seeded())
    zoo.apply(model, zoo.ActiveAdapters(names=("a",) if isinstance(WIRINGS[wiring][0], zoo.BottleneckAdapter) else ()))
    randomised(model, 7)
    model.load_state_dict({**model.state_dict(), **base})
    folder = foreign.save_adapter(model, tmp_path / "adapters", library="adapters", name="a")
    other = build(family, small_config(family), seed=3)
    foreign.load_adapter(other, folder)
    assert same(run(other, family), run(model, family))
    assert {t.name for t in other.techniques} == {"a"}
    with pytest.raises(TechniqueError, match="which are a, other"):
        foreign.save_adapter(model, tmp_path / "none", library="adapters")
    assert not (tmp_path / "none").exists()
    pickled = torch.load(folder / "pytorch_adapter.bin", weights_only=True)  # what that library reads by default
    with open_archive(folder / "adapter.safetensors") as archive:
        assert list(archive.tensors) == sorted(pickled)
        assert all(torch.equal(archive.read(name), tensor) for name, tensor in pickled.items())


@pytest.mark.parametrize(
    ("family", "kind", "places"),
    [
        ("distilbert", "houlsby", {"attention_adapters": 2, "output_adapters": 2}),
        ("mbart", "houlsby", {"attention_adapters": 4, "output_adapters": 4}),
        ("electra", "houlsby", {"output": 4}),
        ("albert", "pfeiffer", {"output_adapters": 1}),
    ],
)
def test_adapters_stand_where_the_library_has_them_in_other_families(family, kind, places, tmp_path):
    fields = {"num_groups": 1, "num_inner_blocks": 1} if family == "albert" else {}
    config = small_config(family, **fields)
    model = build(family, config, seed=3)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.apply(model, zoo.BottleneckAdapter(name="a", kind=kind, reduction=2.0), generator=seeded())
    randomised(model, 7)
    model.load_state_dict({**model.state_dict(), **base})
    folder = foreign.save_adapter(model, tmp_path / "adapters", library="adapters")
    with open_archive(folder / "adapter.safetensors") as archive:
        stands = [
            name.split(".adapters.a.")[0].rpartition(".")[2]
            for name in archive.tensors
            if name.endswith("adapter_up.bias")
        ]
    assert {place: stands.count(place) for place in set(stands)} == places
    other = build(family, config, seed=3)
    foreign.load_adapter(other, folder)
    assert same(run(other, family), run(model, family))
    assert [name for name, _ in new_tensors(other)] == [name for name, _ in new_tensors(model)]


@pytest.mark.parametrize(
    "technique",
    [
        zoo.BottleneckAdapter(name="a", depths=(1,)),
        zoo.LoRA(name="a", depths=(1,), dora=True, dora_whole=True),
        zoo.IA3(name="a", depths=(1,)),
        zoo.PrefixTuning(name="a", length=2, depths=(1,)),
    ],
)
def test_the_library_is_told_which_layers_are_left_out(technique):
    from zoo.checkpoints.adapters.adapter_hub import to_adapters

    tensors, described = to_adapters(zoo.apply(bert(num_layers=3), technique))
    assert described["config"]["leave_out"] == [0, 2]  # else it puts new ones there, which start at random
    assert described["config"].get("use_dora", False) == isinstance(technique, zoo.LoRA)
    assert all(tensor.shape[1] == 1 for name, tensor in tensors.items() if name.endswith("m.weight"))  # a column


def test_alberts_adapters_behind_attention_mean_something_else_in_the_library(tmp_path):
    model = zoo.apply(build("albert", small_config("albert")), zoo.BottleneckAdapter(kind="houlsby"))
    with pytest.raises(TechniqueError, match="takes the block's input"):
        foreign.save_adapter(model, tmp_path / "adapters", library="adapters")


def test_a_compacter_without_its_shared_rule_is_refused():
    own = {
        "adapter_down.0.W_left": torch.ones(2, 4, 1),
        "adapter_down.0.W_right": torch.ones(2, 1, 2),
        "adapter_down.0.b": torch.ones(4),
    }
    assert adapter_hub.written_out(own, {"phm_rule": torch.ones(2, 2, 2)})["adapter_down.0.weight"].shape == (4, 8)
    with pytest.raises(CheckpointError, match="phm_rule"):
        adapter_hub.written_out(own, {})


def test_a_prefix_file_that_lacks_a_part_is_refused():
    model = zoo.apply(bert(), zoo.PrefixTuning(length=2, bottleneck=3))
    from zoo.checkpoints.adapters.adapter_hub import to_adapters

    tensors, config = to_adapters(model)
    with pytest.raises(CheckpointError, match=r"makes its table\.weight"):
        foreign.load_adapter(bert(), {name: tensor for name, tensor in tensors.items() if "wte" not in name}, config)


def test_a_fusion_travels_to_the_library_adapters_and_back(tmp_path):
    two = (zoo.BottleneckAdapter(name="a", reduction=2.0), zoo.BottleneckAdapter(name="b", reduction=2.0))
    model = zoo.apply(build("roberta", small_config("roberta"), seed=3), *two, generator=seeded())
    zoo.apply(model, zoo.AdapterFusion(names=("b", "a"), temperature=50.0, query_before_norm=True), generator=seeded())
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".fusions." not in name}
    randomised(model, 7)
    model.load_state_dict({**model.state_dict(), **base})
    folder = foreign.save_adapter(model, tmp_path / "fusion", library="adapters", name="b,a")
    assert {path.name for path in folder.iterdir()} == {
        "adapter_fusion_config.json",
        "model_adapter_fusion.safetensors",
        "pytorch_model_adapter_fusion.bin",
    }
    other = zoo.apply(build("roberta", small_config("roberta"), seed=3), *two, generator=seeded())
    foreign.load_adapter(other, folder)
    assert same(run(other, "roberta"), run(model, "roberta"))
    assert other.techniques[-1] == model.techniques[-1]
    with pytest.raises(TechniqueError, match="which are 'b,a'"):
        foreign.save_adapter(model, tmp_path / "none", library="adapters", name="a,b")


def test_the_fusion_that_adapters_saved_is_written_again_as_it_was():
    from tests.references.adapter_libraries import with_adapters
    from tests.references.case import load_case
    from zoo.checkpoints.adapters.adapter_hub import fusion_to_adapters

    case = load_case(GOLDEN / "bottleneck-adapters" / "pfeiffer-fusion")
    tensors, config = fusion_to_adapters(with_adapters(case)[0], "a,b", "hf-bert")
    stored = {key: tensor for key, tensor in case.weights.items() if ".adapter_fusion_layer." in key}
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensors[key], stored[key]) for key in stored)
    assert config["config"] == case.config["fusion"]


@pytest.mark.parametrize("case", ["houlsby", "pfeiffer"])
def test_what_adapters_saved_is_written_again_as_it_was(case):
    from tests.references.adapter_libraries import with_adapters
    from tests.references.case import load_case
    from zoo.checkpoints.adapters.adapter_hub import to_adapters

    loaded = load_case(GOLDEN / "bottleneck-adapters" / case)
    stored = adapter_hub.split_adapters(loaded.weights)[1]
    name = next(iter(loaded.config["adapters"]))
    tensors, config = to_adapters(with_adapters(loaded)[0], name, "hf-bert")
    mine = {key: tensor for key, tensor in stored.items() if f".{name}." in key}
    assert tensors.keys() == mine.keys()
    assert all(torch.equal(tensors[key], mine[key]) for key in mine)
    theirs = loaded.config["adapters"][name]
    assert {key: config["config"][key] for key in config["config"] if key in theirs} == {
        key: theirs[key] for key in config["config"] if key in theirs
    }


def test_the_prefix_that_adapters_saved_is_written_again_as_it_was():
    from tests.references.adapter_libraries import with_adapters
    from tests.references.case import load_case
    from zoo.checkpoints.adapters.adapter_hub import to_adapters

    case = load_case(GOLDEN / "prefix-tuning" / "adapters-mlp")
    tensors, config = to_adapters(with_adapters(case)[0], "a", "hf-bert")
    stored = {key: tensor for key, tensor in case.weights.items() if key.startswith("prefix_tuning.")}
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensors[key], stored[key]) for key in stored)
    theirs = case.config["adapters"]["a"]
    assert {**theirs, **config["config"]} == theirs


def test_an_ejected_prefix_gives_the_same(tmp_path):
    model = bert()
    zoo.apply(model, zoo.PrefixTuning(length=3, bottleneck=5), generator=seeded())
    randomised(model, 7)
    wanted = run(model)
    prefix.eject(model)
    assert same(run(model), wanted)
    assert same(run(zoo.load(zoo.save(model, tmp_path / "saved"))), wanted)
    assert [name for name, _ in model.prefixes.named_parameters()] == ["default.values"]


# -- sharing and factorised tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "count"),
    [("all", 11_683_584), ("attention", 63_647_232), ("feed-forward", 37_686_528), (None, 89_650_176)],
)
def test_alberts_table_comes_out_from_bert_and_from_albert(share, count):
    sharing = [] if share is None else [zoo.Sharing(share=share)]
    whole = zoo.FactorizedEmbedding(size=128, whole=True)
    assert (
        zoo.create("bert-base", device="meta", vocab_size=30_000, techniques=[whole, *sharing]).num_parameters()
        == count
    )
    assert zoo.create("albert-base", device="meta", num_groups=12, techniques=sharing).num_parameters() == count


@pytest.mark.parametrize("start", ["first", "average"])
def test_a_group_starts_as_its_first_layer_or_as_the_mean(start):
    model = bert(num_layers=5)
    old = copy.deepcopy(model)
    zoo.apply(model, zoo.Sharing(share="feed-forward", groups=2, start=start))
    groups = [[0, 1, 2], [3, 4]]
    for group in groups:
        layers = [old.encoder.blocks[i].feed_forward.up.weight for i in group]
        wanted = layers[0] if start == "first" else torch.stack(layers).mean(0)
        for i in group:
            assert relative(model.encoder.blocks[i].feed_forward.up.weight, wanted) <= 1e-15
            assert torch.equal(
                model.encoder.blocks[i].attention.query.weight, old.encoder.blocks[i].attention.query.weight
            )
    assert [site.depths for site in model.sites() if site.role == "feed-forward"] == [(0, 1, 2), (3, 4)]


@pytest.mark.parametrize("family", ["bert", "vilbert", "visualbert", "uniter"])
def test_sharing_and_a_factorised_table_start_from_trained_weights(family, tmp_path):
    trained = build(family, small_config(family), seed=3)
    folder = zoo.save(trained, tmp_path / "trained")
    techniques = [zoo.Sharing(start="average"), zoo.FactorizedEmbedding(size=3)]
    model = zoo.create(f"{family}-base", pretrained=folder, techniques=techniques)
    sharing, factorised = model.changes
    assert sharing.after < sharing.before == trained.num_parameters()
    assert factorised.after < factorised.before == sharing.after
    old = trained.embeddings.token.weight
    u, s, v = torch.linalg.svd(old)
    assert relative(model.embeddings.token.table, u[:, :3] * s[:3] @ v[:3]) <= 1e-9
    owners = [site for site in model.sites() if site.role == "feed-forward-up" and len(site.depths) > 1]
    assert {site.stream for site in owners} == {site.stream for site in model.sites() if site.role == "feed-forward-up"}
    olds = {
        (site.stream, depth): site
        for site in trained.sites()
        if site.role == "feed-forward-up"
        for depth in site.depths
    }
    for site in owners:
        mean = torch.stack([olds[site.stream, depth].module.weight for depth in site.depths]).mean(0)
        assert relative(site.module.weight, mean) <= 1e-12


def test_sharing_all_runs_the_first_layer_at_every_depth():
    model = bert(num_layers=3)
    by_hand = copy.deepcopy(model)
    for i in (1, 2):
        by_hand.encoder.blocks[i].load_state_dict(by_hand.encoder.blocks[0].state_dict())
    zoo.apply(model, zoo.Sharing())
    assert same(run(model), run(by_hand))


@given(rows=st.integers(1, 12), width=st.integers(2, 9), size=st.integers(1, 8))
@settings(max_examples=30, **SETTINGS)
def test_the_table_is_approximated_as_well_as_any_table_of_that_rank(rows, width, size):
    table = torch.randn(rows, width, generator=seeded(rows), dtype=torch.float64)
    left, right, kept = factors(table, size)
    s = torch.linalg.svdvals(table)
    lost = float((table - left @ right.T).square().sum())
    assert abs(lost - float(s[size:].square().sum())) <= 1e-9
    assert abs(1 - kept - lost / float(s.square().sum())) <= 1e-9


def test_a_factorised_model_predicts_words_through_the_product():
    model = bert("masked-lm")
    wanted = model(**small_batch("bert").inputs).logits
    with torch.no_grad():  # a table of rank 3
        left, right, _ = factors(model.model.embeddings.token.weight, 3)
        model.model.embeddings.token.weight.copy_(left @ right.T)
    wanted = model(**small_batch("bert").inputs).logits
    zoo.apply(model, zoo.FactorizedEmbedding(size=3))
    assert relative(model(**small_batch("bert").inputs).logits, wanted) <= 1e-10


# -- sparse attention --------------------------------------------------------------------------------------------------


@st.composite
def sparsities(draw):
    see_back = draw(st.booleans())
    width = st.integers(1, 9)
    kind = draw(st.sampled_from(["local", "strided", "fixed", "window", "merged", "three", "all"]))
    if kind == "local":
        return local(draw(width), causal=see_back)
    if kind == "strided":
        return strided(draw(width), causal=see_back)
    if kind == "fixed":
        summary, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        stretch = summary * groups + draw(st.integers(0, 4))
        return fixed(stretch, summary, group=draw(st.integers(0, groups - 1)), causal=see_back)
    if kind == "window":
        return windowed(draw(st.integers(0, 8)), draw(st.integers(0, 4)), causal=see_back)
    if kind == "merged":
        return local(draw(width), causal=see_back) | strided(draw(width), causal=see_back)
    if kind == "three":
        return local(draw(width)) | windowed(0, draw(st.integers(1, 3))) | strided(draw(width))
    return everything(causal=see_back)


def by_loops(q: Tensor, k: Tensor, v: Tensor, may) -> Tensor:
    """Row by row, in float64: softmax over the keys that may be seen."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = [j for j in range(k.shape[2]) if may(b, i, j)]
                if keys:
                    weights = torch.softmax((k[b, h, keys] @ q[b, h, i]) / q.shape[3] ** 0.5, 0)
                    out[b, h, i] = weights @ v[b, h, keys]
    return out


@given(
    data=st.data(), sparsity=sparsities(), length=st.integers(1, 150), padded=st.booleans(), looks_back=st.booleans()
)
@settings(max_examples=60, **SETTINGS)
def test_sparse_attention_equals_dense_attention_under_the_patterns_mask(data, sparsity, length, padded, looks_back):
    generator = seeded(length)
    q, k, v = (torch.randn(2, 2, length, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = Mask(keys=torch.rand(2, length, generator=generator) > 0.3) if padded else Mask()
    mask = mask & causal() if looks_back else mask
    before = None
    if data.draw(st.booleans()):
        before = tuple(torch.randn(1, 2, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = DenseAttention()(q, k, v, AttentionArgs(mask & sparsity.pattern, before=before))
    with torch.no_grad():
        assert (
            float((sparse_attention(q, k, v, sparsity, AttentionArgs(mask, before=before)) - wanted).abs().max())
            <= 1e-12
        )
    q.requires_grad_()
    assert (
        float((sparse_attention(q, k, v, sparsity, AttentionArgs(mask, before=before)) - wanted).detach().abs().max())
        <= 1e-12
    )


RULES = {
    "local": (local(3), lambda i, j: abs(i - j) < 3),
    "local causal": (local(3, causal=True), lambda i, j: i - 3 < j <= i),
    "strided": (strided(4), lambda i, j: (i - j) % 4 == 0),
    "strided causal": (strided(4, causal=True), lambda i, j: j <= i and (i - j) % 4 == 0),
    "merged": (local(3) | strided(4), lambda i, j: abs(i - j) < 3 or (i - j) % 4 == 0),
    "fixed": (fixed(5, 2, group=1), lambda i, j: i // 5 == j // 5 or j % 5 in (1, 2)),
    "fixed causal": (fixed(5, 2, causal=True), lambda i, j: j <= i and (i // 5 == j // 5 or j % 5 in (3, 4))),
    "window": (windowed(2, 1), lambda i, j: abs(i - j) <= 2 or i < 1 or j < 1),
}


@pytest.mark.parametrize("name", RULES)
def test_a_pattern_is_what_its_formula_says(name):
    sparsity, rule = RULES[name]
    q, k, v = (torch.randn(1, 1, 17, 3, generator=seeded(9), dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        assert relative(sparse_attention(q, k, v, sparsity), by_loops(q, k, v, lambda _, i, j: rule(i, j))) <= 1e-12


@pytest.mark.parametrize("sparsity", [local(8) | strided(8), fixed(8, 2), windowed(4, 2)])
def test_gradients_of_sparse_attention_are_those_of_dense(sparsity):
    inputs = [torch.randn(1, 2, 70, 3, generator=seeded(i), dtype=torch.float64).requires_grad_() for i in range(3)]
    weight = torch.randn(1, 2, 70, 3, generator=seeded(8), dtype=torch.float64)
    mine = torch.autograd.grad((sparse_attention(*inputs, sparsity) * weight).sum(), inputs)
    dense = DenseAttention()(*inputs, AttentionArgs(Mask() & sparsity.pattern))
    for a, b in zip(mine, torch.autograd.grad((dense * weight).sum(), inputs), strict=True):
        assert relative(a, b) <= 1e-10


def test_heads_that_take_patterns_by_turns_write_their_own_rows_with_gradients_too():
    core = SparseAttention(local(3), strided(3), windowed(1, 2))
    inputs = [torch.randn(1, 4, 20, 3, generator=seeded(i), dtype=torch.float64).requires_grad_() for i in range(3)]
    mine = core(*inputs, AttentionArgs(Mask()))
    dense = DenseAttention()(*inputs, AttentionArgs(core.under_rule(Mask(), 4)))
    assert relative(mine.detach(), dense.detach()) <= 1e-12
    weight = torch.randn(1, 4, 20, 3, generator=seeded(8), dtype=torch.float64)
    wanted = torch.autograd.grad((dense * weight).sum(), inputs)
    for a, b in zip(torch.autograd.grad((mine * weight).sum(), inputs), wanted, strict=True):
        assert relative(a, b) <= 1e-10


@given(data=st.data(), first=sparsities(), length=st.integers(1, 300), heads=st.integers(1, 3))
@settings(max_examples=15, **SETTINGS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_plain_path_for_every_pattern(data, first, length, heads):
    padded, looks_back, fronted = (data.draw(st.booleans()) for _ in range(3))
    patterns = (first, data.draw(sparsities())) if heads > 1 and data.draw(st.booleans()) else (first,)
    generator = seeded(length)
    q, k, v = (torch.randn(2, heads, length, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = Mask(keys=torch.rand(2, length, generator=generator) > 0.3) if padded else Mask()
    mask = mask & causal() if looks_back else mask
    before = None
    if fronted:
        before = tuple(torch.randn(1, heads, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        wanted = SparseAttention(*patterns)(q, k, v, AttentionArgs(mask, before=before))
        assert float((flex_sparse_attention(q, k, v, patterns, mask, before) - wanted).abs().max()) <= 1e-12


def test_a_block_mask_leaves_out_the_blocks_that_a_pattern_leaves_out():
    device = torch.device("cpu")
    length = 128 * 6
    near = block_mask((local(128, causal=True),), length, 2, Mask(), 0, device).to_dense()[0, 0]
    assert near.tolist() == [[int(row - 1 <= column <= row) for column in range(6)] for row in range(6)]
    window = block_mask((windowed(10, 3),), length, 2, Mask(), 0, device).to_dense()[0, 0]
    assert window.tolist() == [
        [int(abs(row - column) <= 1 or 0 in (row, column)) for column in range(6)] for row in range(6)
    ]


def test_flex_attention_is_for_cuda_tensors_only():
    x = torch.zeros(1, 1, 4, 64)
    assert not flex.serves(x, x, 0.0)


def test_no_tensor_of_all_pairs_is_made():
    """Peak of the tensors that are alive, by torch's own counting of what each operation gives."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, Tensor):
                    self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
            return out

    length = 4096
    q, k, v = (torch.randn(1, 1, length, 8, generator=seeded(i)) for i in range(3))
    for sparsity in (local(64) | strided(64), fixed(64, 4), windowed(32, 4)):
        with torch.no_grad(), Largest() as seen:
            sparse_attention(q, k, v, sparsity)
        assert seen.numel <= length * 512, sparsity.pattern.name


@pytest.mark.parametrize("mix", ["merged", "heads", "layers"])
def test_strided_attention_in_a_model_is_the_dense_model_under_its_mask(mix):
    model = bert(max_positions=40)
    zoo.apply(model, zoo.StridedAttention(stride=3, mix=mix))
    ids = torch.randint(1, 19, (2, 30), generator=seeded())
    with torch.no_grad():
        fast, written_out = model(ids), model(ids, output_attentions=True)
    assert relative(fast.last_hidden_state, written_out.last_hidden_state) <= 1e-12
    distance = (torch.arange(30)[:, None] - torch.arange(30)).abs()
    near, far = distance < 3, distance % 3 == 0
    for layer, maps in enumerate(written_out.attentions):
        for head in range(2):
            turn = {"merged": near | far, "heads": (near, far)[head % 2], "layers": (near, far)[layer % 2]}[mix]
            assert torch.equal(maps[0, head] > 0, turn)


# -- adaptive spans ----------------------------------------------------------------------------------------------------


@given(
    limit=st.integers(1, 20),
    ramp=st.integers(1, 6),
    z=st.floats(0, 1),
    length=st.integers(1, 90),
    positions=st.booleans(),
)
@settings(max_examples=30, **SETTINGS)
def test_cutting_far_keys_changes_what_1e_8_changes(limit, ramp, z, length, positions):
    core = SpanCore(AttentionSpan(2, limit, ramp), 3 if positions else None).double()
    with torch.no_grad():
        core.span.fraction.copy_(torch.tensor([z, z / 2]))
        if core.key_positions is not None:
            core.key_positions.normal_(0, 0.3, generator=seeded(1))
        q, k, v = (0.3 * torch.randn(1, 2, length, 3, generator=seeded(i), dtype=torch.float64) for i in range(3))
        near = core.near(q, k, v, AttentionArgs(Mask()), max(core.span.max_span, 1))
        distance = (torch.arange(length)[:, None] - torch.arange(length))[None]
        add = None if core.key_positions is None else core.relative(q, distance)
        weight = core.weight(distance)
        whole, _ = core.attended(q, k, v, None, add, weight, 0.0)
    assert float((near - whole).abs().max()) <= 1e-5


def test_heads_of_short_spans_cost_less_beside_a_long_one():
    core = SpanCore(AttentionSpan(4, 512, 8))
    with torch.no_grad():
        core.span.fraction.copy_(torch.tensor([1.0, 0.05, 0.0, 0.06]))
    assert core.groups(1024) == {1024: [0], 39: [1, 3], 8: [2]}
    q, k, v = (torch.randn(1, 4, 1024, 8, generator=seeded(i)) for i in range(3))
    with torch.no_grad(), FlopCounterMode(display=False) as mixed:
        found = core(q, k, v, AttentionArgs(Mask()))
        distance = (torch.arange(1024)[:, None] - torch.arange(1024))[None]
        whole, _ = core.attended(q, k, v, None, None, core.weight(distance), 0.0)
    assert relative(found, whole) <= 1e-5
    with torch.no_grad(), FlopCounterMode(display=False) as everything_met:
        core.attended(q, k, v, None, None, core.weight(distance), 0.0)
    assert mixed.get_total_flops() - everything_met.get_total_flops() < 0.4 * everything_met.get_total_flops()


def test_spans_move_with_the_loss_and_are_clamped():
    model = bert()
    zoo.apply(model, zoo.AdaptiveSpan(limit=4, ramp=2, start=0.5, coefficient=0.1))
    span_loss(model).backward()
    for span in spans_of(model):
        assert torch.allclose(span.fraction.grad, torch.full_like(span.fraction, 0.1 * 4 / 2))
        with torch.no_grad():
            span.fraction.add_(torch.tensor([2.0, -3.0]))
    clamp_spans(model)
    assert all(span.fraction.tolist() == [1.0, 0.0] for span in spans_of(model))
