"""Tensors out of ``torch.save`` and ``joblib.dump``, without running what the files say.

All of them are pickles of dictionaries, lists, strings, numbers and tensors; a tensor is a call
that makes a view of a storage. They differ in where the bytes of the storages are:

- ``torch.save`` puts each into an entry of a zip archive, next to the pickle;
- before its zip format, it appended them to the pickle;
- joblib's dumps of state dicts, as which GHN-3 is published, have each of them as a bytes literal
  in the pickle, which is a file of that older format again. The whole may be compressed.

:class:`~ghn_fast._system.plain_pickle.PlainUnpickler` reads the pickle, for which ``_NAMES`` is
all that a file may name. So first there are views and storages without memory, whose sizes can be
compared to the file's; then what is wanted is read, straight into the memory of its tensors.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import math
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ghn_fast._system.bombs import most_inside
from ghn_fast._system.errors import FileError, failures, shown
from ghn_fast._system.plain_pickle import PlainUnpickler, Source
from ghn_fast.checkpoint.errors import CheckpointError

# What torch.save wrote before its zip format, and still writes for a pickled storage:
# a pickle of this number, then the format's version.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_VERSION = 1001
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_MOST_DIMS = 64
_MOST_USES = 16
"""Times that the values of a storage may be in tensors; tied weights are there more than once."""
_DEEPEST = 32
_MOST_VALUES = 500_000


def load_tensor_pickle(path: Path, part: Callable[[Any], Any] = lambda content: content) -> Any:
    """What a file of ``torch.save`` or ``joblib.dump`` holds: containers, numbers and tensors.

    Args:
        path: of a zip archive of ``torch.save``, a file of its older format, or a pickle of
            protocol 2 to 5, plain or compressed by joblib (zlib, gzip, bz2, lzma, xz).
        part: of the content, what is wanted. Of a zip archive the rest is not read.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors and plain values.
    """
    with failures(path, CheckpointError), path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
        if head.startswith(ZIP_MAGIC):
            with _zip_content(path) as content:
                return _taken(part(content))
        file.seek(0)
        stream = _decompressed(head, file)
        most = path.stat().st_size if stream is file else most_inside(path)
        source = Source(stream, most)
        if head == LEGACY_MAGIC:
            source.read(len(head))
            content = _legacy_content(source)
        else:
            content = _TensorUnpickler(source).load()
        source.finish()
        return _taken(part(content))


def is_tensor_pickle(head: bytes) -> bool:
    """Whether a file that starts so can be one of those."""
    return head.startswith((b"\x80", ZIP_MAGIC, _LZ4_MAGIC, *_DECOMPRESSORS))


# ---------------------------------------------------------------- storages and views of them


@dataclass
class _Storage:
    """The memory that tensors are views of. It is there once a file has been found to fill it."""

    dtype: torch.dtype
    numel: int
    fill: Callable[[memoryview], None] | None = None
    used: int = 0

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @cached_property
    def data(self) -> Tensor:
        if self.fill is None:
            raise FileError("the data of a tensor are missing")
        data = torch.empty(self.numel, dtype=self.dtype, device="cpu")
        self.fill(memoryview(data.view(torch.uint8).numpy().data))
        return data


@dataclass(frozen=True)
class _View:
    """A tensor before its storage is read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        self.storage.used += math.prod(self.size)
        if self.storage.used > _MOST_USES * self.storage.numel:
            raise FileError("its tensors are together much larger than its data")
        return torch.as_strided(self.storage.data, self.size, self.stride, self.offset)


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_others: Any) -> _View:
    if type(storage) is not _Storage:
        raise FileError(f"the data of a tensor are {shown(storage)}")
    if not (type(size) is type(stride) is tuple and len(size) == len(stride) <= _MOST_DIMS):
        raise FileError("a tensor has sizes and strides that do not fit")
    if any(type(value) is not int or value < 0 for value in (offset, *size, *stride)):
        raise FileError("a tensor has a size, a stride or an offset that is no natural number")
    numel = math.prod(size)
    if numel > storage.numel:
        raise FileError(f"a tensor of {shown(numel)} values is larger than its data")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel > 0 and last >= storage.numel:
        raise FileError("a tensor is out of the bounds of its data")
    return _View(storage, offset, size, stride)


def _parameter(data: Any, *_others: Any) -> _View:
    if type(data) is not _View:
        raise FileError(f"the data of a parameter are {shown(data)}")
    return data


def _storage_of_bytes(literal: Any) -> _Storage:
    if type(literal) is not _Storage:
        raise FileError(f"the data of a tensor are {shown(literal)}")
    return literal


def _empty_dict() -> dict[str, Any]:
    return {}


_NAMES: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): _empty_dict,
    ("collections", "OrderedDict"): _empty_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage_of_bytes,
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


