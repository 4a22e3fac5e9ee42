"""Dictionaries of tensors out of pickles and joblib dumps, without running the pickle.

GHN-3 is published as ``joblib.dump(state_dict)``. Such a file is a pickle, possibly compressed
as a whole, in which every tensor is a call of PyTorch's own rebuilding functions around a
``torch.save`` of its storage. A pickle is a program, and the usual interpreter calls whatever it
names. The interpreter here has only the instructions that a dictionary of tensors needs, and a
name in the file is never imported: it either is a key of ``_CALLS`` or ``_STORAGE_TYPES`` below
or it ends the reading with an error that says which name it was.

Storages are read straight into the memory of their tensors, so that loading needs the size of
the tensors and no more.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ghn_fast.checkpoint.errors import CheckpointError

# What torch.save wrote before its zip format, and still writes for a pickled storage:
# a pickle of this number, then the format's version.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LEGACY_VERSION = 1001
_LONGEST_NAME = 1024

_STORAGE_TYPES = {
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
}


def load_tensor_pickle(path: Path) -> Any:
    """What a pickle or joblib dump holds: dictionaries, lists, numbers, strings and tensors.

    Args:
        path: of a pickle of protocol 2 to 5, plain or compressed by joblib (zlib, gzip, bz2,
            lzma, xz).

    Raises:
        CheckpointError: the file is damaged, or holds more than a dictionary of tensors.
    """
    try:
        with path.open("rb") as file, _decompressed(file, path) as stream:
            size = path.stat().st_size if stream is file else None
            return _Machine(_Source(stream, size)).run()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


# What the instructions of a damaged pickle raise: an empty stack, an unknown memo entry, a key
# that cannot be one, a size that no memory can hold.
_DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RuntimeError,
    OSError,
    struct.error,
)


# ---------------------------------------------------------------- reading bytes


def is_compressed_pickle(head: bytes) -> bool:
    """Whether a file that starts so is one of joblib's compressed containers."""
    return any(head.startswith(magic) for magic in _DECOMPRESSORS) or head.startswith(_LZ4_MAGIC)


