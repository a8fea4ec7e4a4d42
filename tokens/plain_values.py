"""A reader of pickles that hold plain values: numbers, strings, bytes, lists, tuples, dictionaries.

It is a machine of its own over the opcodes that pickletools names. It knows none that imports, calls or
builds anything, so there is nothing in it that hostile bytes could start. Time and memory grow with the
bytes alone: keys are not containers, whose hash could take exponential time or recurse without end. What is
returned has no cycles and few values: containers that share others could hold 2^100 in 250 bytes, and whoever
walks through them, as ==, copying and printing do, would never return."""

import pickletools
import struct
from pathlib import Path
from typing import Any

from base.errors import InputError, one_line

MAX_OPCODES = 2_000_000  # 2 s; a vocabulary of all characters of Chinese takes 600,000

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Their argument is the value
ARGUMENTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "STRING BINSTRING SHORT_BINSTRING SHORT_BINBYTES BINBYTES".split()
)
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
GETS = ("GET", "BINGET", "LONG_BINGET")
KEYS = (str, bytes, int, float, type(None))  # a bool is an int
MAX_VALUES = 1_000_000  # that a walk through the value meets
MAX_INT_KEY = 2**32  # of larger ones as many as one likes have one hash


class NotPlain(Exception):
    """The bytes hold something other than plain values, or are damaged."""


def plain_values(content: bytes, where: Path) -> Any:
    """The value that a pickle of protocol 0 to 5 holds. Raises InputError, which begins with `where`, for
    anything but plain values."""
    try:
        value = Machine().run(content)
        if isinstance(value, (dict, list, tuple)):
            check_size(value)
        return value
    # pickletools raises ValueError, and struct.error where a number is cut off
    except (NotPlain, ValueError, struct.error) as error:
        raise InputError(
            f"{where} holds more than plain values, or is damaged ({one_line(error)[:200]}), and was not "
            "executed: remove it"
        ) from None


def check_size(value: Any) -> None:
    """Raises NotPlain where a walk through the value meets more than MAX_VALUES, as in one that holds itself."""
    met, waiting = 1, [value]
    while waiting:
        container = waiting.pop()
        inside = container.values() if isinstance(container, dict) else container
        met += len(inside)
        if met > MAX_VALUES:
            raise NotPlain(f"more than {MAX_VALUES:,} values, those that are shared counted each time")
        waiting += [part for part in inside if isinstance(part, (dict, list, tuple))]


class Machine:
    """The stack, its marks and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for n, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if n >= MAX_OPCODES:
                raise NotPlain(f"more than {MAX_OPCODES:,} opcodes")
            name = opcode.name
            if name in ARGUMENTS:
                self.stack.append(argument)
            elif name in PUTS:
                self.put(len(self.memo) if name == "MEMOIZE" else argument, n)
            elif name in GETS:
                if argument not in self.memo:
                    raise NotPlain(f"memo index {argument} is empty")
                self.stack.append(self.memo[argument])
            elif name == "MARK":
                self.marks.append(len(self.stack))
            elif name == "STOP":
                return self.pop(1)[0]
            elif name not in ("PROTO", "FRAME"):
                self.build(name)
        raise NotPlain("no end")

    def build(self, name: str) -> None:
        """The opcodes that make containers and fill them."""
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self.stack.append(tuple(self.pop(TUPLES[name])))
        elif name == "TUPLE":
            self.stack.append(tuple(self.pop_to_mark()))
        elif name == "LIST":
            self.stack.append(self.pop_to_mark())
        elif name == "DICT":
            items = self.pop_to_mark()
            self.stack.append({})
            self.set_items(items)
        elif name == "APPEND":
            self.extend(self.pop(1))
        elif name == "APPENDS":
            self.extend(self.pop_to_mark())
        elif name == "SETITEM":
            self.set_items(self.pop(2))
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        else:
            raise NotPlain(f"opcode {name}")

    def pop(self, n: int) -> list[Any]:
        """The last n values since the last mark."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < n:
            raise NotPlain("the stack is empty")
        values = self.stack[-n:]
        del self.stack[-n:]
        return values

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise NotPlain("no mark")
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise NotPlain(f"no {kind.__name__} to fill")
        return self.stack[-1]

    def put(self, index: int, so_far: int) -> None:
        if index > so_far:
            raise NotPlain(f"memo index {index} after {so_far} opcodes")
        if not self.stack:
            raise NotPlain("the stack is empty")
        self.memo[index] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise NotPlain("a key without a value")
        for key in items[::2]:
            if not isinstance(key, KEYS) or (isinstance(key, int) and abs(key) > MAX_INT_KEY):
                raise NotPlain(f"a key of type {type(key).__name__} or of its size")
        target.update(zip(items[::2], items[1::2], strict=True))