class _TensorUnpickler(PlainUnpickler):
    """Reads plain values and views.

    Attributes:
        storages: without memory, by the keys that the file has for them.
    """

    names = _NAMES

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _location, numel, *view = identity
        if kind != "storage" or type(dtype) is not torch.dtype or view not in ([], [None]):
            raise FileError("a storage is described in an unknown way")
        if type(key) is not str or type(numel) is not int or numel < 0:
            raise FileError(f"a storage has {shown(numel)} elements")
        storage = self.storages.setdefault(key, _Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise FileError("a storage is described twice, and differently")
        return storage

    def literal(self, size: int) -> _Storage:
        """A bytes literal: the only one that tensors have is a saved storage."""
        end = self.source.remaining - size
        if self.source.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
            raise FileError("it has bytes that are no tensor's data")
        storage = _storage_of_bytes(_legacy_content(self.source))
        if self.source.remaining != end:
            raise FileError("a storage is longer or shorter than its header says")
        return storage

    def build(self, value: Any, state: Any) -> None:
        """The attributes of an OrderedDict (a state dict's version numbers) are dropped."""
        if type(value) is not dict:
            raise FileError(f"it changes {shown(value)}")


def _taken(content: Any) -> Any:
    """The content with tensors for views. It may be nested without end, or repeat itself."""
    values = itertools.count()

    def take(value: Any, depth: int) -> Any:
        if depth > _DEEPEST or next(values) > _MOST_VALUES:
            raise FileError("it is nested too deeply, or has too many values")
        kind = type(value)
        if kind is _View:
            return value.tensor()
        if kind is dict:
            return {key: take(item, depth + 1) for key, item in value.items()}
        if kind in (list, tuple):
            return kind(take(item, depth + 1) for item in value)
        if value is not None and kind not in (str, int, float, bool):
            raise FileError(f"it holds {shown(value)}, which is neither a tensor nor a plain value")
        return value

    return take(content, 0)


# ---------------------------------------------------------------- where the bytes are


@contextmanager
def _zip_content(path: Path) -> Iterator[Any]:
    """The content of a zip archive, whose storages can be read while it is open."""
    with zipfile.ZipFile(path) as archive:
        entries = _checked(archive, path.stat().st_size)
        top = next(iter(entries), "").partition("/")[0]
        if f"{top}/data.pkl" not in entries:
            raise FileError("it is a zip archive, but not one of torch.save: data.pkl is missing")
        order = f"{top}/byteorder"
        if order in entries and archive.read(order).decode() != sys.byteorder:
            raise FileError("the tensors were written on a machine of another byte order")
        with archive.open(f"{top}/data.pkl") as stream:
            source = Source(stream, entries[f"{top}/data.pkl"].file_size)  # type: ignore[arg-type]
            unpickler = _TensorUnpickler(source)
            content = unpickler.load()
            source.finish()
        for key, storage in unpickler.storages.items():
            entry = entries.get(f"{top}/data/{key}")
            if entry is None or entry.file_size != storage.nbytes:
                raise FileError(
                    f"the storage {shown(key)} has {shown(storage.nbytes)} bytes, its record "
                    f"{entry and entry.file_size}"
                )
            storage.fill = _filler(archive, entry)
        yield content


def _checked(archive: zipfile.ZipFile, size: int) -> Mapping[str, zipfile.ZipInfo]:
    """The entries by name: each once, as it is, and together no larger than the file."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise FileError("its archive has two entries of one name")
    for name, entry in entries.items():
        encrypted = entry.flag_bits & 1
        if entry.compress_type != zipfile.ZIP_STORED or encrypted:
            raise FileError(f"its entry {shown(name)} is compressed or encrypted; save it anew")
        if entry.file_size != entry.compress_size:
            raise FileError(f"its entry {shown(name)} has two sizes")
    if sum(entry.file_size for entry in entries.values()) > size:
        raise FileError("its entries are together larger than the file")
    return entries


def _filler(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[memoryview], None]:
    def fill(buffer: memoryview) -> None:
        with archive.open(entry) as stream:  # which compares the checksum at its end
            Source(stream, entry.file_size).fill(buffer)  # type: ignore[arg-type]

    return fill


def _legacy_content(source: Source) -> Any:
    """What follows the magic number in PyTorch's format before zip."""
    version, system = PlainUnpickler(source).load(), PlainUnpickler(source).load()
    if version != _LEGACY_VERSION or type(system) is not dict:
        raise FileError("it is not of a known version of torch.save's format")
    if system.get("little_endian") is not (sys.byteorder == "little"):
        raise FileError("the tensors were written on a machine of another byte order")
    unpickler = _TensorUnpickler(source)
    content, storages = unpickler.load(), unpickler.storages
    keys = PlainUnpickler(source).load()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise FileError("its list of storages is none")
    if sorted(keys) != sorted(storages):
        raise FileError("its storages disagree with its tensors")
    for key in keys:
        storage = storages[key]
        if struct.unpack("<q", source.read(8))[0] != storage.numel:
            raise FileError("a storage disagrees with its header")
        source.claim(storage.nbytes)
        storage.fill = source.fill
        storage.data  # noqa: B018 - it is read here, as what follows stands behind it
    return content


class _Inflated(RawIOBase):
    """A file of one zlib or gzip stream, read as what it holds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either, as the header says

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
        if self._inflate.unused_data or self._file.read(1):
            raise FileError("it goes on behind its end")
        return 0


_DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    b"x": lambda file: BufferedReader(_Inflated(file)),
    b"\x1f\x8b": lambda file: BufferedReader(_Inflated(file)),
    b"BZ": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"]\x00": lzma.LZMAFile,
}


def _decompressed(head: bytes, file: BinaryIO) -> BinaryIO:
    if head.startswith(_LZ4_MAGIC):
        raise FileError(
            "it is compressed with lz4, which is not supported; write it again with "
            "joblib.dump(joblib.load(file), file, compress=0)"
        )
    openers = [opener for magic, opener in _DECOMPRESSORS.items() if head.startswith(magic)]
    opened: BinaryIO = openers[0](file) if openers else file
    return opened
