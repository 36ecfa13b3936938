"""The `zoo` command. Exit code 0 = done, 1 = failed (with the reason), 2 = called wrongly.
``--json`` prints data instead of tables, an object with the ``error`` where it fails.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

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
    pictures,
    predict,
    pretrain,
    prune,
    quantize,
    regions,
    write,
)
from zoo.cli.shared import print_json
from zoo.errors import UnknownNameError, ZooError, ZooWarning

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
    "search": pictures.search,
    "fill-mask": predict.fill_mask,
    "write": write.write,
    "translate": write.translate,
    "caption": write.caption,
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
    """Run the command line; what goes wrong on purpose is one line on stderr, not a traceback, and with
    ``--json`` an object with the ``error`` on stdout besides.
    """
    as_json = "--json" in sys.argv[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("always", ZooWarning)
        warnings.showwarning = _show(warnings.showwarning)
        try:
            code = app(standalone_mode=not as_json)
        except BrokenPipeError:
            sys.stderr.close()
            return
        except Exception as error:
            raise SystemExit(_failed(error, as_json)) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _failed(error: Exception, as_json: bool) -> int:
    """Tell of an error. -> the exit code. One that is not the zoo's own is raised again without
    ``--json``: it is a bug, and wants its traceback.
    """
    said, code = str(error), 2 if isinstance(error, UnknownNameError) else 1
    if (usage := getattr(error, "format_message", None)) is not None:  # the command was called wrongly
        said, code = str(usage()), int(getattr(error, "exit_code", 2))
    elif isinstance(error, OSError) and not isinstance(error, ZooError):
        said = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    elif not isinstance(error, ZooError):
        if not as_json:
            raise error
        traceback.print_exception(error)
        said = f"{type(error).__name__}: {error}"
    if as_json:
        print_json({"error": said})
    print(f"zoo: {said}", file=sys.stderr)
    return code


def _show(otherwise: Callable[..., None]) -> Callable[..., None]:
    """The zoo's warnings in one line on stderr, others as ever."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, ZooWarning):
            print(f"zoo: warning: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *where, **more)

    return show


if __name__ == "__main__":
    main()
