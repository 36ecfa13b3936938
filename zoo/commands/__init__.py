"""Commands of their own file: Typer functions that `zoo.cli` names in one line each."""
