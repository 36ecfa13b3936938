"""The `zoo` command. Exit code 0 = done, 1 = failed (with the reason), 2 = called wrongly.
``--json`` prints data instead of tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

import zoo
from zoo.cli import (
    bench,
    cache,
    checkpoints,
    distill,
    export,
    finetune,
    models,
    predict,
    pretrain,
    prune,
    quantize,
    regions,
)
from zoo.errors import UnknownNameError, ZooError

app = typer.Typer(
    name="zoo",
    help=" ".join((zoo.__doc__ or "").partition("\n\n")[0].split()),
    no_args_is_help=True,
    add_completion=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "list": models.list_,
    "info": models.info,
    "create": models.create,
    "matrix": models.matrix,
    "diff": models.diff,
    "inspect": checkpoints.inspect,
    "convert": checkpoints.convert,
    "verify": checkpoints.verify,
    "fetch": checkpoints.fetch,
    "classify": predict.classify,
    "tag": predict.tag,
    "ask": predict.ask,
    "push": checkpoints.push,
    "embed": predict.embed,
    "fill-mask": predict.fill_mask,
    "finetune": finetune.finetune,
    "evaluate": finetune.evaluate,
    "tokenize": pretrain.tokenize,
    "pretrain": pretrain.pretrain,
    "distill": distill.distill,
    "prune": prune.prune,
    "quantize": quantize.quantize,
    "export": export.export,
    "bench": bench.bench,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(asked: bool) -> None:
    if asked:
        print(f"zoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """What stands before a command."""


app.add_typer(cache.app, name="cache")
app.add_typer(regions.app, name="regions")


def main() -> None:
    """Run the command line; what goes wrong on purpose is one line on stderr, not a traceback."""
    try:
        app()
    except ZooError as error:
        print(f"zoo: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UnknownNameError) else 1) from None
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
