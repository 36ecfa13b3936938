"""Preprocessing of pictures, for the systems that have it: functions that their adapters name."""

from __future__ import annotations

from typing import Any

import torch

from tests.references.case import Case
from zoo.data.images.boxes import GridBoxes
from zoo.data.images.images import IMAGENET_MEAN, IMAGENET_STD, Images


def clip_transform(case: Case) -> dict[str, Any]:
    """OpenAI's and open_clip's: Pillow's bicubic resize of the shorter side, then the middle."""
    config = case.config
    images = Images(size=config["n_px"], crop=config["n_px"], mean=config["mean"], std=config["std"])
    return {name.replace("image", "pixels"): images.pixels(picture) for name, picture in case.inputs.items()}


def brivl_grid(case: Case) -> dict[str, Any]:
    """BriVL 2: the floats resized to a square without antialiasing, and the cells of a grid as boxes."""
    config = case.config
    images = Images(
        resize="exact",
        size=config["IMG_SIZE"],
        interpolation="bilinear",
        resizer="torch",
        antialias=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    grid = GridBoxes(config["IMG_SIZE"], config["BOX_GRID"], config["MAX_IMG_LEN"])
    return {
        "pixels": images.pixels(case.inputs["image"]),
        "image_boxs": grid.boxes(),
        "img_len": torch.tensor([grid.count]),
    }
