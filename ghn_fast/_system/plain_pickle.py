"""Pickles of plain values, of which nothing is ever run.

A pickle is a program, and the usual machine for it imports and calls whatever the program names.
:class:`PlainUnpickler` is the standard library's machine, the one written in Python: the one in C
can be held to neither some of the instructions nor some of the keys. What is allowed:

- the instructions of ``_KEPT`` and those defined below. They make None, booleans, numbers,
  strings, tuples, lists and dictionaries;
- names to which a subclass has given a function of its own. Nothing is imported;
- keys that are strings or numbers of 32 bits: the hash of a nested tuple recurses to its depth,
  and numbers beyond can be chosen to have all the same hash;
- so many readings from the file, which bounds the time and the number of values, and no more
  bytes than the file has, or than may come out of it where it is compressed.

Values may still be nested to any depth, and refer to one another: whoever goes through them has
to bound both.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

from ghn_fast._system.errors import FileError, shown

MOST_READINGS = 2_000_000
"""About two for an instruction. 10,000 tensors take 500,000, in a dump of joblib 1,400,000."""
_LONGEST_NAME = 1024
_PIECE = 2**24
_KEPT = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.MEMOIZE, pickle.BINPUT),
    *(pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.BININT, pickle.BININT1),
    *(pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.SHORT_BINUNICODE, pickle.BINUNICODE),
    *(pickle.BINUNICODE8, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)


class Source:
    """A stream that is read forward, by no more than ``remaining`` bytes."""

    def __init__(self, stream: BinaryIO, remaining: int) -> None:
        self.stream = stream
        self.remaining = remaining
        self._readings = MOST_READINGS

    def read(self, size: int) -> bytes:
        self._readings -= 1
        if self._readings < 0:
            raise FileError("it has more instructions than any file of its kind")
        self.claim(size)
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError(f"it ends {size - len(data)} bytes early")
        return data

    def readline(self) -> bytes:
        data = self.stream.readline(_LONGEST_NAME)
        if not data.endswith(b"\n"):
            raise EOFError("it ends inside of a name")
        self.claim(len(data))
        return data

    def fill(self, buffer: memoryview) -> None:
        """Reads so many bytes; :meth:`claim` them before there is memory for them."""
        done = 0
        while done < len(buffer):
            # In pieces, as some streams make a copy of what they read.
            count = self.stream.readinto(buffer[done : done + _PIECE])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"it ends {len(buffer) - done} bytes early")
            done += count

    def claim(self, size: int) -> None:
        """Says that so many bytes will be read."""
        if size > self.remaining:
            raise EOFError(f"it ends {size - self.remaining} bytes early")
        self.remaining -= size

    def finish(self) -> None:
        """Reads what is left, which is nothing but the checksums of compressed files."""
        if self.stream.read(1):
            raise FileError("it goes on behind its end")


class Instructions(dict[int, Callable[..., None]]):
    """The methods of instructions, and an error for every other one."""

    def __missing__(self, code: int) -> Callable[..., None]:
        raise FileError(f"it has the pickle instruction {bytes([code])!r}, which it does not need")


class PlainUnpickler(pickle._Unpickler):
    """Reads plain values and the results of functions of its own.

    Attributes:
        names: of each name that a file may have, what it stands for. Functions get what the file
            gives them, and have to check it.
    """

    dispatch = Instructions({code[0]: pickle._Unpickler.dispatch[code[0]] for code in _KEPT})
    names: ClassVar[Mapping[tuple[str, str], Any]] = {}
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, source: Source) -> None:
        super().__init__(source, encoding="latin1")
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise FileError(
                f"it asks for {module}.{name}, which it does not need. Nothing of the file was "
                "run; do not load it by other means unless you trust where it comes from"
            )
        return self.names[module, name]

    def literal(self, size: int) -> Any:
        """The value of so many bytes of the file."""
        raise FileError("it has bytes, which it does not need")

    def build(self, value: Any, state: Any) -> None:
        """Gives a value its state."""
        raise FileError(f"it changes a {type(value).__name__}")

    def load_frame(self) -> None:
        self.source.read(8)  # lengths of frames say nothing that reading forward needs

    dispatch[pickle.FRAME[0]] = load_frame

    def load_bytes(self, layout: str) -> None:
        size: int = struct.unpack(layout, self.source.read(struct.calcsize(layout)))[0]
        self.stack.append(self.literal(size))

    dispatch[pickle.SHORT_BINBYTES[0]] = lambda self: self.load_bytes("<B")
    dispatch[pickle.BINBYTES[0]] = lambda self: self.load_bytes("<I")
    dispatch[pickle.BINBYTES8[0]] = lambda self: self.load_bytes("<Q")

    def load_append(self) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._top(list).extend(items)

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise FileError(f"it calls {shown(function)}")
        self.stack.append(function(*arguments))

    dispatch[pickle.REDUCE[0]] = load_call
    dispatch[pickle.NEWOBJ[0]] = load_call

    def load_build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    dispatch[pickle.BUILD[0]] = load_build

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise FileError(f"it adds to {shown(self.stack[-1])}")
        return self.stack[-1]

    def _set(self, items: list[Any]) -> None:
        values = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (type(key) is str or (type(key) is int and -(2**31) <= key < 2**31)):
                raise FileError(f"it has {shown(key)} as a key")
            values[key] = value
