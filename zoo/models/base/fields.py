"""What the fields of a config or technique mean, for `help` and the API reference.

A field is explained where it is declared, by the comment on its line; what many families have
(``hidden_size``, ``dropout``) is explained here once.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from typing import Any, NamedTuple


class ConfigField(NamedTuple):
    """A field for a reader: its type and default as they are written, and its meaning."""

    name: str
    type: str
    default: str
    meaning: str


def described(cls: Any) -> list[ConfigField]:
    """The fields of a dataclass in the order of its signature; ``meaning`` is empty where the source
    can't be read.
    """
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        said |= _comments(base) if "__dataclass_fields__" in vars(base) else {}
    return [
        ConfigField(
            item.name,
            item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type)),
            "" if item.default is dataclasses.MISSING else repr(item.default),
            said.get(item.name) or COMMON.get(item.name, ""),
        )
        for item in dataclasses.fields(cls)
    ]


def documented(cls: Any) -> str:
    """The docstring of a dataclass, with its fields below."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or f"{cls.__name__}: its fields are what `zoo.create` takes.")
    if "__match_args__" not in vars(cls):  # the decorator of dataclasses looks at it before it is done
        return text
    lines = [
        f"    {row.name}: {row.type}{f' = {row.default}' if row.default else ''}  # {row.meaning}".rstrip("# ")
        for row in described(cls)
    ]
    return "\n".join([text, "", "Fields:", *lines]) if lines else text


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    """The comment beside each field that the class itself declares."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # no source: a frozen application, a class made by hand
        return {}
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (node,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            lines = range(item.lineno, (item.end_lineno or item.lineno) + 1)
            found[item.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return found


COMMON: dict[str, str] = {
    "vocab_size": "rows of the token table",
    "hidden_size": "width of the hidden states",
    "num_layers": "blocks",
    "num_heads": "heads of an attention",
    "intermediate_size": "inner width of a feed-forward",
    "max_positions": "the longest text, in tokens",
    "num_segments": "rows of the segment table",
    "num_languages": "rows of the language table",
    "activation": "of the feed-forwards, one of zoo.layers.ACTIVATIONS",
    "norm_eps": "what a norm adds to the variance",
    "pad_token_id": "the token that stands for padding",
    "tie_word_embeddings": "the head that predicts words uses the token table",
    "pooler": "with a pooled vector",
    "dropout": "on embeddings and on the result of each sublayer",
    "attention_dropout": "on attention probabilities",
    "classifier_dropout": "ahead of a task's head; None: as dropout",
    "initializer_range": "standard deviation of random weights",
    "streams": "only in these streams; empty: in all",
    "depths": "only in these layers, counted from 0; empty: in all",
    "paths": "these parts by their paths, in place of roles",
}
