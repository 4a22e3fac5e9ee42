"""Encoded pictures of any number, read from Arrow files through the operating system's memory map.

Only the pages that are looked at are in memory. Arrow files, as ``datasets`` writes them, are
mapped as they are; Parquet files are compressed, and are written as Arrow once, into
``$XDG_CACHE_HOME/ghn_fast`` (``~/.cache/ghn_fast``).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from ghn_fast._system.files import replace
from ghn_fast.data.encoded import Row, without_picture
from ghn_fast.data.errors import DataError
from ghn_fast.data.parquet import open_parquet


class MappedItems(Sequence[Row]):
    """Pictures in Arrow columns, one for each file, and which of them in which order."""

    def __init__(self, columns: Sequence[Any], files: Sequence[Path], indices: Tensor) -> None:
        self.columns = columns
        self.files = files
        self.indices = indices
        self._ends = list(itertools.accumulate(len(column) for column in columns))

    @classmethod
    def of(cls, columns: Sequence[Any], files: Sequence[Path]) -> MappedItems:
        """All pictures of columns of structs with a field ``bytes``.

        Raises:
            DataError: a row has no picture.
        """
        content = [_content(*part) for part in zip(columns, files, strict=True)]
        return cls(content, files, torch.arange(sum(len(column) for column in columns)))

    def take(self, positions: Tensor) -> MappedItems:
        return MappedItems(self.columns, self.files, self.indices[positions])

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, position: int) -> Row: ...
    @overload
    def __getitem__(self, position: slice) -> MappedItems: ...
    def __getitem__(self, position: int | slice) -> Row | MappedItems:
        if isinstance(position, slice):
            return MappedItems(self.columns, self.files, self.indices[position])
        index = int(self.indices[position])
        part = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[part - 1] if part else 0)
        return Row(self.files[part], row, self.columns[part][row].as_py())


def _content(column: Any, path: Path) -> Any:
    """The bytes of the pictures of a column."""
    import pyarrow.compute

    content = pyarrow.compute.struct_field(column, "bytes")
    if content.null_count:
        row = pyarrow.compute.index(content.is_null(), True).as_py()
        raise DataError(f"{path}: {without_picture(row)}")
    return content


def as_arrow(path: Path, columns: Sequence[str]) -> Path:
    """An Arrow file of some columns of a Parquet file, written once.

    Raises:
        OSError, ValueError: it cannot be read or written.
    """
    import pyarrow.ipc

    status = path.stat()
    key = repr((str(path.resolve()), status.st_size, status.st_mtime_ns, tuple(columns)))
    target = _cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.arrow"
    if target.exists():
        return target

    def write(aside: Path) -> None:
        schema, batches = open_parquet(path, columns)
        with pyarrow.ipc.new_stream(str(aside), schema) as sink:
            for batch in batches:
                sink.write_batch(batch)

    replace(target, write)
    return target


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ghn_fast"
