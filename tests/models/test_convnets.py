"""Convolutional towers against transformers and torchvision, in float64, and against loops where nobody has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tests import oracle
from tests.families import efficientnet
from tests.strategies import ACTIVATIONS, build, examples, randomised, relative, small_config
from zoo.errors import ConfigError, InputError
from zoo.layers.convolution import ConvStyle, behind, padded, same
from zoo.layers.init import initialise
from zoo.maps import layouts
from zoo.models.efficientnet import EfficientNetConfig
from zoo.models.resnet import AveragingShortcut, ResidualPlan, ResNetConfig, SelectiveKernels, Stem
from zoo.tasks.base import canonical_state

TOLERANCE = 1e-9
SETTINGS = {"deadline": None, "derandomize": True}


def agree(mine: Tensor, theirs: Tensor, what: str) -> None:
    error = relative(mine, theirs)
    assert error <= TOLERANCE, f"{what} differs by {error:.2e}"


@torch.no_grad()
def seen(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as if they had seen pictures: other statistics than those at the start."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
    return model.eval()


def rows(grid: Tensor) -> Tensor:
    return grid.flatten(2).mT


# -- EfficientNet beside transformers ----------------------------------------------------------------------------------


def as_transformers_can(draw: st.DrawFn) -> EfficientNetConfig:
    """A config that its class can say: a stem of 32 and a top of 1280 channels before the factor."""
    unit, factor = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([0.05, 0.1]))
    top = max(unit, int(1280 * factor + unit / 2) // unit * unit)
    fixed = {"stem_channels": 32, "fixed_ends": False, "padding": "fixed", "first_residual": False, "top_size": top}
    drawn = efficientnet.tiny_config(draw).to_dict() | {"width_multiplier": factor, "channel_multiple": unit}
    drawn |= {
        "squeeze_ratio": draw(st.sampled_from([0.25, 0.6])),
        "symmetric_blocks": draw(st.sampled_from([(), (1,)])),
    }
    drawn |= {"activation": draw(st.sampled_from([a for a in ACTIVATIONS if a != "tanh"]))}
    return EfficientNetConfig(**drawn | fixed)


def theirs_for(config: Any, class_name: str, **options: Any) -> nn.Module:
    keymap = layouts.load("hf-efficientnet")
    foreign = keymap.config_back(config.to_dict(), keymap.architectures[class_name])
    cls = getattr(transformers, class_name)
    return cls(cls.config_class.from_dict({**foreign, **options})).double().eval()


@given(data=st.data())
@settings(max_examples=examples(25), **SETTINGS)
def test_efficientnet_is_transformers_efficientnet(data):
    config = data.draw(st.composite(as_transformers_can)())
    ours = seen(build("efficientnet", config))
    theirs = theirs_for(config, "EfficientNetModel")
    missing, extra = theirs.load_state_dict(oracle.way_back("hf-efficientnet", ours), strict=False)
    assert not extra
    assert all(name.endswith("num_batches_tracked") for name in missing)
    pixels = data.draw(st.composite(efficientnet.pictures)(config))
    with torch.no_grad():
        mine, reference = (model(pixels, output_hidden_states=True) for model in (ours, theirs))
    agree(mine.last_hidden_state, rows(reference.last_hidden_state), "last_hidden_state")
    agree(mine.pooler_output, reference.pooler_output, "pooler_output")
    for depth, (a, b) in enumerate(zip(mine.hidden_states, reference.hidden_states, strict=True)):
        agree(a, rows(b), f"hidden_states[{depth}]")


def test_its_classifier_loads_from_transformers_with_its_labels_and_gives_the_same_loss_and_gradients():
    config = EfficientNetConfig(
        **efficientnet.SMALL | {"stem_channels": 32, "top_size": 640, "padding": "fixed", "first_residual": False}
    )
    labels = {"id2label": {0: "cat", 1: "dog", 2: "cup"}, "label2id": {"cat": 0, "dog": 1, "cup": 2}}
    theirs = seen(randomised(theirs_for(config, "EfficientNetForImageClassification", **labels)))
    foreign = {**theirs.config.to_dict(), "model_type": "efficientnet"}
    ours = zoo.load(theirs.state_dict(), config=foreign)
    assert ours.task == "image-classification"
    assert ours.options["labels"] == ["cat", "dog", "cup"]
    pixels, wanted = efficientnet.small_batch().inputs["pixel_values"], torch.tensor([0, 2, 1, 1])
    mine, reference = ours(pixels, labels=wanted), theirs(pixels, labels=wanted)
    agree(mine.logits.detach(), reference.logits.detach(), "logits")
    agree(mine.loss.detach(), reference.loss.detach(), "loss")
    mine.loss.backward()
    reference.loss.backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in ours.named_parameters()}
    statistics = {name: x for name, x in canonical_state(ours).items() if "running" in name}
    found = oracle.way_back("hf-efficientnet", ours, gradients | statistics)
    for name, parameter in theirs.named_parameters():
        agree(found[name], parameter.grad, name)


@pytest.mark.parametrize("name", [f"efficientnet-b{n}" for n in range(8)])
def test_the_published_lists_of_evenly_padded_blocks_follow_from_tensorflows_rule(name):
    config, size, even = zoo.config(f"{name}.google"), -(-zoo.config(name).image_size // 2), []
    for number, block in enumerate(config.plan):
        if block.stride == 2:
            if same(size, block.kernel, 2) != behind(size, block.kernel, 2):
                even.append(number)
            size = -(-size // 2)
    assert config.symmetric_blocks == tuple(even)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(n, k, s) for n in (5, 6, 9) for k in (3, 5) for s in (1, 2)])
def test_same_padding_gives_as_many_results_as_strides_fit_with_the_odd_row_at_the_end(size, kernel, stride):
    x = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    grid = padded(x, kernel, stride, same)
    before, after = same(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert F.avg_pool2d(grid, kernel, stride).shape[2:] == (math.ceil(size / stride),) * 2
    assert torch.equal(grid[0, 0, before : before + size, before : before + size], x[0, 0])


def test_a_picture_that_is_too_small_is_refused_and_one_cell_is_enough_for_same_padding():
    fixed = EfficientNetConfig(**efficientnet.SMALL | {"padding": "fixed"})
    with pytest.raises(InputError, match=r"a grid of 1 x 1 cells is too small"):
        build("efficientnet", fixed)(torch.zeros(1, 3, 1, 1))
    out = build("efficientnet", fixed.replace(padding="same"))(torch.zeros(1, 3, 1, 1))
    assert out.last_hidden_state.shape == (1, 1, 10)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stage_kernels": (3,)}, r"stage_channels 7, .*stage_kernels 1"),
        ({"stage_kernels": (3, 3, 4, 3, 5, 5, 3)}, "must be odd"),
        ({"stage_strides": (1, 2, 3, 2, 1, 2, 1)}, "must be 1 or 2"),
        ({"symmetric_blocks": (1,)}, 'go with padding="fixed"'),
        ({"width_multiplier": 0.0}, "must be above 0"),
        ({"squeeze_ratio": 1.5}, r"squeeze_ratio=1.5 lie in \[0, 1\]"),
        ({"stage_blocks": (0, 2, 2, 3, 3, 4, 1)}, "must all be at least 1"),
        ({"depth_multiplier": 1e6}, "more than the 10,000"),
    ],
)
def test_a_config_of_efficientnet_that_contradicts_itself_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        EfficientNetConfig(**fields)


def test_in_training_some_pictures_skip_a_block_and_on_average_nothing_changes():
    config = EfficientNetConfig(**efficientnet.SMALL | {"path_dropout": 0.9, "dropout": 0.0})
    block = build("efficientnet", config).encoder.blocks[-1].train()
    y = torch.ones(4000, 2, 1, 1)
    skipped = block.skipped(y)
    kept = 1 - 0.9 * 2 / 3  # the last of three blocks
    assert sorted(set(skipped[:, 0, 0, 0].tolist())) == pytest.approx([0, 1 / kept])
    assert torch.equal(skipped[:, 0], skipped[:, 1])
    assert abs(float(skipped.mean()) - 1) < 0.1
    assert torch.equal(block.eval().skipped(y), y)


# -- ResNet beside torchvision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnet_is_torchvisions_resnet(depth):
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5)
    if depth > 50:  # two blocks of each stage do as well
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            setattr(theirs, stage, getattr(theirs, stage)[:2])
    theirs = seen(randomised(theirs.double(), scale=0.1))
    layers = [len(getattr(theirs, f"layer{stage}")) for stage in (1, 2, 3, 4)]
    ours = zoo.load(theirs.state_dict(), config={"layers": layers}, task="image-classification")
    assert not ours.load_report.random
    pixels = torch.randn(2, 3, 45, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        agree(ours(pixels).logits, theirs(pixels), "logits")
    back = oracle.way_back("torchvision-resnet", ours)
    assert all(torch.equal(back[name], x) for name, x in theirs.state_dict().items() if "num_batches" not in name)


def test_mocos_files_give_the_query_encoder():
    torchvision = pytest.importorskip("torchvision")
    query, key = (seen(randomised(torchvision.models.resnet18(num_classes=4), seed)) for seed in (1, 2))
    file = {f"module.encoder_q.{name}": x for name, x in query.state_dict().items()}
    file |= {f"module.encoder_k.{name}": x for name, x in key.state_dict().items()}
    file |= {"module.queue": torch.randn(4, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    ours = zoo.load(file, config={"layers": [2, 2, 2, 2]})
    assert ours.load_report.layout == "moco"
    query.fc = nn.Identity()
    pixels = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels).pooler_output, query(pixels))


# -- SimCLR's parts, as loops ------------------------------------------------------------------------------------------

STYLE = ConvStyle()


def made(part: nn.Module, seed: int) -> Any:
    initialise(part, 0.02)
    return seen(randomised(part.double(), seed), seed)


def normed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm in eval mode, channel by channel."""
    channels = []
    for c in range(x.shape[1]):
        scale = norm.weight[c] / (norm.running_var[c] + norm.eps).sqrt()
        channels.append((x[:, c] - norm.running_mean[c]) * scale + norm.bias[c])
    return torch.stack(channels, 1)


