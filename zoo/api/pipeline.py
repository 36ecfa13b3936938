"""`zoo.pipeline`: from texts and pictures to results, by a model's name or the model itself."""

from __future__ import annotations

import os
from typing import Any

import torch

from zoo.api.picture_regions import picture_regions
from zoo.checkpoints.load import load
from zoo.errors import TaskError, unknown
from zoo.inference.optimize import DTYPES, optimize
from zoo.inference.pipeline import PICTURE_PIPELINES, PIPELINES, RowPipeline
from zoo.inference.pipeline.captions import CaptionPipeline
from zoo.registry.tasks import task_spec
from zoo.tokenization import Tokenizer

OTHER_NAMES = {"fill-mask": "masked-lm"}


def pipeline(
    task: str,
    model: Any,
    *,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    **options: Any,
) -> RowPipeline:
    """A callable from texts or pictures to dicts of results: one, a list or an iterator of them.

    task: sequence-classification, token-classification, question-answering, multiple-choice,
    fill-mask, sentence-embedding, conditional-generation or causal-lm; of pictures image-embedding,
    zero-shot-image-classification or image-captioning; what rows and results look like stands at the classes of
    `zoo.inference.pipeline`. model: a name, a file or a folder, whose tokenizer and images are then
    read too, or a model with the task's head, which is taken as it is. A model that is loaded here
    onto the CPU is prepared by `zoo.optimize`, in float32 or the ``dtype`` asked for ("bfloat16",
    "int8"). options: ``batch_size``, ``top`` of fill-mask, the settings of what writes, ``images``
    where there are pictures, ``labels`` and ``templates`` of zero-shot; of captions ``detector``, whose
    regions the model was trained on (a grid, or an image tower by its name), or ``regions``, a dump of them.

    Raises TaskError where the model's head for the task would start at random.
    """
    name = OTHER_NAMES.get(task, task)
    known = {**PIPELINES, **PICTURE_PIPELINES}
    if name not in known:
        task_spec(name)
        raise unknown("task of a pipeline", task, [*known, *OTHER_NAMES])
    source = model
    if isinstance(model, str | os.PathLike):
        model = ready(model, name if name in PIPELINES else PICTURE_PIPELINES[name].head, device, dtype)
    elif device is not None or dtype is not None:
        raise TaskError("device= and dtype= are for a model that is loaded here; bring yours there before")
    if name == CaptionPipeline.task and not callable(options.get("regions")):
        CaptionPipeline.require_writer(model)
        detector, dump = options.pop("detector", None), options.pop("regions", None)
        options["regions"] = picture_regions(
            source, getattr(model.config, "visual_size", 0), detector=detector, dump=dump
        )
    if name in PICTURE_PIPELINES:
        options |= {} if tokenizer is None else {"tokenizer": tokenizer}
        return PICTURE_PIPELINES[name](model, **options)
    return PIPELINES[name](model, tokenizer, **options)


def ready(
    source: str | os.PathLike[str], task: str | None, device: str | torch.device | None = None, dtype: str | None = None
) -> Any:
    """A trained model with the head of a task, or without one, prepared for inference."""
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype of a pipeline", dtype, DTYPES)
    model = load(source, task=task, device=device)
    if task is not None:
        require_trained(model)
    if model.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return optimize(model, dtype or "float32")
    if dtype == "int8":
        raise TaskError("int8 is for models on the CPU; take float32 or bfloat16")
    return model if dtype is None else model.to(getattr(torch, dtype))


def require_trained(model: Any) -> None:
    """Refuse a model whose answers would be noise: its head for the task was drawn at random."""
    report = model.load_report
    if report.random:
        raise TaskError(
            f"{report.source} has no trained head for {model.task}: {report.random[0]} would start at random, and its "
            "answers would be noise; fine-tune it first, or give a model that was trained for the task"
        )
