"""The files beside weights that say how pictures are prepared: transformers' ``preprocessor_config.json``
(or ``processor_config.json``) and open_clip's ``open_clip_config.json``.

A key that is not known here is refused by its name, so that no step is left out in silence. What
transformers does as rescale, offset and several normalizations is one mean and one std here, since each is
affine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.data.images.images import CLIP_MEAN, CLIP_STD, HALF, RESIZERS, Images
from zoo.errors import CheckpointError, ConfigError, unknown
from zoo.formats.disk import read_regular
from zoo.formats.plain_json import parse_json

FILE = "preprocessor_config.json"
PROCESSOR_FILE, PROCESSOR_KEY = "processor_config.json", "image_processor"  # of transformers 5
OPEN_CLIP_FILE = "open_clip_config.json"
FILES = (FILE, PROCESSOR_FILE, OPEN_CLIP_FILE)
LARGEST = 1 << 20  # bytes of such a file
OWN = "zoo"  # the key for what transformers has no words for
OWN_FIELDS = ("resizer", "antialias", "crop_start", "background", "max_pixels")
NUMBERS = RESIZERS["pillow"]  # Pillow's numbers of interpolations


@dataclass(frozen=True)
class Kind:
    """What a class of transformers does where its file says nothing."""

    size: Mapping[str, int]
    crop: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    more: Mapping[str, Any] = field(default_factory=dict)


SQUARE, SHORTEST = {"height": 224, "width": 224}, {"shortest_edge": 224}
KINDS: Mapping[str, Kind] = {
    "CLIP": Kind(SHORTEST, 224),
    "ChineseCLIP": Kind(SHORTEST, 224),
    "Bit": Kind(SHORTEST, 224),
    "ViT": Kind(SQUARE, None, "bilinear", HALF, HALF),
    "Siglip": Kind(SQUARE, None, "bicubic", HALF, HALF),
    "DeiT": Kind({"height": 256, "width": 256}, 224, "bicubic", HALF, HALF),
    "EfficientNet": Kind(
        {"height": 346, "width": 346}, None, "bicubic", HALF, HALF, {"rescale_offset": False, "include_top": True}
    ),
}
"""By the class's name without what stands behind it: ImageProcessor, ImageProcessorFast, FeatureExtractor."""
ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
STEPS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "do_convert_rgb", OWN),
)
NO_STEPS = (  # what says nothing about the pixels of a picture
    *("image_processor_type", "feature_extractor_type", "processor_class", "data_format", "input_data_format"),
    *("default_to_square", "return_tensors", "device", "disable_grouping", "_valid_processor_keys", "auto_map"),
)
MUST_BE_OFF = ("do_pad", "pad_size", "do_color_quantize", "do_thumbnail", "do_reduce_labels")


def read_images(folder: str | os.PathLike[str]) -> Images | None:
    """What the files in a folder say; None where none of them is there."""
    folder = Path(folder)
    if (file := folder / FILE).is_file():
        return of_transformers(_json(file), str(file))
    if (file := folder / PROCESSOR_FILE).is_file() and PROCESSOR_KEY in (said := _json(file)):
        return of_transformers(said[PROCESSOR_KEY], str(file))
    if (file := folder / OPEN_CLIP_FILE).is_file():
        return of_open_clip(_json(file), str(file))
    return None


def write_images(images: Images, folder: str | os.PathLike[str]) -> None:
    """Write ``preprocessor_config.json``, which transformers and `read_images` read."""
    text = json.dumps(to_transformers(images), indent=2) + "\n"
    (Path(folder) / FILE).write_text(text, encoding="utf-8")


def of_transformers(said: Mapping[str, Any], where: str) -> Images:
    """From what an image processor of transformers saved."""
    name = said.get("image_processor_type") or said.get("feature_extractor_type")
    if not isinstance(name, str):
        raise ConfigError(f"{where} names no image_processor_type; write e.g. CLIPImageProcessor")
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    if (stem := name.removesuffix(ending)) not in KINDS or not ending:
        raise unknown("image processor", name, [f"{kind}ImageProcessor" for kind in KINDS], f"(in {where})")
    kind = KINDS[stem]
    for key, value in said.items():
        if key in MUST_BE_OFF and value:
            raise ConfigError(f"{where} has {key} = {value!r}, a step that is not known here")
        if key not in (*STEPS, *NO_STEPS, *MUST_BE_OFF, *kind.more):
            raise unknown(f"key of {name}", key, [*STEPS, *kind.more], f"(in {where})")
    values = {**kind.more, **{key: value for key, value in said.items() if value is not None}}
    fields = _resizing(values, kind, where)
    fields["crop"] = None
    if values.get("do_center_crop", kind.crop is not None):
        fields["crop"] = _crop(values.get("crop_size", kind.crop or 224), where)
    fields["mean"], fields["std"] = _affine(values, kind, where)
    own = values.get(OWN, {})
    if extra := [key for key in own if key not in OWN_FIELDS]:
        raise unknown(f"key of {OWN!r}", extra[0], OWN_FIELDS, f"(in {where})")
    return _told(where, lambda: Images.from_dict({"crop_start": "below", **fields, **own}))


