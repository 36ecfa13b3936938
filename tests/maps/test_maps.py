"""Every layout that has a map, over the configuration space of the families it is for: the way
there and back loses no bit and no field.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import strategies
from zoo.checkpoints.files import CONFIG_NAMES
from zoo.errors import CheckpointError, ConfigError
from zoo.formats.memory import DictArchive
from zoo.maps import layouts
from zoo.maps.plans import constant
from zoo.registry import variants as registry

PARTS = {"transe"}  # maps of trainable parts that are no registered models; their own tests hold them both ways
PADDED = {
    "hf-bert-for-k-bert": "embeddings.segment.weight"
}  # the layout lacks this table's first row, which is zeros in what it gives
LAYOUTS = sorted(name for name in layouts.available() if layouts.load(name).family not in PARTS)


def model_of(maps: str, config, heads: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Our tensors of a model with these of its declared heads, every one random."""
    model_class = strategies.model_class(families_of(maps)[0])
    module = torch.nn.Module()
    module.add_module("model", model_class(config))
    module.add_module("heads", torch.nn.ModuleDict({name: model_class.heads[name](config) for name in heads}))
    strategies.randomised(module)
    for buffer in module.buffers():  # stored tables that no one trains (XLM's sinusoids)
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    return {name.removeprefix("model."): tensor for name, tensor in module.state_dict().items()}


def families_of(maps: str) -> list[str]:
    return [name for name, variants in registry.families().items() if variants[0].maps == maps]


def test_every_layout_is_for_a_registered_family():
    for layout in LAYOUTS:
        assert families_of(layouts.load(layout).family), (
            f"{layout} is for {layouts.load(layout).family}, which nobody registers"
        )


def test_the_config_file_that_a_layout_names_is_looked_for_beside_a_checkpoint():
    for layout in LAYOUTS:
        assert layouts.load(layout).recognise.get("config_file", "config.json") in CONFIG_NAMES, layout


def test_a_map_is_read_once_however_many_there_are(monkeypatch):
    for layout in LAYOUTS:
        layouts.load(layout)
    monkeypatch.setattr(layouts, "read_map", lambda path: pytest.fail(f"{path.name} is read again"))
    for layout in LAYOUTS:
        layouts.load(layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_loses_nothing(layout):
    keymap = layouts.load(layout)
    family = families_of(keymap.family)[0]
    fields = strategies.model_class(family).Config.field_names()
    sayable = {
        field: value for field, value in keymap.config.fixed.items() if field in fields
    }  # what the layout always means
    said = 0

    @given(data=st.data())
    @settings(
        max_examples=strategies.examples(12),
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    def over_configs(data):
        nonlocal said
        config = data.draw(strategies.configs(family)).replace(**sayable)
        declared = tuple(h for h in strategies.model_class(family).heads if h in keymap.heads)
        heads = tuple(h for h in declared if data.draw(st.booleans(), label=h))
        ours = model_of(keymap.family, config, heads)
        values = config.to_dict()
        try:
            foreign = keymap.config_back(values, heads)
            plan = keymap.back(DictArchive(ours).tensors, values, heads=heads)
        except ConfigError:
            return  # a config that this layout has no words for
        except CheckpointError as error:
            assert "can't be written in this layout" in str(error)  # noqa: PT017 - a combination of heads that it has no words for
            return
        said += 1
        for name, kind in plan.checks:  # what the layout implies without storing it must be exactly that
            ours[name] = constant(kind, tuple(ours[name].shape), ours[name].dtype)
        if layout in PADDED:
            ours[PADDED[layout]][0] = 0
        theirs = plan.run(ours.__getitem__)
        back_again = keymap.forward(
            DictArchive(theirs).tensors, values, heads=heads, architectures=foreign.get("architectures") or ()
        )
        made = back_again.run(theirs.__getitem__)
        assert made.keys() == ours.keys()
        assert all(torch.equal(made[name], ours[name]) for name in ours)
        second = keymap.back(DictArchive(made).tensors, values, heads=heads).run(made.__getitem__)
        assert second.keys() == theirs.keys()
        assert all(torch.equal(second[name], theirs[name]) for name in theirs)
        understood = {f: v for f, v in keymap.config_forward(foreign, theirs).items() if f not in keymap.config.lost}
        again = type(config).from_dict({**values, **understood})
        unset = {e.field: values[e.none] for e in keymap.config.entries.values() if e.none and values[e.field] is None}
        meant = {f: unset.get(f, getattr(config, f)) for f in understood}
        assert {f: (getattr(again, f), value) for f, value in meant.items() if getattr(again, f) != value} == {}

    over_configs()
    assert said, f"{layout} could say none of the configs that were drawn"
