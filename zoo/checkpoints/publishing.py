"""`zoo.push_to_hub`: a model onto the hub, with a card that says what is known of it."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from zoo.checkpoints.load import load
from zoo.checkpoints.save import save
from zoo.errors import CheckpointError, InputError, ZooError, counted
from zoo.models.base.model import bare_model, unwrapped
from zoo.registry import variants as registry
from zoo.registry.resources import VERSION

PIPELINES = {
    "masked-lm": "fill-mask",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "sentence-embedding": "sentence-similarity",
    "visual-question-answering": "visual-question-answering",
}
"""What the hub calls our tasks."""
LOG = Path("training", "log.csv")


def push_to_hub(
    model: nn.Module | str | os.PathLike[str],
    repository: str,
    tokenizer: Any = None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Write a model (or a folder that `zoo.save` or `zoo finetune` wrote) into a repository of the hub,
    which is made where it isn't there; ``zoo.load("hub:org/name")`` reads it back. huggingface_hub does
    the work, with the token of ``HF_TOKEN`` or ``hf auth login`` where none is given.

    private: who sees a repository that is made. revision: a branch. -> the commit's address. A card of a
    repository that is there already is left alone. Raises CheckpointError where the hub refuses.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InputError(f"a repository is called organization/name, got {repository!r}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "model"
        card = _staged(model, tokenizer, stage, repository)
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            if not api.file_exists(repository, "README.md", revision=revision):
                (stage / "README.md").write_text(card, encoding="utf-8")
            made = api.upload_folder(
                repo_id=repository,
                folder_path=stage,
                revision=revision,
                commit_message=message or "Add a model of the zoo",
                ignore_patterns=["training/*"],
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(f"the hub did not take {repository}: {' '.join(str(error).split())[:300]}") from error
    return str(made.commit_url)


def _staged(model: Any, tokenizer: Any, stage: Path, repository: str) -> str:
    """Write what is uploaded, and give its card."""
    figures: dict[str, str] = {}
    if isinstance(model, str | os.PathLike):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is no folder that zoo.save wrote: it has no config.json")
        figures = best_of(folder / LOG)
        if tokenizer is None:
            from zoo.checkpoints.tokenizer import tokenizer as tokenizer_of

            try:
                tokenizer = tokenizer_of(folder)
            except ZooError:
                tokenizer = None
        model = load(folder)
    save(model, stage, tokenizer)
    return model_card(model, repository, tokenizer, figures)


def best_of(log: Path) -> dict[str, str]:
    """The figures of a run's best evaluation, by the lowest loss, as its log has them; none without a
    log.
    """
    if not log.is_file():
        return {}
    with log.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval_loss")]
    best = min(rows, key=lambda row: float(row["eval_loss"]), default={})
    return {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_") and value}


def model_card(
    model: nn.Module, repository: str = "org/name", tokenizer: Any = None, figures: dict[str, str] | None = None
) -> str:
    """What is known of a model, as the README.md of a repository: family, paper, sizes, task, labels,
    techniques, and how to load it. Only what the model itself says; nothing is guessed.
    """
    return "\n".join(_card(unwrapped(model), repository, tokenizer, figures or {})) + "\n"


def _card(inner: Any, repository: str, tokenizer: Any, figures: dict[str, str]) -> Iterator[str]:
    bare: Any = bare_model(inner)
    name, task = getattr(bare, "zoo_name", None), getattr(inner, "task", "") or None
    variant = registry.variant(name) if name in registry._all() else None
    tags = ["zoo", *([variant.family, variant.pillar] if variant else [])]
    yield from ["---", "library_name: extended-zoo"]
    if task in PIPELINES:
        yield f"pipeline_tag: {PIPELINES[task]}"
    yield from ["tags:", *(f"- {tag}" for tag in tags), "---", "", f"# {repository.partition('/')[2]}", ""]
    kind = variant.title if variant and variant.title else type(bare).__name__
    yield f"{kind}, {counted(inner.num_parameters(), 'parameter')}, saved by zoo {VERSION}."
    if variant and variant.paper:
        yield from ["", f"Paper: {variant.paper}"]
    if task:
        labels = inner.options.get("labels")
        yield from ["", f"Task: {task}." + (f" Labels: {', '.join(labels)}." if labels else "")]
    if bare.techniques:
        yield from ["", "Techniques, in order:", "", *(f"- `{each}`" for each in bare.techniques)]
    if figures:
        yield from [
            "",
            "Figures of the best evaluation while it was trained:",
            "",
            "| figure | value |",
            "| --- | --- |",
        ]
        yield from (f"| {figure} | {float(value):.4f} |" for figure, value in figures.items())
    sizes = ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_positions")
    yield from ["", "| size | value |", "| --- | --- |"]
    yield from (f"| {size} | {getattr(bare.config, size):,} |" for size in sizes if hasattr(bare.config, size))
    yield from ["", "```python", "import zoo", "", f'model = zoo.load("hub:{repository}")']
    if tokenizer is not None:
        yield from [f'tokenizer = zoo.tokenizer("hub:{repository}")', 'output = model(**tokenizer(["a text"]))']
    yield "```"
