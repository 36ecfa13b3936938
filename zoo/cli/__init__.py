"""Commands of their own file: Typer functions that `zoo.cli.app` names in one line each."""
