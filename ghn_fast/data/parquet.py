"""Parquet files, read into no more memory than pictures in a file of their size can need.

A kilobyte can hold a picture of megabytes, and a million rows that refer to it: every one of them
gets a copy. So rows are read a few at a time, and what they have is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghn_fast._system.bombs import most_inside, refuse_if
from ghn_fast.data.errors import DataError

_ROW = 64
"""Bytes that a row counts as, beside its values."""
_MOST_ROWS = 256
"""That are in memory at once where they need not be."""


def parquet_files(folder: Path, stored: str) -> list[Path]:
    """A split's files under one of its names, as the Hugging Face hub calls them.

    Raises:
        DataError: they are of several configurations, each in a folder of its own.
    """
    patterns = (f"{stored}-*.parquet", f"*/{stored}-*.parquet", f"{stored}.parquet")
    found = next((sorted(files) for p in patterns if (files := list(folder.glob(p)))), [])
    folders = sorted({file.parent for file in found})
    if len(folders) > 1:
        names = ", ".join(place.name for place in folders[:5])
        raise DataError(
            f"{folder} has {len(folders)} configurations of a data set ({names}): pass the folder "
            f"of one, as {folders[0]}"
        )
    return found


def read_parquet(path: Path, columns: Sequence[str]) -> Any:
    """A table of some columns.

    Raises:
        FileError: what is in it is far larger than the file.
        OSError, ValueError: it cannot be read.
    """
    import pyarrow

    schema, batches = open_parquet(path, columns)
    return pyarrow.Table.from_batches(batches, schema)


def open_parquet(path: Path, columns: Sequence[str]) -> tuple[Any, Iterator[Any]]:
    """The schema and the record batches of some columns."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    stored = file.schema_arrow
    schema = pyarrow.schema([stored.field(name) for name in columns], stored.metadata)
    return schema, _batches(file, schema, most_inside(path))


def _batches(file: Any, schema: Any, left: int) -> Iterator[Any]:
    stated = _stated_size(file.metadata, schema.names)
    refuse_if(stated > left)
    # A value is not larger than what is stated, which its copies in a batch may be.
    rows = min(left // max(stated, 1), _MOST_ROWS)
    with file:
        for batch in file.iter_batches(rows, columns=schema.names):
            left -= _ROW * len(batch) + batch.nbytes
            refuse_if(left < 0)
            yield batch.select(schema.names).cast(schema)


def _stated_size(metadata: Any, columns: Sequence[str]) -> int:
    """Bytes without compression, each value once where rows refer to it."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    parts = [group.column(index) for group in groups for index in range(group.num_columns)]
    prefixes = tuple(f"{name}." for name in columns)
    chosen = [part for part in parts if f"{part.path_in_schema}.".startswith(prefixes)]
    return sum(part.total_uncompressed_size for part in chosen) + _ROW * metadata.num_rows
