"""Two tiny towers with their tokenizer and preprocessing, and pictures for them to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

import zoo
from zoo.data.images.images import Images
from zoo.models.clip import Clip, ClipConfig
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "photo", "of", ".", "dog", "cat"]
IMAGES = Images(size=12, crop=8)
NAME = "tiny-towers"
CONFIG = ClipConfig(
    vocab_size=len(WORDS),
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    intermediate_size=12,
    max_positions=16,
    eos_token_id=3,
    image_size=8,
    patch_size=4,
    image_hidden_size=12,
    image_num_layers=1,
    image_num_heads=2,
    image_intermediate_size=16,
    projection_size=6,
)


def tokenizer() -> Any:
    return wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=16)


def towers(**fields: Any) -> Clip:
    """Random weights, large enough that words and pictures differ."""
    model = Clip(CONFIG.replace(**fields)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():  # all but the temperature and the bias of the logits
                parameter.normal_(0, 0.4, generator=generator)
    model.tokenizer, model.images = tokenizer(), IMAGES
    return model


def saved(folder: Path) -> str:
    """The same in a folder; its class is to be registered under `NAME`."""
    return str(zoo.save(towers(), folder, tokenizer()))


def draw(folder: Path, count: int = 6) -> list[Path]:
    """Pictures of noise, some in a folder below."""
    (folder / "more").mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / ("more" if number % 3 == 2 else ".") / f"{number}.{'png' if number % 2 else 'jpg'}"
        noise = numpy.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=numpy.uint8)
        Image.fromarray(noise).resize((20, 16 + number)).save(path)
        paths.append(path)
    return paths
