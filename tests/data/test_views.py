"""Random views of pictures: colors against colorsys, the blur against a sum over pixels, and what is drawn."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch

from zoo.data.images.views import (
    MOCO_V1,
    MOCO_V2,
    SIMCLR,
    Augmentation,
    Views,
    blurred,
    crop_box,
    jittered,
    turned,
    view,
)
from zoo.errors import ConfigError, InputError

PLAIN = {"flip": 0.0, "jitter_share": 0.0, "gray": 0.0, "blur": 0.0}


def picture(height: int = 12, width: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("turn", [0.0, 0.2, -0.45])
def test_hue_is_turned_as_colorsys_turns_it(turn):
    x = picture(4, 5)
    x[:, 0, 0] = 0.3  # gray, which has no hue
    found = turned(x, turn)
    for row in range(4):
        for column in range(5):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[:, row, column].tolist())
            wanted = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            assert found[:, row, column].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("which", range(3))
def test_brightness_contrast_and_saturation_mix_with_black_and_gray(which):
    x = picture(3, 4)
    jitter = [0.0] * 4
    jitter[which] = 0.6
    found = jittered(x, jitter, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    factor = 1.0
    for place in range(which + 1):
        factor = 1 - jitter[place] + 2 * jitter[place] * float(torch.rand((), generator=generator))
    light = [
        [0.2989 * r + 0.587 * g + 0.114 * b for r, g, b in zip(*rows, strict=True)]
        for rows in zip(*x.tolist(), strict=True)
    ]
    mean = sum(map(sum, light)) / 12
    for channel in range(3):
        for row in range(3):
            for column in range(4):
                other = (0.0, mean, light[row][column])[which]
                wanted = factor * float(x[channel, row, column]) + (1 - factor) * other
                assert float(found[channel, row, column]) == pytest.approx(min(1.0, max(0.0, wanted)), abs=1e-6)


def test_the_blur_is_a_gaussian_mean_over_mirrored_pixels():
    x, sigma = picture(6, 5), 1.3
    found = blurred(x, sigma, 5)
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-2, 3)]
    total = sum(weights)

    def inside(place: int, size: int) -> int:
        place = abs(place)
        return 2 * (size - 1) - place if place >= size else place

    for row, column in ((0, 0), (3, 2), (5, 4)):
        wanted = sum(
            weights[i] * weights[j] / total**2 * float(x[1, inside(row + i - 2, 6), inside(column + j - 2, 5)])
            for i in range(5)
            for j in range(5)
        )
        assert float(found[1, row, column]) == pytest.approx(wanted, abs=1e-12)


def test_crops_lie_inside_and_have_the_area_and_shape_that_were_asked_for():
    generator, a = torch.Generator().manual_seed(0), Augmentation(area=(0.2, 0.5), ratio=(0.5, 2.0))
    for _ in range(200):
        top, left, height, width = crop_box(60, 90, a, generator)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 90 - width
        assert 0.18 < height * width / 5400 < 0.52
        assert 0.47 < width / height < 2.1
    assert crop_box(2, 900, Augmentation(area=(1.0, 1.0)), generator) == (0, 448, 2, 3)  # none of ten draws fits


def test_two_views_differ_and_a_seed_repeats_them():
    pictures = [(255 * picture(seed=seed)).to(torch.uint8) for seed in (0, 1)]
    collate = Views(Augmentation(size=8, jitter=(0.4, 0.4, 0.4, 0.1)))
    one, again = (collate(pictures, torch.Generator().manual_seed(3))["pixel_values"] for _ in range(2))
    assert one.shape == (2, 2, 3, 8, 8)
    assert torch.equal(one, again)
    assert not torch.equal(one[:, 0], one[:, 1])
    assert not torch.equal(one, collate(pictures, torch.Generator().manual_seed(4))["pixel_values"])


def test_shares_of_one_and_zero_are_certain():
    x = picture().float()
    whole = Augmentation(size=9, area=(1.0, 1.0), ratio=(0.75, 0.75), **PLAIN)
    plain = view(x, whole)
    assert torch.allclose(
        view(x, Augmentation(size=9, area=(1.0, 1.0), ratio=(0.75, 0.75), **{**PLAIN, "flip": 1.0})), plain.flip(2)
    )
    colorless = view(x, Augmentation(size=9, area=(1.0, 1.0), ratio=(0.75, 0.75), **{**PLAIN, "gray": 1.0}))
    assert torch.equal(colorless[0], colorless[2])
    scaled = view(
        x, Augmentation(size=9, area=(1.0, 1.0), ratio=(0.75, 0.75), mean=(0.5,) * 3, std=(0.25,) * 3, **PLAIN)
    )
    assert torch.allclose(scaled, (plain - 0.5) / 0.25)


def test_the_recipes_are_those_of_the_papers():
    assert (SIMCLR.jitter, SIMCLR.blur, SIMCLR.mean) == ((0.8, 0.8, 0.8, 0.2), 0.5, (0.0, 0.0, 0.0))
    assert (MOCO_V1.area, MOCO_V1.jitter, MOCO_V1.jitter_share, MOCO_V1.blur) == ((0.2, 1.0), (0.4,) * 4, 1.0, 0.0)
    assert (MOCO_V2.jitter, MOCO_V2.jitter_share, MOCO_V2.blur) == ((0.4, 0.4, 0.4, 0.1), 0.8, 0.5)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"flip": 1.5}, {"area": (0.5, 0.2)}, {"area": (0.5, 2.0)}, {"jitter": (0, 0, 0, 0.6)}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_no_pictures_are_refused():
    with pytest.raises(InputError, match="at least one"):
        Views()([])
