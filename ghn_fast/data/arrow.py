"""Arrow files, as ``datasets`` writes them: streams of messages, in either of Arrow's two formats.

What is not compressed is not read but mapped, whatever its size. Buffers that are compressed come
into memory together, at the sizes that stand before each of them, so these are added up before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghn_fast._system.bombs import most_inside, refuse_if

_FILE_MAGIC = b"ARROW1\0\0"
"""Before the stream, where it is a file of the format that has a footer behind it."""
# Places of fields in Arrow's tables (format/Message.fbs of apache/arrow).
_KIND, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DATA = 1
_BUFFERS, _COMPRESSION = 2, 3


def arrow_files(folder: Path) -> list[Path]:
    """The parts of what ``datasets.Dataset.save_to_disk`` wrote; none if it is no such folder."""
    if not (folder / "state.json").is_file():
        return []
    return sorted(folder.glob("data-*.arrow")) or sorted(folder.glob("dataset.arrow"))


def arrow_schema(path: Path) -> Any:
    import pyarrow.ipc

    return pyarrow.ipc.open_stream(_stream(path)).schema


def read_arrow(path: Path, columns: Sequence[str]) -> Any:
    """A table of some columns, which lie in the file.

    Raises:
        FileError: what is in it is far larger than the file.
        OSError, ValueError: it is not one, or its values lie outside of it.
    """
    import pyarrow.ipc

    left = most_inside(path)
    for message in pyarrow.ipc.MessageReader.open_stream(_stream(path)):
        left -= sum(_stated_sizes(message))
        refuse_if(left < 0)
    table = pyarrow.ipc.open_stream(_stream(path)).read_all().select(columns)
    table.validate(full=True)
    return table


def _stream(path: Path) -> Any:
    import pyarrow

    stream = pyarrow.memory_map(str(path))
    if stream.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
        stream.seek(0)
    return stream


def _stated_sizes(message: Any) -> Iterator[int]:
    """Bytes of each compressed buffer without compression."""
    metadata = memoryview(message.metadata)
    batch = _batch(metadata)
    if not batch or not _field(metadata, batch, _COMPRESSION):
        return
    buffers = _behind(metadata, _field(metadata, batch, _BUFFERS))
    (count,) = struct.unpack_from("<I", metadata, buffers)
    body = memoryview(message.body)
    for offset, length in struct.iter_unpack("<qq", metadata[buffers + 4 :][: 16 * count]):
        if length:
            # -1 where the buffer is as it is
            yield max(struct.unpack_from("<q", body, offset)[0], 0)


def _batch(metadata: memoryview) -> int:
    """Where the table of a message's record batch is; 0 where it has none."""
    message = _behind(metadata, 0)
    kind = metadata[place] if (place := _field(metadata, message, _KIND)) else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return 0
    header = _behind(metadata, _field(metadata, message, _HEADER))
    if kind == _RECORD_BATCH:
        return header
    return _behind(metadata, _field(metadata, header, _DATA))


def _field(metadata: memoryview, table: int, number: int) -> int:
    """Where a field of a table of FlatBuffers is; 0 where it is left out."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    (size,) = struct.unpack_from("<H", metadata, fields)
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, fields + place)[0] if place < size else 0
    return table + offset if offset else 0


def _behind(metadata: memoryview, place: int) -> int:
    """Where what a place refers to is."""
    return int(place + struct.unpack_from("<I", metadata, place)[0])
