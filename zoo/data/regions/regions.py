"""Regions of pictures: features and boxes from a detector, checked once, and encoded to what each
model reads.

    zoo.Regions(features, boxes, image_size=(width, height), format="xyxy").for_model(config)
        -> visual_features, visual_boxes, visual_mask

Detectors, dumps and models disagree on the order of a box's numbers, on pixels against shares of
the picture, on where the whole picture stands among the regions, and on how many numbers encode a
box. `Regions` says each of these once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data.regions.detectors import DETECTORS
from zoo.errors import CheckpointError, InputError, unknown
from zoo.formats.archive import Archive
from zoo.formats.opening import open_archive
from zoo.formats.plain_json import parse_json
from zoo.formats.writer import write_tensors

Format = Literal["xyxy", "xywh", "normalised"]
FORMATS = ("xyxy", "xywh", "normalised")
# pixels by which boxes of real dumps stick out of their picture: rounding, and detectors that count the last pixel in
SLACK = 1.5


@dataclass(frozen=True)
class Regions:
    """The regions of one picture, or of a batch of pictures.

    features (regions, size) or (batch, regions, size) float; boxes (..., regions, 4); image_size
    (width, height) in pixels, or (batch, 2); mask (..., regions) bool, True = a real region, None =
    all. ``format`` of the boxes: "xyxy" x1, y1, x2, y2 in pixels, "xywh" x, y, width, height in
    pixels, "normalised" x1, y1, x2, y2 as shares of the picture. confidence, labels, attributes and
    attribute_confidence (..., regions), class_probabilities (..., regions, classes): the detector's.
    ``detector``: whose features these are, a name of `DETECTORS`. ``whole_image``: where a region
    stands for the whole picture, "first", "last" or None. Raises InputError for what can't be meant.
    """

    features: Tensor
    boxes: Tensor
    image_size: Any
    mask: Tensor | None = None
    format: str = "xyxy"
    confidence: Tensor | None = None
    labels: Tensor | None = None
    detector: str | None = None
    whole_image: str | None = None
    attributes: Tensor | None = None
    attribute_confidence: Tensor | None = None
    class_probabilities: Tensor | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("box format", self.format, FORMATS)
        if self.detector is not None and self.detector not in DETECTORS:
            raise unknown("detector", self.detector, DETECTORS)
        if self.whole_image not in (None, "first", "last"):
            raise InputError(f"whole_image must be 'first', 'last' or None, got {self.whole_image!r}")
        size = torch.as_tensor(self.image_size, dtype=torch.float32)
        object.__setattr__(self, "image_size", size)
        _check_shapes(self)
        _check_values(self)

    # --- views

    @property
    def batched(self) -> bool:
        return self.features.dim() == 3

    def __len__(self) -> int:
        """How many regions (slots) there are."""
        return self.features.shape[-2]

    @property
    def width(self) -> int:
        """How wide the features are."""
        return self.features.shape[-1]

    @property
    def real(self) -> Tensor:
        """(..., regions) bool, True = a real region."""
        return torch.ones(self.features.shape[:-1], dtype=torch.bool) if self.mask is None else self.mask

    def xyxy(self) -> Tensor:
        """The boxes as x1, y1, x2, y2 in pixels."""
        boxes = self.boxes.float()
        if self.format == "xywh":
            return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)
        return boxes * self._scale() if self.format == "normalised" else boxes

    def shares(self) -> Tensor:
        """The boxes as x1, y1, x2, y2 divided by the picture's width and height."""
        return self.boxes.float() if self.format == "normalised" else self.xyxy() / self._scale()

    def _scale(self) -> Tensor:
        """(..., 1, 4): width, height, width, height."""
        return torch.cat([self.image_size, self.image_size], -1).unsqueeze(-2)

    # --- encodings

    def encoded(self, numbers: int) -> Tensor:
        """The boxes in the 4, 5 or 7 numbers that models read, zeros at padding.

        4 (LXMERT): x1, y1, x2, y2 as shares. 5 (ViLBERT, VOLTA): these and the share of the area. 7
        (UNITER): these four, width, height and their product.
        """
        x = self.shares()
        wide, high = x[..., 2] - x[..., 0], x[..., 3] - x[..., 1]  # eq: box
        if numbers == 5:
            x = torch.cat([x, (wide * high).unsqueeze(-1)], -1)  # eq: box
        elif numbers == 7:
            x = torch.cat([x, torch.stack([wide, high, wide * high], -1)], -1)
        elif numbers != 4:
            raise InputError(
                f"boxes are encoded in 4, 5 or 7 numbers, got {numbers}; see also `oscar`, `vlp`, `unit` and `vl_bert`"
            )
        return x.masked_fill(~self.real.unsqueeze(-1), 0)

    def oscar(self) -> Tensor:
        """Six numbers that Oscar appends to the features: x1, y1, x2, y2, width, height, as
        shares.
        """
        x = self.shares()
        return torch.cat([x, x[..., 2:] - x[..., :2]], -1).masked_fill(~self.real.unsqueeze(-1), 0)

    def vlp(self) -> Tensor:
        """VLP's code of a box and its class -> (..., regions, 6 + classes): x1, y1, x2, y2 divided by the
        largest x and y of the picture's boxes, the area of that and the detector's confidence, normalized
        together; then the class probabilities, normalized.
        """
        for name in ("confidence", "class_probabilities"):
            if getattr(self, name) is None:
                raise InputError(f"VLP's code of a box holds the detector's {name}, and these regions have none")
        assert self.confidence is not None
        assert self.class_probabilities is not None
        real = self.real.unsqueeze(-1)
        boxes = self.xyxy()
        corners = boxes.unflatten(-1, (2, 2)).masked_fill(~real.unsqueeze(-1), 0)
        largest = corners.amax((-3, -2))  # x and y of each picture  # eq: vlp
        x = boxes / (torch.cat([largest, largest], -1).unsqueeze(-2) + 1e-5)  # eq: vlp
        area = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])).clamp(min=0)  # eq: vlp
        numbers = torch.cat([x, area.unsqueeze(-1), self.confidence.float().unsqueeze(-1)], -1)  # eq: vlp
        parts = (numbers, self.class_probabilities.float())
        return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], -1).masked_fill(~real, 0)  # eq: vlp

    def unit(self) -> Tensor:
        """M3P's five numbers: x1, y1, x2, y2 and the area as shares, divided by their length ->
        (..., regions, 5).
        """
        return F.normalize(self.encoded(5), dim=-1)  # eq: unit

    def vl_bert(self, dimensions: int = 512) -> Tensor:
        """VL-BERT's: center x, center y, width and height, times 100 over the picture's size, as
        sines then cosines of ``dimensions`` / 2 rates from 1 to 1/1000 -> (..., regions, 4 ·
        dimensions).
        """
        x = self.shares()
        numbers = 100 * torch.cat([(x[..., :2] + x[..., 2:]) / 2, x[..., 2:] - x[..., :2]], -1)  # (..., regions, 4)
        half = dimensions // 2
        rates = 1000 ** (torch.arange(half, dtype=numbers.dtype) / half)
        angles = numbers.unsqueeze(-1) / rates  # (..., regions, 4, half)
        return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2).masked_fill(~self.real.unsqueeze(-1), 0)

    # --- how many

    def confident(self, threshold: float = 0.2, least: int = 10, most: int = 100) -> Regions:
        """Of one picture the first regions, as many as the detector is sure of (confidence above
        ``threshold``), but ``least`` at least and ``most`` at most: UNITER's rule for dumps that list the
        surest first.
        """
        if self.confidence is None or self.batched:
            raise InputError("confident is for the regions of one picture with the detector's confidence")
        count = number_confident(self.confidence, threshold, least, most)
        parts: dict[str, Any] = {
            name: None if (x := getattr(self, name)) is None else x[:count] for name in PARTS if name != "image_size"
        }
        return replace(self, **parts)

    # --- the whole picture

    def with_whole_image(self, where: str = "first", feature: Tensor | None = None) -> Regions:
        """Add a region for the whole picture: box 0, 0, width, height; ``feature`` (..., size), by
        default the mean of the real regions.

        ViLBERT and VL-BERT read it "first", others "last" (behind the padding, which is what masks are
        for). For pre-training with masked regions give the feature: see
        `zoo.data.vision_masking.whole_image_feature`.
        """
        if self.whole_image is not None:
            raise InputError(f"these regions have one for the whole picture already: {self.whole_image}")
        if where not in ("first", "last"):
            raise InputError(f"where must be 'first' or 'last', got {where!r}")
        real = self.real
        if feature is None:
            counted = real.sum(-1, keepdim=True).clamp(min=1)
            feature = self.features.masked_fill(~real.unsqueeze(-1), 0).sum(-2) / counted
        corner = torch.zeros_like(self.image_size)
        box = torch.cat([corner, torch.ones_like(corner) if self.format == "normalised" else self.image_size], -1)

        def put(one: Tensor, rest: Tensor, axis: int) -> Tensor:
            one = one.to(rest.dtype).unsqueeze(axis)
            return torch.cat([one, rest] if where == "first" else [rest, one], axis)

        lead = self.features.shape[:-2]
        told: dict[str, Any] = {
            name: put(torch.full(lead, float(value)), detected, -1)
            for name, value in DETECTED.items()
            if (detected := getattr(self, name)) is not None
        }
        if self.class_probabilities is not None:  # the detector said nothing of the whole picture
            nothing = self.class_probabilities.new_zeros(*lead, self.class_probabilities.shape[-1])
            told["class_probabilities"] = put(nothing, self.class_probabilities, -2)
        return replace(
            self,
            features=put(feature, self.features, -2),
            boxes=put(box, self.boxes, -2),
            mask=None if self.mask is None else put(torch.ones(lead, dtype=torch.bool), self.mask, -1),
            whole_image=where,
            **told,
        )

    # --- for models

    def for_model(self, config: Any) -> dict[str, Tensor]:
        """What a model of this config reads: ``visual_features``, ``visual_boxes`` where it reads
        boxes, ``visual_mask``; always batched.

        Adds the whole-image region where the config says a place for one (``whole_image_at``, unless
        ``config.whole_image`` is False) and these regions have none. Where a model reads boxes as the
        last columns of the features (``box_in_features``: their code) they are put there, unless the
        features hold them already. Refuses features of another width and says which detectors give the
        wanted one.
        """
        name = type(config).__name__.removesuffix("Config")
        wanted = getattr(config, "visual_size", None)
        if wanted is None:
            raise InputError(
                f"{name} reads no pictures; regions are for models with visual_features among their inputs"
            )
        code = getattr(config, "box_in_features", None)
        if code is not None and self.width != wanted:
            box: Tensor = getattr(self, code)()
            wanted -= box.shape[-1]
            if self.width == wanted:
                return replace(self, features=torch.cat([self.features, box], -1)).for_model(config)
        if self.width != wanted:
            trained = ", ".join(f"{kind} ({about.width})" for kind, about in DETECTORS.items() if about.width == wanted)
            raise InputError(
                f"{name} reads features {wanted} wide, these are {self.width} wide; detectors whose features are "
                f"{wanted} wide: {trained or 'none'}"
            )
        regions = self
        place = getattr(config, "whole_image_at", None) if getattr(config, "whole_image", True) else None
        if place is not None and self.whole_image is None:
            regions = self.with_whole_image(place)
        regions = regions if regions.batched else stack([regions])
        found = {"visual_features": regions.features, "visual_mask": regions.real}
        numbers = getattr(config, "box_size", 0)
        if (code := getattr(config, "box_code", None)) is not None:
            boxes: Tensor = getattr(regions, code)()
            if boxes.shape[-1] != numbers:
                classes = f": its detector has {numbers - 6} classes" if code == "vlp" else ""
                raise InputError(
                    f"{name} reads {numbers} numbers for a box and its class, these regions give {boxes.shape[-1]}"
                    f"{classes}"
                )
            return found | {"visual_boxes": boxes}
        return found | ({"visual_boxes": regions.encoded(numbers)} if numbers else {})

    @property
    def about(self) -> dict[str, str | None]:
        """What a file says of its regions in words."""
        return {"format": self.format, "detector": self.detector, "whole_image": self.whole_image}

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that `load` reads back; `files.save_regions` writes many
        pictures.
        """
        tensors = {part: value for part in PARTS if (value := getattr(self, part)) is not None}
        write_tensors(path, tensors, {HEADER: json.dumps(self.about)})

    @staticmethod
    def load(path: Path | str) -> Regions:
        """Read what `save` wrote."""
        with open_archive(Path(path)) as archive:
            about = described(archive)
            if "starts" in archive.tensors:
                raise InputError(f"{path} holds pictures by name; read them with zoo.data.regions.files.read_regions")
            parts: dict[str, Any] = {part: archive.read(part) for part in PARTS if part in archive.tensors}
            return Regions(**parts, **about)


# what a detector says of each region besides where it is, and what stands there for the whole picture
DETECTED = {"confidence": 1, "labels": 0, "attributes": 0, "attribute_confidence": 1}
PARTS = ("features", "boxes", "image_size", "mask", *DETECTED, "class_probabilities")
TOLD = (*DETECTED, "class_probabilities")
HEADER = "zoo.regions"


def described(archive: Archive) -> dict[str, Any]:
    """The words about the regions in a file."""
    written = archive.metadata.get(HEADER)
    if not isinstance(written, str):
        raise CheckpointError(f"{archive.path} holds no regions: its header has no {HEADER!r}")
    about = parse_json(written, f"{HEADER} in {archive.path}")
    if not isinstance(about, dict) or not set(about) <= {"format", "detector", "whole_image"}:
        raise CheckpointError(
            f"{archive.path}: {HEADER} must say format, detector and whole_image, got {written[:200]}"
        )
    return about


def number_confident(confidence: Tensor, threshold: float = 0.2, least: int = 10, most: int = 100) -> int:
    """How many regions have a confidence above ``threshold``, but ``least`` at least and ``most`` at
    most; ``least`` may be more than there are.
    """
    return min(most, max(least, int((confidence > threshold).sum())))


def box_overlap(left: Tensor, right: Tensor, *, inclusive: bool = True) -> Tensor:
    """Intersection over union of x1, y1, x2, y2 boxes, (n, 4) and (m, 4) -> (n, m) float64;
    ``inclusive``: the last pixel counts (+1).
    """
    a, b, one = left.double()[:, None], right.double()[None], float(inclusive)
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + one).clamp(min=0)
    shared = size.prod(-1)
    areas = [(x[..., 2:] - x[..., :2] + one).prod(-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def stack(pictures: Sequence[Regions]) -> Regions:
    """Several pictures as one batch, padded to the most regions; a whole-image region that stands
    last stays last of its picture's own.
    """
    if not pictures:
        raise InputError("no regions to stack")
    kinds = {
        (p.format, p.width, p.detector, p.whole_image, p.batched, *(getattr(p, name) is None for name in TOLD))
        for p in pictures
    }
    if len(kinds) > 1 or pictures[0].batched:
        raise InputError(
            "pictures in a batch must be single ones that agree in format, width and what they hold, got "
            f"{sorted(map(str, kinds))}"
        )
    most = max(len(p) for p in pictures)

    def padded(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in pictures]
        if values[0] is None:
            return None
        return torch.stack([torch.cat([v, v.new_zeros(most - len(v), *v.shape[1:])]) for v in values])

    mask = torch.stack([torch.cat([p.real, p.real.new_zeros(most - len(p))]) for p in pictures])
    features, boxes = padded("features"), padded("boxes")
    assert features is not None
    assert boxes is not None
    return replace(
        pictures[0],
        features=features,
        boxes=boxes,
        image_size=torch.stack([p.image_size for p in pictures]),
        mask=mask,
        **cast(Any, {name: padded(name) for name in TOLD}),
    )


# --- checks


def _check_shapes(regions: Regions) -> None:
    features, boxes, size = regions.features, regions.boxes, regions.image_size
    if not features.is_floating_point() or features.dim() not in (2, 3):
        raise InputError(
            f"features must be float (regions, size) or (batch, regions, size), got {features.dtype} "
            f"{tuple(features.shape)}"
        )
    lead = tuple(features.shape[:-1])
    if tuple(boxes.shape) != (*lead, 4):
        hint = (
            "; pass the boxes as the detector gave them, `encoded` makes the 5 or 7 numbers"
            if boxes.shape[-1:] in ((5,), (7,))
            else ""
        )
        raise InputError(
            f"boxes must be {(*lead, 4)} for features {tuple(features.shape)}, got {tuple(boxes.shape)}{hint}"
        )
    if tuple(size.shape) != (*lead[:-1], 2):
        raise InputError(
            f"image_size must be (width, height), or one pair for each picture: {(*lead[:-1], 2)}, got "
            f"{tuple(size.shape)}"
        )
    for name in ("mask", *DETECTED):
        value = getattr(regions, name)
        if value is not None and tuple(value.shape) != lead:
            raise InputError(f"{name} must be {lead}, got {tuple(value.shape)}")
    classes = regions.class_probabilities
    if classes is not None and (classes.dim() != features.dim() or tuple(classes.shape[:-1]) != lead):
        raise InputError(f"class_probabilities must be {(*lead, 'classes')}, got {tuple(classes.shape)}")
    if regions.mask is not None and regions.mask.dtype != torch.bool:
        if regions.mask.is_floating_point():
            raise InputError(f"mask is {regions.mask.dtype}, which looks additive; pass True for real regions")
        object.__setattr__(regions, "mask", regions.mask != 0)


def _check_values(regions: Regions) -> None:
    real = regions.real
    if not bool(real.any()):
        return
    if not bool((regions.image_size > 0).all()):
        raise InputError(f"image_size must be positive, got {regions.image_size.tolist()}")
    boxes = regions.boxes.float()[real]
    if not bool(boxes.isfinite().all()) or not bool(regions.features[real].isfinite().all()):
        raise InputError("features and boxes must be finite; some of the real regions' are not")
    zero = (boxes == 0).all(-1)
    if bool((zero & (regions.features[real] != 0).any(-1)).any()):
        raise InputError(
            f"{int(zero.sum())} regions have a feature but a box of zeros: are they padding? then say so with mask="
        )
    if regions.format == "normalised" and bool((boxes > 1.01).any()):
        raise InputError(
            f"normalised boxes are shares of the picture in 0..1, got up to {float(boxes.max()):.4g}; are they pixels "
            "('xyxy')?"
        )
    if regions.format != "normalised" and bool((boxes <= 1).all()) and bool((regions.image_size > 2).all()):
        raise InputError(
            "all box numbers lie in 0..1, yet the format says pixels; are they shares of the picture ('normalised')?"
        )
    scale = regions._scale().expand(*real.shape, 4)[real]
    slack = 0.01 * scale if regions.format == "normalised" else torch.full_like(scale, SLACK)
    corners = regions.xyxy()[real]
    backwards = (corners[:, 2:] < corners[:, :2]).any(-1)
    if bool(backwards.any()):
        worst = boxes[backwards][0].tolist()
        hint = "; are they x, y, width, height ('xywh')?" if regions.format == "xyxy" else ""
        raise InputError(
            f"{int(backwards.sum())} boxes end before they begin, the first is {worst} as {regions.format}{hint}"
        )
    outside = (corners < -slack).any(-1) | (corners > scale + slack).any(-1)
    if bool(outside.any()):
        worst, size = boxes[outside][0].tolist(), scale[outside][0, :2].tolist()
        hint = ""
        if regions.format == "xywh" and not bool((boxes > scale + slack).any() or (boxes[:, 2:] < boxes[:, :2]).any()):
            hint = "; as x1, y1, x2, y2 they would fit ('xyxy')"
        elif regions.format == "xyxy" and not bool((boxes[..., [1, 0, 3, 2]] > scale + slack).any()):
            hint = "; with x and y exchanged they would fit"
        raise InputError(
            f"{int(outside.sum())} boxes lie outside their picture of {size}, the first is {worst} as "
            f"{regions.format}{hint}"
        )