class _ZlibReader(io.RawIOBase):
    """A file of one zlib stream, read as what it holds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(1 << 16)
            if not data:
                raise EOFError("the compressed data end early")
            piece = self._inflate.decompress(data, len(view))
            if piece:
                view[: len(piece)] = piece
                return len(piece)
        return 0


_DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"x": lambda file: io.BufferedReader(_ZlibReader(file)),
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZ": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"]\x00": lzma.LZMAFile,
}
_LZ4_MAGIC = b"\x04\x22\x4d\x18"


def _decompressed(file: BinaryIO, path: Path) -> BinaryIO:
    head = file.read(8)
    file.seek(0)
    if head.startswith(_LZ4_MAGIC):
        raise CheckpointError(
            "the file is compressed with lz4, which is not supported; write it again with "
            f"joblib.dump(joblib.load({str(path)!r}), ..., compress=0)"
        )
    for magic, opener in _DECOMPRESSORS.items():
        if head.startswith(magic):
            opened: BinaryIO = opener(file)
            return opened
    return file


class _Source:
    """A stream that is read forward, with the number of bytes that it may still give."""

    def __init__(self, stream: BinaryIO, remaining: int | None) -> None:
        self.stream = stream
        self.remaining = remaining

    def take(self, size: int) -> bytes:
        self._claim(size)
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError(f"it ends {size - len(data)} bytes early")
        return data

    def unpack(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def line(self) -> str:
        data = self.stream.readline(_LONGEST_NAME)
        if not data.endswith(b"\n"):
            raise EOFError("it ends inside of a line")
        self._claim(len(data))
        return data[:-1].decode()

    def fill(self, tensor: Tensor) -> None:
        """Reads the whole of a contiguous 1-D tensor."""
        view = memoryview(tensor.view(torch.uint8).numpy().data)
        self._claim(len(view))
        done = 0
        while done < len(view):
            count = self.stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"it ends {len(view) - done} bytes early")
            done += count

    def part(self, size: int) -> _Source:
        """The next ``size`` bytes as a source of their own, which has to be read to its end."""
        self._claim(size)
        return _Source(self.stream, size)

    def _claim(self, size: int) -> None:
        if self.remaining is not None:
            if size > self.remaining:
                raise EOFError(f"it ends {size - self.remaining} bytes early")
            self.remaining -= size


# ---------------------------------------------------------------- what the names stand for


@dataclass(frozen=True)
class _Storage:
    """The memory that tensors are views of."""

    data: Tensor


@dataclass(frozen=True)
class _StorageHeader:
    """What precedes the data of a storage."""

    dtype: torch.dtype
    key: str
    numel: int


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def _storage(storage: Any) -> _Storage:
    if not isinstance(storage, _Storage):
        raise CheckpointError(f"the data of a tensor are a {type(storage).__name__}")
    return storage


def _tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """A view of a storage; as_strided refuses one that would leave it."""
    return torch.as_strided(_storage(storage).data, size, stride, offset)


def _parameter(data: Any, requires_grad: bool = False, hooks: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError(f"the data of a parameter are a {type(data).__name__}")
    return data


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}


@dataclass(frozen=True)
class _Name:
    """A name of the allow-list. Data until REDUCE looks it up."""

    module: str
    name: str


def _allowed(module: str, name: str) -> _Name:
    if (module, name) not in _CALLS and (module, name) not in _STORAGE_TYPES:
        raise CheckpointError(
            f"the file asks for {module}.{name}, which a dictionary of tensors does not need. "
            "Nothing of the file was run; do not load it by other means unless you trust "
            "where it comes from"
        )
    return _Name(module, name)


def _storage_header(identity: Any) -> _StorageHeader:
    kind, name, key, _location, numel, view = identity
    if kind != "storage" or view is not None or not isinstance(name, _Name):
        raise CheckpointError("a storage is described in an unknown way")
    if not isinstance(numel, int) or numel < 0:
        raise CheckpointError(f"a storage has {numel!r} elements")
    return _StorageHeader(_STORAGE_TYPES[name.module, name.name], key, numel)


def _read_storage(source: _Source) -> _Storage:
    """A torch.save of a storage in PyTorch's format before zip, after its magic number."""
    version = _Machine(source).run()
    system = _Machine(source).run()
    header = _Machine(source).run()
    keys = _Machine(source).run()
    if version != _LEGACY_VERSION or not isinstance(header, _StorageHeader):
        raise CheckpointError("the data of a tensor are not a storage of a known format")
    if system.get("little_endian") != (sys.byteorder == "little"):
        raise CheckpointError("the tensors were written on a machine of another byte order")
    if keys != [header.key] or source.unpack("<q") != header.numel:
        raise CheckpointError("a storage disagrees with its header")
    if header.numel * header.dtype.itemsize != source.remaining:
        raise CheckpointError("a storage is longer or shorter than its header says")
    data = torch.empty(header.numel, dtype=header.dtype, device="cpu")
    source.fill(data)
    return _Storage(data)


# ---------------------------------------------------------------- the instructions


