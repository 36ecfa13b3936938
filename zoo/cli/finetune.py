"""`zoo finetune | evaluate`: train a model on rows of a table, and score one on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, overrides_of, print_json, print_table
from zoo.errors import ConfigError, InputError
from zoo.registry.techniques import TECHNIQUES

Table = Annotated[Path, typer.Option(help="Rows to learn from: csv, tsv, jsonl, parquet or txt.")]
RegionDump = Annotated[
    Path | None, typer.Option(help="A dump of regions, which the rows' pictures stand in: TSV, LMDB, HDF5, npz, ...")
]
Column = Annotated[
    list[str] | None, typer.Option("--column", help="Which column holds what: text=sentence. Repeatable.")
]
MaxLength = Annotated[int | None, typer.Option(min=3, help="Tokens; longer texts are cut.")]


def finetune(
    source: Annotated[str, typer.Argument(help="A name with a public checkpoint, a file or a folder.")],
    train: Table,
    out: Annotated[Path, typer.Option(help="The folder to write the trained model into.")],
    task: Annotated[str | None, typer.Option(help="What to learn; a folder may say it.")] = None,
    held_out: Annotated[Path | None, typer.Option("--eval", help="Rows to choose the best model by.")] = None,
    column: Column = None,
    regions: RegionDump = None,
    technique: Annotated[
        list[str] | None, typer.Option(help="A technique to train with: lora:rank=8. Repeatable, in order.")
    ] = None,
    train_base: Annotated[
        bool, typer.Option("--train-base", help="Train the model too where a technique is trained alone, as LoRA is.")
    ] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A config field or task option, name=value. Repeatable.")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Begin with random weights; a name needs it then.")] = False,
    tokenizer: Annotated[str | None, typer.Option(help="A name or folder, where the source has none.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates in all, in place of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of one update.")] = 1,
    learning_rate: Annotated[float, typer.Option("--lr")] = 5e-5,
    warmup: Annotated[float, typer.Option(min=0, help="A share of the updates, or from 1 on their number.")] = 0.1,
    decay: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.01,
    layer_decay: Annotated[float, typer.Option(help="Each layer's rate as a share of the one above.")] = 1.0,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 arithmetic; weights stay float32.")] = False,
    max_length: MaxLength = None,
    metric: Annotated[str | None, typer.Option(help="By which the best model is chosen.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="End after so many evaluations without a better.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Updates; else each epoch.")] = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="Updates after which a killed run can go on.")] = None,
    adversarial: Annotated[
        list[str] | None,
        typer.Option(
            help="Perturb words or regions in training: text_lr=0.001, steps=3, image_lr, norm, ... Repeatable."
        ),
    ] = None,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in --out stopped.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="A log for TensorBoard too.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on rows of a table, and keep the best one."""
    import torch

    from zoo.techniques.base import freeze_all_but
    from zoo.techniques.spelled import technique_of
    from zoo.training import fit, task_options
    from zoo.training.loop import FOLDER

    if Path(source).is_dir() and out.resolve() == Path(source).resolve() and not resume:
        raise InputError(f"--out {out} is the folder of the model to train, which would be lost; name another")
    chosen = [technique_of(spelled) for spelled in technique or ()]
    columns, options = _pairs(column, "--column"), overrides_of(override)
    wanted = task or _task_of(source)
    options = {**options, **task_options(train, wanted, columns, pictured=regions is not None, **_labels(options))}
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of a head that the source lacks
    model = _model(source, wanted, random, generator, options)
    zoo.apply(model, *chosen, generator=generator)
    if not train_base and any(TECHNIQUES[type(each).__name__].alone for each in chosen):
        freeze_all_but(model)
    encoder = _tokenizer(source, tokenizer)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "lr": learning_rate,
        "warmup": warmup,
        "decay": decay,
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "precision": "bfloat16" if bf16 else "float32",
        "max_length": max_length,
        "metric": metric,
        "patience": patience,
        "evaluate_every": evaluate_every,
        "save_every": save_every,
        "adversarial": overrides_of(adversarial) if adversarial else None,
        "seed": seed,
    }
    events: list[Callable[[Mapping[str, Any]], None]] = []
    if tensorboard:
        from zoo.training.tensorboard import tensorboard as writer

        events.append(writer(out / FOLDER / "tensorboard"))

    def told(row: Mapping[str, Any]) -> None:
        bar(row)
        for event in events:
            event(row)

    with Bar(quiet=as_json) as bar:
        report = fit(
            model,
            train,
            held_out,
            tokenizer=encoder,
            columns=columns,
            regions=regions,
            out=out,
            resume=resume,
            on_event=told,
            **settings,
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    best = report.best or (report.history[-1] if report.history else {})
    if as_json:
        print_json(
            {
                "path": str(out),
                "task": wanted,
                "steps": report.steps,
                "stopped_early": report.stopped_early,
                "parameters": {"all": model.num_parameters(), "trained": trained},
                "best": best,
                "history": report.history,
            }
        )
        return
    print(
        f"{source} for {wanted}: {trained:,} of {model.num_parameters():,} parameters trained, {report.steps} updates"
    )
    figures = {name: value for name, value in best.items() if name.startswith("eval_") or report.best is None}
    print_table(
        "best" if report.best else "last",
        ["figure", "value"],
        [[name.removeprefix("eval_"), f"{value:.4f}"] for name, value in figures.items()],
    )
    print(f"saved in {out}")


def evaluate(
    source: Annotated[str, typer.Argument(help="A folder or file with a task's model, or a pretrained name.")],
    rows: Annotated[Path, typer.Argument(help="csv, tsv, jsonl, parquet or txt.")],
    task: Annotated[str | None, typer.Option(help="Where the folder doesn't say.")] = None,
    column: Column = None,
    regions: RegionDump = None,
    tokenizer: Annotated[str | None, typer.Option(help="A name or folder, where the source has none.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 arithmetic.")] = False,
    max_length: MaxLength = None,
    as_json: Json = False,
) -> None:
    """Score a model on rows of a table."""
    from zoo.training import evaluate as figures_of

    model = zoo.load(source, task=task)
    found = figures_of(
        model,
        rows,
        tokenizer=_tokenizer(source, tokenizer),
        columns=_pairs(column, "--column"),
        regions=regions,
        batch_size=batch_size,
        max_length=max_length,
        precision="bfloat16" if bf16 else "float32",
    )
    if as_json:
        print_json({"model": source, "rows": str(rows), "figures": found})
    else:
        print_table(f"{source} on {rows}", ["figure", "value"], [[n, f"{value:.4f}"] for n, value in found.items()])


def _tokenizer(source: str, named: str | None) -> Any:
    """The tokenizer that the user names, or that of the source."""
    from zoo.checkpoints.convert import has_tokenizer

    if named is None and Path(source).exists() and not has_tokenizer(source):
        raise InputError(
            f"{source} holds no tokenizer; name one by --tokenizer, a public name or a folder "
            "(zoo.save(model, folder, tokenizer) keeps it with the model)"
        )
    return zoo.tokenizer(named or source)


def _labels(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("labels", "num_labels", "problem_type") if name in options}


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"{option} takes MEANING=COLUMN, such as text=sentence; got {each!r}")
        pairs[name] = value
    return pairs