@torch.no_grad()
def test_selective_kernels_are_a_mixture_of_two_convolutions_by_shares_of_the_whole_picture():
    part = made(SelectiveKernels(3, 2, STYLE, 2, 0.0625), 1)
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = normed(part.norm, F.conv2d(F.pad(x, (1, 1, 1, 1)), part.conv.weight, stride=2)).clamp(min=0)
    first, second = both[:, :2], both[:, 2:]
    assert part.reduce.conv.weight.shape == (32, 2, 1, 1)
    wanted = torch.empty_like(first)
    for row in range(2):
        mean = (first[row] + second[row]).mean((1, 2))
        middle = normed(part.reduce.norm, (part.reduce.conv.weight[:, :, 0, 0] @ mean)[None, :, None, None]).clamp(
            min=0
        )
        scores = part.choose.weight[:, :, 0, 0] @ middle.flatten()
        for c in range(2):
            a, b = scores[c].exp(), scores[2 + c].exp()
            wanted[row, c] = (a * first[row, c] + b * second[row, c]) / (a + b)
    agree(part(x), wanted, "the mixture")


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_the_averaging_shortcut_counts_zeros_at_the_border_only_with_a_stride(stride):
    part = made(AveragingShortcut(ResidualPlan(2, 1, 3, stride, True), STYLE), 2)
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = [math.ceil(n / stride) for n in x.shape[2:]]
    mean = torch.zeros(1, 2, *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            window = x[:, :, stride * i : stride * i + 2, stride * j : stride * j + 2]
            mean[:, :, i, j] = window.sum((2, 3)) / (4 if stride == 2 else window[0, 0].numel())
    agree(part(x), normed(part.norm, F.conv2d(mean, part.conv.weight)), "the shortcut")


@pytest.mark.parametrize("padding", ["even", "same"])
@torch.no_grad()
def test_the_pooling_of_the_stem_pads_on_both_sides_or_at_the_end(padding):
    config = ResNetConfig(stem_channels=2, pool_padding=padding)
    stem = made(Stem(config, STYLE), 3)
    x = torch.randn(1, 3, 16, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = stem.layers(x)  # an even size
    wanted = torch.empty(1, 2, y.shape[2] // 2, -(-y.shape[3] // 2), dtype=torch.float64)
    for i in range(wanted.shape[2]):
        for j in range(wanted.shape[3]):
            start = [
                2 * n - (1 if padding == "even" or size % 2 else 0) for n, size in ((i, y.shape[2]), (j, y.shape[3]))
            ]
            window = y[:, :, max(start[0], 0) : start[0] + 3, max(start[1], 0) : start[1] + 3]
            wanted[:, :, i, j] = window.amax((2, 3))
    agree(stem(x), wanted, "the stem")


def test_tensorflows_numbers_count_the_parts_in_the_order_of_the_authors_code():
    """The first blocks of ResNet-50, written down by hand from the code that makes them."""
    config = zoo.config("simclr-v2-r50-1x-sk").to_dict()
    plan = layouts.load("tf-simclr").back(canonical_state(zoo.create("simclr-v2-r50-1x-sk", device="meta")), config)
    named = {step.sources[0]: step.targets[0] for step in plan.steps}
    block = "encoder.blocks.0"
    in_order = ["stem.layers.0.conv", "stem.layers.1.conv", "stem.layers.2.conv", f"{block}.shortcut.conv"]
    in_order += [f"{block}.layers.0.conv", f"{block}.layers.1.conv", f"{block}.layers.1.reduce.conv"]
    in_order += [f"{block}.layers.1.choose", f"{block}.layers.2.conv", "encoder.blocks.1.layers.0.conv"]
    for number, name in enumerate(in_order):
        assert named[f"{name}.weight"] == f"base_model/conv2d{f'_{number}' if number else ''}/kernel"
    norms = [name.replace("conv", "norm") for name in in_order if not name.endswith("choose")]
    for number, name in enumerate(norms):
        assert (
            named[f"{name}.running_var"]
            == f"base_model/batch_normalization{f'_{number}' if number else ''}/moving_variance"
        )
    plain = zoo.config("simclr-r50-1x").to_dict()
    last = layouts.load("tf-simclr").back(canonical_state(zoo.create("simclr-r50-1x", device="meta")), plain)
    assert len([step for step in last.steps if step.targets[0].endswith("kernel")]) == 53


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stage_blocks": (1, 2)}, "stage_channels has 4, stage_blocks 2"),
        ({"bottleneck": False, "selective_ratio": 0.0625}, "0 unless bottleneck=True"),
        ({"stage_blocks": (9000, 9000, 1, 1)}, "more than the 10,000"),
        ({"stage_channels": (64, 0, 1, 1)}, "must all be at least 1"),
    ],
)
def test_a_config_of_resnet_that_contradicts_itself_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        ResNetConfig(**fields)


@pytest.mark.parametrize("name", ["efficientnet", "resnet"])
def test_a_tower_exports_for_any_batch_and_size(name):
    one = {"stage_channels": (4,), "stage_blocks": (1,), "stage_kernels": (3,), "stage_strides": (2,)}
    config = small_config(name, **one, stage_expansions=(1,))
    model, pixels = build(name, config), efficientnet.small_batch().inputs["pixel_values"]
    dims = {0: torch.export.Dim("rows", min=2, max=64), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(model, (pixels,), dynamic_shapes={"pixel_values": dims}).module()
    for other in (pixels, torch.randn(3, 3, 18, 22, dtype=torch.float64)):
        with torch.no_grad():
            agree(program(other).pooler_output, model(other).pooler_output, "pooler_output")


def test_a_loaded_model_for_another_picture_size_wants_its_pictures_so(tmp_path):
    model = build("efficientnet", small_config("efficientnet"))
    zoo.save(model, tmp_path, images=zoo.Images(size=20, crop=14))
    assert zoo.load(tmp_path, image_size=28).images.crop == (28, 28)
    assert zoo.load(tmp_path, image_size=14).images.crop == (14, 14)
