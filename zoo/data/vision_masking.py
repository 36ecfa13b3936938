"""Masking words and regions as the pre-training of ViLBERT and UNITER does, from given draws, and
the whole-image feature that goes with the one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.data.masking import BERT_SHARES, Shares
from zoo.data.regions.regions import Regions, box_overlap
from zoo.errors import InputError


@dataclass(frozen=True)
class MaskedRegions:
    """``features`` (slots, size) with masked rows at zero; ``labels`` (boxes,) 1 = predict it, -1 =
    don't; ``marked`` (slots,) bool: the chosen regions and those that overlap one.
    """

    features: Tensor
    labels: Tensor
    marked: Tensor


def mask_regions(
    features: Tensor,
    boxes: Tensor,
    draws: Sequence[float] | Tensor | None = None,
    *,
    probability: float = 0.15,
    zero_share: float = 0.9,
    overlap: float = 0.4,
    generator: torch.Generator | None = None,
) -> MaskedRegions:
    """Choose each region with ``probability``; of the chosen ``zero_share`` lose their feature, the
    others keep it; boxes stay.

    features (slots, size), rows behind the boxes are padding; boxes (number, 4) x1, y1, x2, y2 in
    pixels; draws: one uniform number for each box (None: drawn). Overlapping regions are only
    marked: their features stay.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) > len(features):
        raise InputError(
            f"boxes must be (number, 4), at most one for each of {len(features)} features, got {tuple(boxes.shape)}"
        )
    drawn = draws is None
    given = (
        torch.rand(len(boxes), generator=generator, dtype=torch.float64)
        if drawn
        else torch.as_tensor(draws, dtype=torch.float64)
    )
    if given.shape != (len(boxes),):
        raise InputError(f"draws must be one number for each of {len(boxes)} boxes, got {tuple(given.shape)}")
    chosen = given < probability
    slots = torch.zeros(len(features), dtype=torch.bool)
    slots[: len(boxes)] = chosen & (given / probability < zero_share)
    marked = torch.zeros(len(features), dtype=torch.bool)
    marked[: len(boxes)] = (box_overlap(boxes, boxes)[chosen] > overlap).any(0)
    return MaskedRegions(features.masked_fill(slots.unsqueeze(1), 0), torch.where(chosen, 1, -1), marked)


def whole_image_feature(features: Tensor, marked: Tensor) -> Tensor:
    """Of pre-training: the sum over all slots divided by the number of slots that are not marked,
    padding included; (slots, size) -> (size,).
    """
    return features.sum(0) / (~marked).sum().clamp(min=1)


def mask_each_word(
    tokens: Sequence[int],
    draws: Iterable[float],
    random_id: Callable[[], int],
    mask_id: int,
    *,
    probability: float = 0.15,
    ignore: int = -100,
    at_least_one: bool = False,
) -> tuple[list[int], list[int]]:
    """Choose each word with ``probability`` by its own draw; the same draw decides: 80 % the mask,
    10 % a random word, 10 % as it is.

    ``random_id`` is asked only where a random word is needed -> (tokens, labels), labels ``ignore``
    where nothing is predicted. ``at_least_one``: where none was chosen, the first word is masked
    (UNITER).
    """
    masked, labels = list(tokens), [ignore] * len(tokens)
    for place, (token, draw) in enumerate(zip(tokens, draws, strict=True)):
        if draw >= probability:
            continue
        labels[place] = token
        share = draw / probability
        if share < 0.8:
            masked[place] = mask_id
        elif share < 0.9:
            masked[place] = random_id()
    if at_least_one and masked and all(label == ignore for label in labels):
        masked[0], labels[0] = mask_id, tokens[0]
    return masked, labels


def choose_regions(number: int, rng: random.Random, *, probability: float = 0.15) -> list[bool]:
    """Which of ``number`` regions UNITER masks: each by a draw of its own; where none was chosen, one
    by another draw. Set the features of these to zero and give them as ``visual_masked`` too.
    """
    chosen = [rng.random() < probability for _ in range(number)]
    if number and not any(chosen):
        chosen[rng.choice(range(number))] = True
    return chosen


def mask_objects(
    regions: Regions,
    *,
    probability: float = 0.15,
    shares: Shares = BERT_SHARES,
    everywhere: bool = True,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """LXMERT's masking of a batch of pictures -> ``visual_features`` as the model reads them, and the labels of its
    three losses of regions.

    Each real region is chosen with ``probability``; ``shares`` of the chosen lose their feature, keep it, and get
    that of a region of another picture; boxes stay. ``region_labels`` (1 = chosen) and ``region_targets`` are always
    given; ``object_labels``, ``attribute_labels`` and how much each counts where the detector told. everywhere: these
    count at all regions, as in the authors' code, not at chosen ones alone.
    """
    if not regions.batched or len(regions.features) < 2:
        raise InputError("masked regions take features of other pictures: give a batch of two pictures at least")
    features, real = regions.features, regions.real
    draws = torch.rand(2, *real.shape, generator=generator)
    chosen = (draws[0] < probability) & real
    pictures, slots = real.shape
    other = torch.randint(1, pictures, real.shape, generator=generator)
    other = (torch.arange(pictures)[:, None] + other) % pictures  # any picture but its own
    places = (torch.rand(real.shape, generator=generator) * real.sum(1)[other]).long()  # among its real regions
    order = real.int().argsort(dim=1, descending=True, stable=True)  # real ones first
    taken = features[other, order[other, places.clamp(max=slots - 1)]]
    masked = features.masked_fill((chosen & (draws[1] < shares[0])).unsqueeze(2), 0)
    swapped = chosen & (draws[1] >= shares[0] + shares[1]) & (real.sum(1)[other] > 0)
    masked = torch.where(swapped.unsqueeze(2), taken, masked)
    found = {"visual_features": masked, "region_labels": chosen.long(), "region_targets": features}
    counted = real if everywhere else chosen
    for name, labels, sure in (
        ("object", regions.labels, regions.confidence),
        ("attribute", regions.attributes, regions.attribute_confidence),
    ):
        if labels is not None:
            weights = torch.ones(real.shape) if sure is None else sure
            found |= {f"{name}_labels": labels, f"{name}_confidence": weights.masked_fill(~counted, 0)}
    return found


def mask_known_regions(
    features: Tensor, classes: Sequence[int], rng: random.Random, *, probability: float = 0.15, zero_share: float = 0.9
) -> MaskedRegions:
    """M3P's masking of one picture: each region whose class is not 0, the unknown, is chosen with
    ``probability``, and the same draw says whether its feature becomes zero (``zero_share``) or stays.

    Where none was chosen the last region is predicted unmasked. features (regions, size) of unit
    length; labels (regions,): the class of a chosen region, -1 elsewhere.
    """
    if len(classes) != len(features) or not len(features):
        raise InputError(f"give a class for each of {len(features)} regions, one region at least, got {len(classes)}")
    draws = [rng.random() for _ in classes]
    chosen = torch.tensor([draw < probability and found != 0 for draw, found in zip(draws, classes, strict=True)])
    zero = chosen & torch.tensor([draw / probability < zero_share for draw in draws])
    if not chosen.any():
        chosen[-1] = True
    labels = torch.where(chosen, torch.tensor(classes), -1)
    return MaskedRegions(features.masked_fill(zero.unsqueeze(1), 0), labels, chosen)