class _Machine:
    """One pickle: a stack of values, marks in it, and a memo of values seen before.

    See the module ``pickletools`` for what each instruction means.
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self._source.take(1)
            if opcode == pickle.STOP:
                return self._stack.pop()
            instruction = _INSTRUCTIONS.get(opcode)
            if instruction is None:
                raise CheckpointError(
                    f"the file has the pickle instruction {opcode!r}, which a dictionary of "
                    "tensors does not need"
                )
            instruction(self)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise CheckpointError(f"{kind.__name__} expected, not {type(top).__name__}")
        return top

    def _last(self, count: int) -> tuple[Any, ...]:
        if count > len(self._stack):
            raise IndexError("the stack is empty")
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        return values

    def skip(self, size: int) -> None:
        """Protocol numbers and lengths of frames say nothing that reading forward needs."""
        self._source.take(size)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def tuple_since_mark(self) -> None:
        self._push(tuple(self._since_mark()))

    def set_item(self) -> None:
        self._set_items(list(self._last(2)))

    def set_items(self) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, values: list[Any]) -> None:
        self._top(dict).update(zip(values[::2], values[1::2], strict=True))

    def append(self) -> None:
        values = self._last(1)
        self._top(list).extend(values)

    def appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def text(self, layout: str) -> None:
        self._push(self._source.take(self._source.unpack(layout)).decode("utf-8", "surrogatepass"))

    def long(self) -> None:
        size = self._source.unpack("<B")
        self._push(int.from_bytes(self._source.take(size), "little", signed=True))

    def storage(self, layout: str) -> None:
        """A bytes literal: the only one that a dictionary of tensors has is a saved storage."""
        part = self._source.part(self._source.unpack(layout))
        if part.remaining is not None and part.remaining < len(LEGACY_MAGIC):
            raise CheckpointError("the file holds bytes that are no tensor's data")
        if part.take(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
            raise CheckpointError("the file holds bytes that are no tensor's data")
        self._push(_read_storage(part))

    def name(self) -> None:
        self._push(_allowed(self._source.line(), self._source.line()))

    def name_from_stack(self) -> None:
        module, name = self._last(2)
        self._push(_allowed(str(module), str(name)))

    def call(self) -> None:
        function, arguments = self._last(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise CheckpointError(f"the file calls a {type(function).__name__}")
        self._push(_CALLS[function.module, function.name](*arguments))

    def attributes(self) -> None:
        """The attributes of an OrderedDict (a state dict's version numbers) are dropped."""
        self._last(1)
        self._top(dict)

    def persistent(self) -> None:
        self._push(_storage_header(self._stack.pop()))

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def put(self, layout: str) -> None:
        self._memo[self._source.unpack(layout)] = self._stack[-1]

    def get(self, layout: str) -> None:
        self._push(self._memo[self._source.unpack(layout)])


def _constant(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(make())


def _number(layout: str) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(machine._source.unpack(layout))


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(machine._last(count))


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda machine: machine.skip(1),
    pickle.FRAME: lambda machine: machine.skip(8),
    pickle.MARK: _Machine.mark,
    pickle.NONE: _constant(lambda: None),
    pickle.NEWTRUE: _constant(lambda: True),
    pickle.NEWFALSE: _constant(lambda: False),
    pickle.EMPTY_DICT: _constant(dict),
    pickle.EMPTY_LIST: _constant(list),
    pickle.EMPTY_TUPLE: _constant(tuple),
    pickle.BININT: _number("<i"),
    pickle.BININT1: _number("<B"),
    pickle.BININT2: _number("<H"),
    pickle.BINFLOAT: _number(">d"),
    pickle.LONG1: _Machine.long,
    pickle.SHORT_BINUNICODE: lambda machine: machine.text("<B"),
    pickle.BINUNICODE: lambda machine: machine.text("<I"),
    pickle.BINUNICODE8: lambda machine: machine.text("<Q"),
    pickle.SHORT_BINBYTES: lambda machine: machine.storage("<B"),
    pickle.BINBYTES: lambda machine: machine.storage("<I"),
    pickle.BINBYTES8: lambda machine: machine.storage("<Q"),
    pickle.TUPLE: _Machine.tuple_since_mark,
    pickle.TUPLE1: _tuple_of(1),
    pickle.TUPLE2: _tuple_of(2),
    pickle.TUPLE3: _tuple_of(3),
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: _Machine.set_items,
    pickle.APPEND: _Machine.append,
    pickle.APPENDS: _Machine.appends,
    pickle.GLOBAL: _Machine.name,
    pickle.STACK_GLOBAL: _Machine.name_from_stack,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.attributes,
    pickle.BINPERSID: _Machine.persistent,
    pickle.MEMOIZE: _Machine.memoize,
    pickle.BINPUT: lambda machine: machine.put("<B"),
    pickle.LONG_BINPUT: lambda machine: machine.put("<I"),
    pickle.BINGET: lambda machine: machine.get("<B"),
    pickle.LONG_BINGET: lambda machine: machine.get("<I"),
}
