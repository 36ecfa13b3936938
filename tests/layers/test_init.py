"""How random weights are drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.layers.init import initialise, shapes_only


def built() -> nn.Module:
    """Parts as every model starts: shapes without numbers, then whatever the memory held."""
    with shapes_only():
        parts = nn.Sequential(
            nn.Conv2d(8, 64, 5),
            nn.BatchNorm2d(64),
            nn.Conv1d(6, 40, 3, groups=2),
            nn.GroupNorm(4, 40),
            nn.BatchNorm1d(5, affine=False),
            nn.Linear(30, 50),
        )
    parts.to_empty(device="cpu")
    for tensor in (*parts.parameters(), *parts.buffers()):
        tensor.detach().fill_(7)
    return parts


def test_convolutions_are_drawn_for_what_an_output_sums_and_batch_norms_have_seen_nothing():
    image, norm, sound, groups, plain, linear = parts = built()
    initialise(parts, 0.02, torch.Generator().manual_seed(0))
    for convolution, sums in ((image, 8 * 5 * 5), (sound, 3 * 3)):
        wanted = (2 / sums) ** 0.5
        assert 0.82 * wanted < float(convolution.weight.std()) < 0.94 * wanted  # a normal cut at two deviations
        assert float(convolution.weight.abs().max()) <= 2 * wanted
        assert not convolution.bias.any()
    assert float(linear.weight.abs().max()) <= 0.04
    for part in (norm, groups):
        assert (part.weight == 1).all()
        assert not part.bias.any()
    for part in (norm, plain):
        assert not part.running_mean.any()
        assert (part.running_var == 1).all()
        assert part.num_batches_tracked == 0
    again = built()
    initialise(again, 0.02, torch.Generator().manual_seed(0))
    assert torch.equal(image.weight, again[0].weight)


def test_a_part_that_says_nothing_of_its_parameters_is_refused():
    with pytest.raises(NotImplementedError, match="MultiheadAttention"):
        initialise(nn.MultiheadAttention(4, 2), 0.02)