def to_transformers(images: Images) -> dict[str, Any]:
    """As ``CLIPImageProcessor`` of transformers saves it; what it has no words for stands under ``zoo``."""
    size = images.size
    said: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": images.resize != "none",
        "size": {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]},
        "resample": NUMBERS.index(images.interpolation),
        "do_center_crop": images.crop is not None,
        "crop_size": None if images.crop is None else dict(zip(("height", "width"), images.crop, strict=True)),  # type: ignore[arg-type]
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
        "do_convert_rgb": True,
    }
    said = {key: value for key, value in said.items() if value is not None}
    usual = Images(crop_start="below")
    own = {name: value for name in OWN_FIELDS if (value := getattr(images, name)) != getattr(usual, name)}
    return {**said, OWN: own} if own else said


def of_open_clip(said: Mapping[str, Any], where: str) -> Images:
    """From the config that open_clip keeps on the hub."""
    given = dict(said.get("preprocess_cfg") or {})
    vision = (said.get("model_cfg") or {}).get("vision_cfg") or {}
    size = given.pop("size", None) or vision.get("image_size", 224)
    mode, interpolation = given.pop("resize_mode", "shortest"), given.pop("interpolation", "bicubic")
    given.pop("fill_color", None)  # of a border that neither mode below makes
    if given.pop("mode", "RGB") != "RGB":
        raise ConfigError(f"{where} has mode = {said['preprocess_cfg']['mode']!r}; pictures are RGB here")
    mean, std = given.pop("mean", CLIP_MEAN), given.pop("std", CLIP_STD)
    for key in given:
        raise unknown("key of preprocess_cfg", key, ("size", "resize_mode", "interpolation", "mean", "std"), where)
    height, width = (size, size) if isinstance(size, int) else size
    usual: dict[str, Any] = {"mean": tuple(mean), "std": tuple(std), "interpolation": interpolation}
    if mode == "squash":
        return _told(where, lambda: Images(resize="exact", size=(height, width), **usual))
    if mode != "shortest":
        raise unknown("resize_mode", mode, ("shortest", "squash"), f"(in {where})")
    if height != width:
        raise ConfigError(f"{where} has size = {size!r}: the shorter side can't become two; take resize_mode = squash")
    return _told(where, lambda: Images(size=height, crop=height, **usual))


def _resizing(values: Mapping[str, Any], kind: Kind, where: str) -> dict[str, Any]:
    number = values.get("resample", NUMBERS.index(kind.interpolation))
    if number not in range(len(NUMBERS)):
        known = ", ".join(f"{number} {name}" for number, name in enumerate(NUMBERS))
        raise ConfigError(f"{where} has resample = {number!r}; known are {known}")
    fields: dict[str, Any] = {"interpolation": NUMBERS[number]}
    if not values.get("do_resize", True):
        return {**fields, "resize": "none"}
    size = values.get("size", kind.size)
    if isinstance(size, int):  # as older files have it
        size = {"shortest_edge": size} if "shortest_edge" in kind.size else {"height": size, "width": size}
    if isinstance(size, Mapping):
        stated = {key: value for key, value in size.items() if value is not None}
        if set(stated) == {"shortest_edge"}:
            return {**fields, "resize": "shortest", "size": stated["shortest_edge"]}
        if set(stated) == {"height", "width"}:
            return {**fields, "resize": "exact", "size": (stated["height"], stated["width"])}
    raise ConfigError(f"{where} has size = {size!r}; known are a shortest_edge, or a height and a width")


def _crop(size: Any, where: str) -> Any:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return (size["height"], size["width"])
    raise ConfigError(f"{where} has crop_size = {size!r}; known is a height and a width")


def _affine(values: Mapping[str, Any], kind: Kind, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in 0..1 that do what rescaling, offset and normalizations do one after
    another: y = ((255 f x - offset) - mean) / std, once more / std where ``include_top`` is set.
    """
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    scale = 255 * factor
    scale = 1.0 if abs(scale - 1) < 1e-12 else scale
    mean, std = [list(values.get(key, usual)) for key, usual in (("image_mean", kind.mean), ("image_std", kind.std))]
    if len(mean) != 3 or len(std) != 3:
        raise ConfigError(f"{where} has {len(mean)} means and {len(std)} stds; pictures have three colors here")
    again = std if values.get("include_top") else [1.0] * 3
    offset = 1.0 if values.get("rescale_offset") else 0.0
    if not values.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    means = tuple((offset + value) / scale for value in mean)
    return means, tuple(value * more / scale for value, more in zip(std, again, strict=True))


def _told(where: str, make: Callable[[], Images]) -> Images:
    try:
        return make()
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    found = parse_json(read_regular(file, LARGEST), str(file))
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(found).__name__}")
    return found
