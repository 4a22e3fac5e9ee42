"""Files that are complete or not there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content at once, in UTF-8: readers see the old content or the new."""
    replace(path, lambda aside: aside.write_bytes(text.encode()))


def read_text(path: Path) -> str:
    """What :func:`write_text` and :func:`append_line` wrote, whatever the system's encoding."""
    return path.read_text(encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file: the whole line or, where that fails, nothing of it."""
    # Unbuffered: a buffer would write the rest of a failed line when the file is closed.
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError:
            file.truncate(before)
            raise


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed in :func:`replace` left beside ``path``."""
    for aside in path.parent.glob(f".{path.name}.*.tmp"):
        aside.unlink(missing_ok=True)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` make a file beside ``path``, then puts it in its place.

    The content is on the disk before the old file goes, so neither a crash nor a full disk can
    destroy what was there. Who may read it is what the process's umask says, whatever ``write``
    makes of that: safetensors writes files for their owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        write(aside)
        aside.chmod(mode)
        sync(aside)
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Puts a file's content on the disk; Windows does so for files that are open for writing."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file for a library to write to, whose failures stay those of the system.

    Whatever the library makes of a failed write, as PyTorch does a RuntimeError without the
    reason, here it is the OSError that it was.
    """
    with path.open("wb", buffering=0) as raw:
        file = _Remembering(raw)
        try:
            yield file  # type: ignore[misc]
        except Exception:
            if file.failure is None:
                raise
            raise file.failure from None


class _Remembering(io.RawIOBase):
    """A file that writes all or fails, and remembers with what."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[self._raw.write(rest) or 0 :]
        except OSError as failure:
            self.failure = failure
            raise
        return size


def lock(file: IO[bytes]) -> None:
    """Keeps other processes from locking the same file, until it is closed or this process ends.

    Raises:
        BlockingIOError: another one has it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


def sync_folder(folder: Path) -> None:
    """Puts a file's new name on the disk too; not every system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
