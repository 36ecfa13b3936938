"""`zoo distill`: a student of some of a teacher's layers, or of another size, taught on lines of
text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, loaded, print_json, say, say_left_heads
from zoo.data.lines import written_lines
from zoo.errors import ConfigError, TaskError, ZooError, unknown

Layers = Annotated[str | None, typer.Option(help="The teacher's layers that become the student's, from 0: 1,3,5.")]
Student = Annotated[
    str | None,
    typer.Option(
        help="Another size: a registered name, which gets the teacher's vocabulary, or a folder, which must have it."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(help="Of zoo.training.distillation.recipes.RECIPES; by the data and the task if you leave it out."),
]


def distill(
    teacher: Annotated[str, typer.Argument(help="A pretrained name or a folder, with its tokenizer.")],
    texts: Annotated[
        Path,
        typer.Argument(
            help="A file: a text on each line; with a label, text, tab, number.", exists=True, dir_okay=False
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write the student into.")],
    layers: Layers = None,
    student: Student = None,
    recipe: Recipe = None,
    task: Annotated[str | None, typer.Option(help="The teacher's task, where its folder doesn't say.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of each stage of the recipe.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    learning_rate: Annotated[float, typer.Option("--lr", min=0)] = 1e-4,
    max_length: Annotated[int, typer.Option(min=3, help="Longer texts are cut.")] = 128,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Json = False,
) -> None:
    """Teach a smaller model what a larger one knows, and save it."""
    import torch

    from zoo.training.distillation.recipes import RECIPES
    from zoo.training.distillation.students import student_of

    if (layers is None) == (student is None):
        raise typer.BadParameter("give --layers, or --student, and not both")
    if recipe is not None and recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    data = list(_lines(texts))
    source: Any = loaded(teacher, task)
    tokenizer = zoo.tokenizer(teacher)
    generator = torch.Generator().manual_seed(seed)
    student_model = (
        _sized(str(student), source, generator)
        if layers is None
        else student_of(source, [_number(part, "--layers") for part in layers.split(",")])
    )
    if student is not None and Path(student).exists():
        _same_ids(student, student_model, source, tokenizer, [text for text, _ in data])
    labelled = all(label is not None for _, label in data)
    name = recipe or _fitting(source, labelled)
    batches = _batches(
        data, tokenizer, source, batch_size, min(max_length, tokenizer.max_length or max_length), generator
    )
    torch.manual_seed(seed)  # dropout
    report = []
    for number, terms in enumerate(RECIPES[name](), 1):
        objective = zoo.Distillation(source, student_model, terms, generator=generator)
        report.append({"stage": number, **_stage(objective, batches, steps, learning_rate, quiet=as_json)})
    zoo.save(student_model.eval(), out, tokenizer)
    counts = {"teacher": source.num_parameters(), "student": student_model.num_parameters()}
    if as_json:
        print_json({"recipe": name, "parameters": counts, "stages": report, "path": str(out)})
        return
    print(f"{name}: {counts['teacher']:,} parameters taught {counts['student']:,}")
    for stage in report:
        print(f"  stage {stage['stage']}: loss {stage['first']:.4f} -> {stage['last']:.4f} in {steps} steps")
    print(f"student in {out}")


def _lines(path: Path) -> Iterator[tuple[str, int | None]]:
    found = False
    for _, line in written_lines(path):
        text, tab, label = line.rpartition("\t")
        found = True
        yield (text, _number(label, str(path))) if tab else (line, None)
    if not found:
        raise TaskError(f"{path} holds no text; write one on each line")


def _number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{where} has {text!r} where a whole number should stand") from None


def _sized(name: str, teacher: Any, generator: Any) -> Any:
    task = getattr(teacher, "task", None) or None
    options = {"num_labels": teacher.options["num_labels"]} if "num_labels" in getattr(teacher, "options", {}) else {}
    if Path(name).exists():
        student = zoo.load(name, task=task)
        say_left_heads(student, name)
        return student
    return zoo.create(name, task=task, generator=generator, vocab_size=teacher.config.vocab_size, **options)


def _same_ids(student: str, model: Any, teacher: Any, tokenizer: Any, texts: Sequence[str]) -> None:
    """Refuse a student folder whose own tokenizer reads text otherwise than the teacher's: it would be
    taught ids that mean other words to it.
    """
    from zoo.training.distillation.objective import same_vocabulary

    try:
        own = zoo.tokenizer(student)
    except ZooError as error:
        say(
            f"no tokenizer was read from {student} ({error}); its ids are taken for the teacher's, whose tokenizer is "
            "saved with the student"
        )
        return
    same_vocabulary(teacher, model, (tokenizer, own))
    for text in texts:
        theirs, mine = tokenizer.encode(text).ids, own.encode(text).ids
        if theirs != mine:
            raise TaskError(
                f"the teacher's tokenizer and that of {student} have one vocabulary and read {text!r} otherwise: "
                f"{theirs[:12]} and {mine[:12]}; give the student the teacher's tokenizer"
            )


def _fitting(teacher: Any, labelled: bool) -> str:
    """What a teacher without a task shows are its layers; one with a task its answers, and labels
    count where all texts have one.
    """
    task = getattr(teacher, "task", "")
    return "minilmv2" if not task else "distilbert" if task == "masked-lm" else "soft-targets" if labelled else "pd"


def _batches(
    data: Sequence[tuple[str, int | None]], tokenizer: Any, teacher: Any, size: int, length: int, generator: Any
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Inputs and labels without end, each round in another order."""
    import torch

    from zoo.data.collate import MaskedLMCollator

    task = getattr(teacher, "task", "")
    mask = None
    if task == "masked-lm":
        mask = MaskedLMCollator(
            mask_id=tokenizer.mask_token_id,
            vocab_size=teacher.config.vocab_size,
            special_ids=tokenizer.special_token_ids,
        )
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order), size):
            chosen = [data[row] for row in order[start : start + size]]
            batch = tokenizer([text for text, _ in chosen], max_length=length)
            if mask is not None:
                batch |= mask.corrupt(batch["input_ids"], batch["attention_mask"].sum(1).tolist(), generator)
                yield {name: value for name, value in batch.items() if name != "labels"}, {"labels": batch["labels"]}
            elif all(label is not None for _, label in chosen) and task:
                yield batch, {"labels": torch.tensor([label for _, label in chosen])}
            else:
                yield batch, {}


def _stage(distillation: Any, batches: Iterator[Any], steps: int, rate: float, *, quiet: bool) -> dict[str, Any]:
    import torch
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    optimizer = torch.optim.AdamW(distillation.trained(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    distillation.student.train()
    losses: list[float] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        shown = bar.add_task("steps", total=steps)
        for step in range(1, steps + 1):
            batch, labels = next(batches)
            loss, _ = distillation(batch, step=step, **labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            bar.update(shown, advance=1, description=f"loss {losses[-1]:.4f}")
    tenth = max(1, steps // 10)
    return {"first": sum(losses[:tenth]) / tenth, "last": sum(losses[-tenth:]) / tenth}
