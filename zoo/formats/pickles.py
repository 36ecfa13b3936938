"""An interpreter of the pickle opcodes that builds plain data and descriptions of tensors, and
never imports or calls anything.

A pickle is a program for a stack machine. Its opcodes that push numbers, strings and containers are
done as written. Those that would call something are looked up in ``CALLS``: a few names whose
meaning is known (how torch and numpy describe a tensor, OrderedDict, ...) are done by functions of
``pickle_calls``. Every other object becomes a ``Refused`` node, which records its name, takes what
the pickle then feeds to it (arguments, state, items) as plain data, and does nothing.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MethodType
from typing import Any, NoReturn

from zoo.errors import CheckpointError
from zoo.formats.limits import (
    LONG_VALUE,
    MAX_CONTAINERS,
    MAX_INTEGER_BYTES,
    MAX_MEMO,
    MAX_OPCODES,
    MAX_TEXT,
    printable,
    repr_short,
)
from zoo.formats.nodes import ArrayRef, Global, LongBytes, NumpyType, Refused, StorageRef, TensorRef
from zoo.formats.pickle_calls import CALLS, SCALAR_TYPES, hashable, set_array


@dataclass(frozen=True)
class Unpickled:
    value: Any
    end: int  # where the next pickle of the stream would start
    refused: tuple[Refused, ...]  # everything refused, reachable from the value or not


def unpickle(
    data: memoryview,
    start: int = 0,
    *,
    persistent: Callable[[Any], Any] | None = None,
    what: str = "the pickle",
    keys: Collection[str] = (),
) -> Unpickled:
    """Interpret the pickle at ``start``; ``persistent`` turns a persistent id into a node. ``keys``:
    the classes of which objects that are not made may be keys, each one for itself.
    """
    return _Machine(data, start, persistent, what, keys).run()


class _Machine:
    def __init__(
        self,
        data: memoryview,
        start: int,
        persistent: Callable[[Any], Any] | None,
        what: str,
        keys: Collection[str] = (),
    ):
        self.data, self.position, self.end, self.what = data, start, len(data), what
        self.keys = keys
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.containers = 0
        self.refused: list[Refused] = []

    def run(self) -> Unpickled:
        opcodes = 0
        table = {code: MethodType(method, self) for code, method in _OPCODES.items()}
        data, end = self.data, self.end
        while True:
            position = self.position
            if position >= end:
                self.fail("ends before its STOP: the file is truncated")
            code = data[position]
            self.position = position + 1
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.below:
                    self.fail("stops with an unfinished stack")
                return Unpickled(self.stack[0], self.position, tuple(self.refused))
            operation = table.get(code)
            if operation is None:
                self.fail(f"holds the unknown opcode {code:#04x} at byte {position}")
            opcodes += 1
            if opcodes > MAX_OPCODES:
                self.fail(f"has more than {MAX_OPCODES} operations")
            try:
                operation()
            except IndexError:
                self.fail(f"takes more from its stack than is there, at byte {position}")

    def fail(self, why: str) -> NoReturn:
        raise CheckpointError(f"{self.what} {why}")

    # reading

    def take(self, count: int) -> memoryview:
        if count > self.end - self.position:
            self.fail(
                f"announces {count} bytes where {self.end - self.position} are left: the file is truncated or lies"
            )
        start, self.position = self.position, self.position + count
        return self.data[start : start + count]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        size = 256
        while True:
            chunk = bytes(self.data[self.position : self.position + size])
            found = chunk.find(b"\n")
            if found >= 0:
                self.position += found + 1
                return chunk[:found]
            if size > MAX_TEXT or self.position + size >= self.end:
                self.fail("has a line without an end")
            size *= 4

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def contain(self, value: Any) -> Any:
        """Count a container: each takes a hundred bytes of memory for one byte of file."""
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            self.fail(f"makes more than {MAX_CONTAINERS} lists, dicts and objects")
        return value

    def computed(self, value: Any) -> Any:
        """Count what a call made by its size: the same long list may be copied again and again."""
        if isinstance(value, (list, tuple, dict, set)):
            self.containers += len(value) // 8
        elif isinstance(value, (bytes, str)):
            self.containers += len(value) // 64
        return self.contain(value)

    def refuse(self, name: str, how: str = "", arguments: tuple[Any, ...] = ()) -> Refused:
        refused: Refused = self.contain(Refused(name, how, arguments))
        self.refused.append(refused)
        return refused

    def to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    # plain values

    def op_frame(self) -> None:
        size = self.number(8)
        if size > self.end - self.position:
            self.fail(
                f"announces a frame of {size} bytes where {self.end - self.position} are left: the file is truncated "
                "or lies"
            )

    def op_int_line(self) -> None:
        line = self.line()
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self.decimal(line))

    def op_long_line(self) -> None:
        self.push(self.decimal(self.line().removesuffix(b"L")))

    def decimal(self, line: bytes) -> int:
        if len(line) > MAX_INTEGER_BYTES:
            self.fail(f"holds an integer of {len(line)} digits")
        try:
            return int(line)
        except ValueError:
            self.fail(f"holds {printable(repr(line[:40]))} where an integer should be")

    def integer(self, size: int) -> None:
        """A signed integer of so many bytes."""
        if size > MAX_INTEGER_BYTES:
            self.fail(f"holds an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def op_float_line(self) -> None:
        try:
            self.push(float(self.line()[:MAX_INTEGER_BYTES]))
        except ValueError:
            self.fail("holds no number where a float should be")

    def op_float(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    def text(self, size: int) -> None:
        raw = self.take(size)
        self.push(LongBytes(raw, text=True) if size > LONG_VALUE else self.decoded(raw))

    def decoded(self, raw: memoryview) -> str:
        try:
            return str(raw, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self.fail("holds a string that is not UTF-8")

    def op_text_line(self) -> None:
        try:
            self.push(codecs.raw_unicode_escape_decode(self.line())[0])
        except UnicodeDecodeError:
            self.fail("holds a string with a broken escape")

    def bytes_(self, size: int) -> None:
        raw = self.take(size)
        self.push(LongBytes(raw) if size > LONG_VALUE else bytes(raw))

    def old_text(self, size: int) -> None:
        self.push_old_text(self.take(size))

    def push_old_text(self, raw: memoryview) -> None:
        """A string of Python 2: text where it is valid UTF-8, else bytes."""
        if len(raw) > LONG_VALUE:
            self.push(LongBytes(raw))
            return
        try:
            self.push(str(raw, "utf-8"))
        except UnicodeDecodeError:
            self.push(bytes(raw))

    def op_old_text_line(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            self.fail("holds a string without quotes")
        try:
            self.push_old_text(memoryview(codecs.escape_decode(line[1:-1])[0]))  # type: ignore[attr-defined]
        except ValueError:
            self.fail("holds a string with a broken escape")

    # containers

    def op_mark(self) -> None:
        self.below.append(self.contain(self.stack))
        self.stack = []

    def op_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def op_pop_mark(self) -> None:
        self.to_mark()

    def op_dup(self) -> None:
        self.push(self.stack[-1])

    def op_list(self) -> None:
        self.push(self.contain(self.to_mark()))

    def op_tuple(self) -> None:
        self.push(tuple(self.contain(self.to_mark())))

    def short_tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [self.contain(tuple(self.stack[-size:]))]

    def op_dict(self) -> None:
        values = self.to_mark()
        target = self.contain({})
        self.put_items(target, values)
        self.push(target)

    def op_frozenset(self) -> None:
        self.push(self.contain({value for value in self.to_mark() if self.usable(value)}))

    def op_append(self) -> None:
        value = self.stack.pop()
        self.put_elements(self.stack[-1], [value])

    def op_appends(self) -> None:
        values = self.to_mark()
        self.put_elements(self.stack[-1], values)

    def op_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put_items(self.stack[-1], [key, value])

    def op_setitems(self) -> None:
        values = self.to_mark()
        self.put_items(self.stack[-1], values)

    def usable(self, key: Any) -> bool:
        if hashable(key) or (isinstance(key, Refused) and key.name in self.keys):
            return True
        self.refuse(f"a key of type {type(key).__name__}" if not isinstance(key, Refused) else f"{key.name} as a key")
        return False

    def put_elements(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(value for value in values if self.usable(value))
        elif isinstance(target, Refused):
            target.elements = [] if target.elements is None else target.elements
            target.elements.extend(values)
        else:
            self.fail(f"appends to {repr_short(target)}")

    def put_items(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Refused):
            target.items = target = {} if target.items is None else target.items
        if not isinstance(target, dict) or len(values) % 2:
            self.fail(f"sets {len(values)} keys and values in {repr_short(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if self.usable(key):
                target[key] = value

    # memo: a dict, so that a huge index costs nothing

    def memoize(self, index: int) -> None:
        if len(self.memo) >= MAX_MEMO and index not in self.memo:
            self.fail(f"stores more than {MAX_MEMO} entries in its memo")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"recalls entry {index} of its memo, which was never stored")
        self.push(self.memo[index])

    def op_memoize(self) -> None:
        self.memoize(len(self.memo))

    # names and calls

    def named_by_lines(self) -> Any:
        module, name = self.line().decode("utf-8", "replace"), self.line().decode("utf-8", "replace")
        return self.named(module, name)

    def op_global(self) -> None:
        self.push(self.contain(self.named_by_lines()))

    def op_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.fail("names a global by something that is no string")
        self.push(self.contain(self.named(module, name)))

    def named(self, module: str, name: str) -> Any:
        module = _PYTHON2_MODULES.get(module, module)
        return f"torch.{name}" if module == "torch" and name in _TORCH_WORDS else Global(module, name)

    def extension(self, number: int) -> None:
        self.push(self.refuse(f"copyreg extension {number}"))

    def call(self, function: Any, arguments: Any, how: str) -> Any:
        if not isinstance(arguments, tuple):
            arguments = (arguments,)
        if isinstance(function, Refused):
            return self.refuse(function.name, how, arguments)
        if not isinstance(function, Global):
            self.fail(f"calls {repr_short(function)}")
        if (function.module, function.name) == ("copyreg", "_reconstructor") and arguments:
            return self.refuse(str(arguments[0]) if isinstance(arguments[0], Global) else "an object")
        known = CALLS.get((function.module, function.name))
        if known is None:
            return self.refuse(str(function), how, arguments)
        try:
            result = known(*arguments)
        except CheckpointError:
            raise
        except (TypeError, ValueError):  # not the call that this name is known for
            return self.refuse(str(function), how, arguments)
        if isinstance(result, Refused):
            self.refused.append(result)
        return self.computed(result)

    def op_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.call(function, arguments, "REDUCE"))

    def op_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.push(self.instance(kind, arguments))

    def op_newobj_ex(self) -> None:
        named, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        made = self.instance(kind, arguments)
        if isinstance(made, Refused) and isinstance(named, dict):
            made.items = named
        self.push(made)

    def instance(self, kind: Any, arguments: Any) -> Any:
        if isinstance(kind, Global) and (kind.module, kind.name) in CALLS:
            return self.call(kind, arguments, "NEWOBJ")
        name = kind.name if isinstance(kind, Refused) else str(kind) if isinstance(kind, Global) else repr_short(kind)
        return self.refuse(name, "", arguments if isinstance(arguments, tuple) else ())

    def op_inst(self) -> None:
        kind = self.named_by_lines()
        self.push(self.instance(kind, tuple(self.to_mark())))

    def op_obj(self) -> None:
        kind, *arguments = self.to_mark()
        self.push(self.instance(kind, tuple(arguments)))

    def op_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Refused):
            target.state = state
        elif isinstance(target, ArrayRef):
            set_array(target, state)
        elif isinstance(target, NumpyType):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
            if isinstance(order, str) and order in ("<", ">", "=", "|"):
                target.order = order
        elif not isinstance(target, (dict, list, set, TensorRef, StorageRef)):  # whose attributes are not data
            self.fail(f"sets the state of {repr_short(target)}")

    def persist(self, identity: Any) -> None:
        if self.persistent is None:
            self.push(self.refuse("a persistent id"))
        else:
            self.push(self.contain(self.persistent(identity)))

    def op_persistent(self) -> None:
        self.persist(self.stack.pop())

    def op_persistent_line(self) -> None:
        self.persist(self.line().decode("utf-8", "replace"))


_PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}
_TORCH_WORDS = {*SCALAR_TYPES, "per_tensor_affine", "per_channel_affine", "strided", "contiguous_format"}

Operation = Callable[[_Machine], object]


def _push(value: object) -> Operation:
    return lambda machine: machine.stack.append(value)


def _make(kind: type) -> Operation:
    return lambda machine: machine.push(machine.contain(kind()))


def _with(value: int, method: Callable[[_Machine, int], object]) -> Operation:
    return lambda machine: method(machine, value)


def _sized(size: int, method: Callable[[_Machine, int], object]) -> Operation:
    """``method`` of the number that the next ``size`` bytes hold."""
    return lambda machine: method(machine, machine.number(size))


def _decimal(method: Callable[[_Machine, int], object]) -> Operation:
    """``method`` of the number on the next line."""
    return lambda machine: method(machine, machine.decimal(machine.line()))


_M = _Machine
_OPCODES: dict[int, Operation] = {
    ord(code): operation
    for code, operation in {
        "\x80": _with(1, _M.take), "\x95": _M.op_frame, "N": _push(None), "\x88": _push(True), "\x89": _push(False),
        "I": _M.op_int_line, "L": _M.op_long_line, "J": _with(4, _M.integer), "K": _sized(1, _M.push),
        "M": _sized(2, _M.push), "\x8a": _sized(1, _M.integer), "\x8b": _sized(4, _M.integer),
        "F": _M.op_float_line, "G": _M.op_float,
        "\x8c": _sized(1, _M.text), "X": _sized(4, _M.text), "\x8d": _sized(8, _M.text), "V": _M.op_text_line,
        "C": _sized(1, _M.bytes_), "B": _sized(4, _M.bytes_), "\x8e": _sized(8, _M.bytes_),
        "\x96": _sized(8, _M.bytes_),
        "U": _sized(1, _M.old_text), "T": _sized(4, _M.old_text), "S": _M.op_old_text_line,
        "(": _M.op_mark, "0": _M.op_pop, "1": _M.op_pop_mark, "2": _M.op_dup,
        "]": _make(list), "}": _make(dict), ")": _push(()), "\x8f": _make(set), "l": _M.op_list, "t": _M.op_tuple,
        "\x85": _with(1, _M.short_tuple), "\x86": _with(2, _M.short_tuple), "\x87": _with(3, _M.short_tuple),
        "d": _M.op_dict, "\x91": _M.op_frozenset, "a": _M.op_append, "e": _M.op_appends,
        "s": _M.op_setitem, "u": _M.op_setitems, "\x90": _M.op_appends,
        "\x94": _M.op_memoize, "q": _sized(1, _M.memoize), "r": _sized(4, _M.memoize), "p": _decimal(_M.memoize),
        "h": _sized(1, _M.recall), "j": _sized(4, _M.recall), "g": _decimal(_M.recall),
        "c": _M.op_global, "\x93": _M.op_stack_global, "R": _M.op_reduce, "\x81": _M.op_newobj,
        "\x92": _M.op_newobj_ex, "i": _M.op_inst, "o": _M.op_obj, "b": _M.op_build,
        "Q": _M.op_persistent, "P": _M.op_persistent_line,
        "\x82": _sized(1, _M.extension), "\x83": _sized(2, _M.extension), "\x84": _sized(4, _M.extension),
    }.items()
}  # fmt: skip