def _task_of(source: str) -> str:
    """The task that a saved folder says."""
    config = Path(source) / "config.json"
    if config.is_file():
        try:
            said = json.loads(config.read_text(encoding="utf-8-sig")).get("task")
        except (ValueError, AttributeError, UnicodeDecodeError):
            said = None
        if isinstance(said, str) and said:
            return said
    raise InputError(f"{source} doesn't say what to learn; say it: --task sequence-classification")


def _model(source: str, task: str, random: bool, generator: Any, options: Mapping[str, Any]) -> Any:
    if Path(source).exists() or source.startswith("hub:"):
        if random:
            raise ConfigError(f"--random builds a registered name; {source} has weights")
        return zoo.load(source, task=task, **options)
    return zoo.create(source, pretrained=not random, task=task, generator=generator, **options)


class Bar:
    """A bar on stderr with loss, metric and time left; silent where nobody looks."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()
        )
        self.shown = self.bar.add_task("reading", total=None)
        self.last = ""

    def __enter__(self) -> Bar:
        self.bar.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        self.bar.__exit__(*about)

    def __call__(self, row: Mapping[str, Any]) -> None:
        figures = [f"{n.removeprefix('eval_')} {v:.4f}" for n, v in row.items() if n.startswith("eval_")]
        self.last = ", ".join(figures[1:3]) or self.last
        said = f"loss {row['loss']:.4f}" + (f", {self.last}" if self.last else "")
        self.bar.update(self.shown, completed=row["step"], total=row["total"], description=said)
