"""Pictures: a vector for each, and the likeliest of labels that are given as words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.images.images import Images
from zoo.data.images.reading import is_picture
from zoo.errors import InputError, TaskError, with_article
from zoo.inference.pipeline.base import Result, RowPipeline
from zoo.models.base.model import bare_model
from zoo.models.base.two_towers import TwoTowers
from zoo.tokenization import Tokenizer

TEMPLATES = ("a photo of a {}.",)


class PicturePipeline(RowPipeline):
    """From pictures to results, a batch at a time, so that no more than one batch of pixels is held."""

    meanings = ("image",)
    row = "a picture (a path, the bytes of a file, a picture of Pillow, or a uint8 array)"
    longest_window = 1  # a window is one batch

    def __init__(self, model: Any, images: Images | None = None, *, batch_size: int = 32) -> None:
        model = bare_model(model) if isinstance(model, nn.Module) else model
        if "pixel_values" not in getattr(model, "inputs", ()):
            raise TaskError(
                f"{with_article(type(model).__name__)} reads no pictures; take a model that does, such as a CLIP"
            )
        super().__init__(model, batch_size=batch_size)
        self.images = images or model.need_images()

    @classmethod
    def is_row(cls, value: Any) -> bool:
        return is_picture(value)

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        return values["image"]

    def _vectors(self, pictures: Sequence[Any]) -> Float[Tensor, "batch size"]:
        with torch.inference_mode():
            return picture_vectors(self.model, self.images(pictures))


class ImageEmbeddingPipeline(PicturePipeline):
    """A picture -> ``{"embedding"}``, an array (size,) of float32, of unit length."""

    task = "image-embedding"

    def _window(self, rows: Sequence[Any]) -> list[Result]:
        return [{"embedding": vector} for vector in self._vectors(rows).float().cpu().numpy()]


class ZeroShotImageClassificationPipeline(PicturePipeline):
    """A picture -> ``{"label", "score", "scores"}`` by two towers, for labels that no head was trained on.

    A label's vector is the mean of those of its sentences: each of the ``templates`` with the label in place of
    ``{}``. Scores are a softmax over the labels; for towers with a ``logit_bias``, trained by the sigmoid loss, each
    label's own probability.
    """

    task = "zero-shot-image-classification"

    def __init__(
        self,
        model: Any,
        images: Images | None = None,
        *,
        labels: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        tokenizer: Tokenizer | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__(model, images, batch_size=batch_size)
        model = need_towers(self.model)
        self.labels = check_labels(labels)
        sentences = [template.replace("{}", label) for label in labels for template in check_templates(templates)]
        vectors = torch.cat(list(text_vectors(model, sentences, tokenizer, batch_size=batch_size)))
        each = vectors.unflatten(0, (len(labels), len(templates)))  # (labels, templates, size)
        self.vectors = F.normalize(each.mean(1), dim=-1)

    def _window(self, rows: Sequence[Any]) -> list[Result]:
        with torch.inference_mode():
            logits = self.model.logits(self._vectors(rows), self.vectors).float()  # (pictures, labels)
        chances = logits.softmax(-1) if self.model.logit_bias is None else logits.sigmoid()
        results = []
        for values in chances.tolist():
            best = max(range(len(values)), key=values.__getitem__)
            scores = dict(zip(self.labels, values, strict=True))
            results.append({"label": self.labels[best], "score": values[best], "scores": scores})
        return results


def need_towers(model: Any) -> TwoTowers:
    """The model, refused where it has no text tower to compare words with."""
    if not isinstance(model, TwoTowers):
        raise TaskError(f"words are compared by a text tower, which {with_article(type(model).__name__)} has not")
    return model


def picture_vectors(model: Any, pixel_values: Tensor) -> Float[Tensor, "batch size"]:
    """Vectors of unit length: behind the projection of two towers, else what an image tower pools."""
    pixel_values = pixel_values.to(model.device, model.dtype)
    if isinstance(model, TwoTowers):
        return model.encode_image(pixel_values, normalize=True)
    return F.normalize(model(pixel_values).pooler_output, dim=-1)


def text_vectors(
    model: TwoTowers, texts: Iterable[str], tokenizer: Tokenizer | None = None, *, batch_size: int = 32
) -> Iterator[Float[Tensor, "batch size"]]:
    """Vectors of unit length by the text tower of two, batch by batch."""
    tokenizer, texts = tokenizer or model.need_tokenizer(), list(texts)
    taken = model.text.arguments
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size])
        given = {name: tensor.to(model.device) for name, tensor in batch.items() if name in taken}
        with torch.inference_mode():
            yield model.encode_text(**given, normalize=True)


def check_labels(labels: Sequence[str]) -> list[str]:
    """Refuse labels that are none, empty or there twice."""
    if isinstance(labels, str) or not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise InputError(f"labels must be a list of words, at least one, got {labels!r:.80}")
    if twice := [label for place, label in enumerate(labels) if label in labels[:place]]:
        raise InputError(f"the label {twice[0]!r} stands twice")
    return list(labels)


def check_templates(templates: Sequence[str]) -> list[str]:
    """Refuse templates without a place for the label."""
    if isinstance(templates, str) or not templates:
        raise InputError(f"templates must be a list of sentences, at least one, got {templates!r:.80}")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise InputError(f"a template holds {{}} where the label goes, got {template!r:.80}")
    return list(templates)
