"""Names with placeholders, and the tiny conditions of the map language.

A name is cut into text and runs of digits; a placeholder stands for one whole run. So each name is
found by one look-up, and two templates can only meet on the same name if their texts are equal:
ambiguity is decided, not searched for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from zoo.errors import ConfigError, MapError, closest

Bindings = Mapping[str, int]
Payload = TypeVar("Payload")

_DIGITS = re.compile(r"(\d+)")
_PLACEHOLDER = re.compile(r"\{(\w+(?::0[1-9])?)\}")


@dataclass(frozen=True)
class Slot:
    """Where a template takes a whole number, with zeros in front up to ``width`` digits."""

    name: str
    width: int = 1

    def written(self, number: int) -> str:
        return str(number).zfill(self.width)


def tokens(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A name's texts and its runs of digits: ``a.10.b`` is ``("a.", ".b")`` and ``("10",)``."""
    pieces = _DIGITS.split(name)
    return tuple(pieces[0::2]), tuple(pieces[1::2])


@dataclass(frozen=True)
class Template:
    """``encoder.layer.{i}.output``: a name in which each ``{word}`` stands for a whole number, written
    with two digits as ``{word:02}``.
    """

    text: str
    pieces: tuple[str, ...]
    slots: tuple[str | Slot, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        if not text or re.sub(_PLACEHOLDER, "", text).count("{") or re.sub(_PLACEHOLDER, "", text).count("}"):
            raise MapError(f"{text!r} is no template: each placeholder is a word in braces, as in 'layer.{{i}}.weight'")
        pieces, slots = [""], list[str | Slot]()
        for position, chunk in enumerate(_PLACEHOLDER.split(text)):
            if position % 2:
                if slots and not pieces[-1]:
                    raise MapError(
                        f"{text!r}: text must stand between the placeholder {{{chunk}}} and the number before it"
                    )
                name, _, width = chunk.partition(":")
                slots.append(Slot(name, int(width or 1)))
                pieces.append("")
                continue
            texts, digits = tokens(chunk)
            if position and digits and not texts[0]:
                raise MapError(f"{text!r}: text must stand between a placeholder and the number {digits[0]} after it")
            pieces[-1] += texts[0]
            for number, piece in zip(digits, texts[1:], strict=True):
                slots.append(number)
                pieces.append(piece)
        return cls(text, tuple(pieces), tuple(slots))

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(slot.name for slot in self.slots if isinstance(slot, Slot)))

    def fill(self, bindings: Bindings) -> str:
        numbers = [slot.written(bindings[slot.name]) if isinstance(slot, Slot) else slot for slot in self.slots]
        return self.pieces[0] + "".join(number + piece for number, piece in zip(numbers, self.pieces[1:], strict=True))

    def bind(self, digits: tuple[str, ...]) -> dict[str, int] | None:
        """The numbers with which this template is the name with these runs of digits, or None.
        Zeros in front fit no placeholder but those up to its width.
        """
        bindings: dict[str, int] = {}
        for slot, run in zip(self.slots, digits, strict=True):
            if isinstance(slot, str):
                if slot != run:
                    return None
            elif slot.written(int(run)) != run or bindings.setdefault(slot.name, int(run)) != int(run):
                return None
        return bindings

    def match(self, name: str) -> dict[str, int] | None:
        pieces, digits = tokens(name)
        return self.bind(digits) if pieces == self.pieces else None

    def overlaps(self, other: Template) -> bool:
        """Whether some name fits both."""
        return self.pieces == other.pieces and all(
            isinstance(a, Slot) or isinstance(b, Slot) or a == b for a, b in zip(self.slots, other.slots, strict=True)
        )


class Index(Generic[Payload]):
    """Which templates a name fits, by one look-up."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, ...], list[tuple[Template, Payload]]] = {}

    def add(self, template: Template, payload: Payload) -> None:
        self._entries.setdefault(template.pieces, []).append((template, payload))

    def near(self, template: Template) -> list[tuple[Template, Payload]]:
        """The entries that share a name with ``template``."""
        return [
            (other, payload) for other, payload in self._entries.get(template.pieces, []) if other.overlaps(template)
        ]

    def find(self, name: str) -> list[tuple[Payload, dict[str, int]]]:
        pieces, digits = tokens(name)
        found = []
        for template, payload in self._entries.get(pieces, []):
            bindings = template.bind(digits)
            if bindings is not None:
                found.append((payload, bindings))
        return found


_CONDITION = re.compile(r"^(?P<negated>!)?(?P<field>[A-Za-z_]\w*)(?:\s*(?P<relation>==|!=)\s*(?P<value>.+))?$")


@dataclass(frozen=True)
class Field:
    """A config field on the right of a comparison."""

    name: str


@dataclass(frozen=True)
class Condition:
    """``field``, ``!field``, ``field == value`` or ``field != value``; a value is a number, true,
    false, a quoted word or another field.
    """

    text: str
    field: str
    relation: str  # "is" (truth), "not", "==", "!="
    value: object = None

    @classmethod
    def parse(cls, text: str, fields: Collection[str] | None) -> Condition:
        match = _CONDITION.match(text.strip())
        if match is None or (match["negated"] and match["relation"]):
            raise MapError(
                f"when = {text!r} is no condition; write 'field', '!field', 'field == value' or 'field != value'"
            )
        if match["relation"] is None:
            condition = cls(text, match["field"], "not" if match["negated"] else "is")
        else:
            condition = cls(text, match["field"], match["relation"], _literal(match["value"].strip()))
        for name in condition.fields:
            if fields is not None and name not in fields:
                raise MapError(
                    f"when = {text!r} names {name!r}, which [config] does not make; closest: "
                    f"{', '.join(closest(name, fields))}"
                )
        return condition

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field, self.value.name) if isinstance(self.value, Field) else (self.field,)

    def holds(self, config: Mapping[str, object]) -> bool:
        values = []
        for name in self.fields:
            if name not in config:
                raise ConfigError(
                    f"the map's condition {self.text!r} needs config field {name!r}, which the config lacks"
                )
            values.append(config[name])
        if self.relation in ("is", "not"):
            return bool(values[0]) is (self.relation == "is")
        wanted = values[1] if isinstance(self.value, Field) else self.value
        return same(values[0], wanted) is (self.relation == "==")

    def excludes(self, other: Condition) -> bool:
        """Whether both can never hold at once (as far as their form shows it)."""
        if self.field != other.field:
            return False
        relations = {self.relation, other.relation}
        if relations == {"is", "not"}:
            return True
        if relations == {"==", "!="}:
            return self.value == other.value
        if relations == {"=="}:
            return (
                not isinstance(self.value, Field)
                and not isinstance(other.value, Field)
                and not same(self.value, other.value)
            )
        if relations == {"not", "=="}:
            return any(c.relation == "==" and not isinstance(c.value, Field) and bool(c.value) for c in (self, other))
        return False


def same(left: object, right: object) -> bool:
    """Equality that keeps ``True`` and ``1`` apart, and a tuple and the list that JSON makes of it
    together.
    """
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return isinstance(left, bool) is isinstance(right, bool) and left == right


def _literal(written: str) -> object:
    if written in ("true", "false"):
        return written == "true"
    if len(written) > 1 and written[0] == written[-1] and written[0] in "'\"":
        return written[1:-1]
    for number in (int, float):
        try:
            return number(written)
        except ValueError:
            continue
    if written.isidentifier():
        return Field(written)
    raise MapError(f"{written!r} is no value; write a number, true, false, a quoted word or the name of another field")
