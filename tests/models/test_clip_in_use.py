"""CLIP as it is used: optimized, exported, with LoRA and int8 on both towers, in float16, and from an archive like
OpenAI's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests import oracle
from tests.strategies import randomised, relative
from zoo.inference.int8 import Int8Linear
from zoo.inference.prepared import PreparedLinear
from zoo.models.clip import Clip, ClipConfig
from zoo.models.clip_resnet import ClipResNet, ClipResNetConfig
from zoo.techniques.lora.technique import merge

TEXT = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
TEXT |= {"max_positions": 9, "projection_size": 8}
CONFIG = ClipConfig(
    **TEXT,
    image_size=12,
    patch_size=4,
    image_hidden_size=24,
    image_num_layers=2,
    image_num_heads=3,
    image_intermediate_size=32,
)
RESNET = ClipResNetConfig(
    **TEXT, image_size=32, image_stem_channels=2, image_stage_blocks=(1, 1, 1, 1), image_num_heads=2
)
IDS = torch.tensor([[38, 3, 4, 39, 0, 0], [38, 39, 0, 0, 0, 0], [38, 7, 9, 8, 7, 39]])
TOWERS = ("text", "image")


def made(config: Any = CONFIG) -> Any:
    model = (Clip if isinstance(config, ClipConfig) else ClipResNet)(config)
    return randomised(model, 3, 0.3).eval()


def pixels(model: Any, rows: int = 2) -> Tensor:
    size = model.config.image_size
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(0))


def run(model: Any) -> dict[str, Tensor]:
    """The features of both towers, and the logits."""
    with torch.no_grad():
        out = model(IDS, pixel_values=pixels(model))
    return {"text": out.text_embeds, "image": out.image_embeds, "logits": out.logits_per_image}


def off(model: Any, before: dict[str, Tensor]) -> dict[str, float]:
    """How far a model's results are from others', by their norm."""
    return {name: relative(value.double(), before[name].double()) for name, value in run(model).items()}


def linears(tower: nn.Module) -> int:
    return sum(type(part) is nn.Linear for part in tower.modules())


@pytest.mark.parametrize("config", [CONFIG, RESNET], ids=["vit", "resnet"])
def test_both_towers_are_optimized_and_give_what_they_gave(config):
    model = made(config)
    before = run(model)
    fast = zoo.optimize(model)
    assert max(off(fast, before).values()) < 1e-4
    for tower in TOWERS:
        prepared = sum(isinstance(part, PreparedLinear) for part in getattr(fast, tower).modules())
        assert prepared == (12 if config is CONFIG or tower == "text" else 4), tower
    rounded = off(zoo.optimize(model, "int8"), before)
    assert 0 < rounded["text"] < 0.1
    assert 0 < rounded["image"] < 0.1


def test_an_exported_model_reads_batches_of_another_size(tmp_path):
    model = made()
    report = zoo.export(model, tmp_path / "clip.pt2")
    assert report["inputs"] == ["input_ids", "attention_mask", "pixel_values"]
    assert {"text_embeds", "image_embeds", "logits_per_image"} <= set(report["outputs"])
    program = torch.export.load(tmp_path / "clip.pt2").module()
    mask, pictures = (IDS != 0).long(), pixels(model, 3)
    with torch.no_grad():
        given, out = program(IDS, mask, pictures), model(IDS, mask, pixel_values=pictures)
    for name in ("text_embeds", "image_embeds", "logits_per_image"):
        assert relative(given[name], out[name]) < 1e-5, name


def test_lora_trains_both_towers_and_merges_into_what_it_gave():
    model = made()
    before = run(model)
    zoo.apply(model, zoo.LoRA(rank=2), generator=torch.Generator().manual_seed(1))
    assert max(off(model, before).values()) < 1e-6, "it starts as nothing"
    added = {name: p for name, p in model.named_parameters() if "lora" in name.lower()}
    assert {name.partition(".")[0] for name in added} == set(TOWERS)
    with torch.no_grad():
        for parameter in added.values():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    tuned = run(model)
    changed = off(model, before)
    assert min(changed["text"], changed["image"]) > 1e-3
    model(IDS, pixel_values=pixels(model, 3)).logits_per_image.sum().backward()
    assert all(p.grad is not None for p in added.values())
    merge(model)
    assert max(off(model, tuned).values()) < 1e-5


def test_int8_stores_both_towers_in_bytes_and_stays_near(tmp_path):
    model = made()
    before, layers = run(model), {tower: linears(getattr(model, tower)) for tower in TOWERS}
    zoo.apply(model, zoo.Int8())
    for tower in TOWERS:
        found = sum(isinstance(part, Int8Linear) for part in getattr(model, tower).modules())
        assert found == layers[tower] == 12, tower
    assert 0 < max(off(model, before).values()) < 0.2
    after, loaded = run(model), zoo.load(zoo.save(model, tmp_path))
    assert all(torch.equal(value, after[name]) for name, value in run(loaded).items())


# -- OpenAI's files: float16, in a TorchScript archive ----------------------------------------------------------------


def nested(tensors: dict[str, Tensor]) -> nn.Module:
    """A module whose state_dict is this."""
    root = nn.Module()
    for name, tensor in tensors.items():
        part, *rest = root, *name.split(".")
        for step in rest[:-1]:
            if step not in dict(part.named_children()):
                part.add_module(step, nn.Module())
            part = part.get_submodule(step)
        part.register_buffer(rest[-1], tensor)
    return root


def archive(model: Any, layout: str, folder: Path) -> Path:
    """OpenAI's archive of a model: matrices in float16, norms in float32, and three numbers beside them."""
    theirs = oracle.way_back(layout, model, dict(model.state_dict()))
    stored = {name: tensor.half() if keeps_half(name) else tensor for name, tensor in theirs.items()}
    numbers = {"input_resolution": model.config.image_size, "context_length": 9, "vocab_size": 40}
    stored |= {name: torch.tensor(number) for name, number in numbers.items()}
    torch.jit.script(nested(stored)).save(str(folder / "model.pt"))
    return folder / "model.pt"


def keeps_half(name: str) -> bool:
    return not any(part in name for part in ("ln_", ".bn", "downsample.1", "embedding", "logit_scale"))


@pytest.mark.parametrize(
    ("config", "layout"), [(CONFIG, "openai-clip"), (RESNET, "openai-clip-resnet")], ids=["vit", "resnet"]
)
def test_an_archive_like_openais_is_read_without_running_it(config, layout, tmp_path):
    model = made(config)
    heads = {"transformer_heads": 2, "vision_heads": 3 if config is CONFIG else 2}
    loaded = zoo.load(archive(model, layout, tmp_path), config=heads, dtype=torch.float32)
    assert loaded.load_report.layout == layout
    assert loaded.config == config
    assert not loaded.load_report.random
    halves = {name: (a, b) for name, a in model.state_dict().items() if not a.equal(b := loaded.state_dict()[name])}
    assert halves, "what float16 rounds"
    assert all(torch.equal(b, a.half().float()) for a, b in halves.values())
    assert not any("norm" in name for name in halves)
    assert max(off(loaded, run(model)).values()) < 0.01


def test_a_file_in_float16_loads_as_it_is_and_computes_in_float16(tmp_path):
    model = made()
    before = run(model)
    zoo.save(model.half(), tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.dtype == torch.float16
    assert max(off(loaded, before).values()) < 0.02
