"""What one stream's pass gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from zoo.errors import unknown


class Output:
    """Common to all results: frozen, fields that hold nothing are None.

    Beside its attributes a result answers as a mapping from the names of the fields that hold
    something to their values, as `transformers` has it (``out["logits"]``, ``"loss" in out``,
    ``dict(out)``, iteration over the names), and by number as a tuple of these values (``out[0]``,
    ``out[:2]``, ``out.to_tuple()``): the loss first, where there is one.

    Every subclass, a user's too, is a pytree, as ``torch.export`` wants of what goes in and out.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        where = "zoo" if cls.__module__.startswith("zoo.") else cls.__module__
        # the fields are asked for when they are needed: @dataclass makes them only after this
        pytree.register_pytree_node(
            cls,
            _flatten,
            lambda values, context: cls(**dict(zip(context[0], values, strict=True)), **dict.fromkeys(context[1])),
            serialized_type_name=f"{where}.{cls.__qualname__}",
            flatten_with_keys_fn=_flatten_with_keys,
        )

    def present(self) -> Iterator[tuple[str, Any]]:
        """Name and value of every field that holds something."""
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is not None:
                yield item.name, value

    def items(self) -> list[tuple[str, Any]]:
        """Name and value of what holds something, in the order of the fields; empty dicts don't."""
        return [(name, value) for name, value in self.present() if not (isinstance(value, dict) and not value)]

    def keys(self) -> list[str]:
        """The names of the fields that hold something."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Any]:
        """What they hold."""
        return [value for _, value in self.items()]

    def to_tuple(self) -> tuple[Any, ...]:
        """The same as a tuple."""
        return tuple(self.values())

    def get(self, name: str, otherwise: Any = None) -> Any:
        """What a field holds, or ``otherwise``."""
        return dict(self.items()).get(name, otherwise)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.items())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, int | slice):
            return self.to_tuple()[key]
        found = dict(self.items())
        if key not in found:
            raise unknown(f"field of this {type(self).__name__}", key, found)
        return found[key]


def _flatten(result: Any) -> tuple[list[Any], Any]:
    """The values of the fields that hold something; the names of these and of those that don't."""
    names: tuple[list[str], list[str]] = ([], [])
    for item in dataclasses.fields(result):
        if item.init:
            names[getattr(result, item.name) is None].append(item.name)
    return [getattr(result, name) for name in names[0]], list(names)


def _flatten_with_keys(result: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
    values, context = _flatten(result)
    return [(pytree.GetAttrKey(name), value) for name, value in zip(context[0], values, strict=True)], context


@dataclass(frozen=True)
class Encoded(Output):
    """One stream after its encoder.

    ``last_hidden_state``: zeros at padded positions. ``pooler_output``: where the model has a
    pooler. On request ``hidden_states``: what enters the first block, then what leaves each block;
    and ``attentions``: per block the probabilities, zeros for queries and keys that are padding.
    """

    last_hidden_state: Float[Tensor, "batch length hidden"]
    pooler_output: Float[Tensor, "batch pooled"] | None = None
    hidden_states: tuple[Float[Tensor, "_batch _length _hidden"], ...] | None = None
    attentions: tuple[Float[Tensor, "_batch _heads query key"], ...] | None = None
