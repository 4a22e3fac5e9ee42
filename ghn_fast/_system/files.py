"""Files that are complete or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content at once: readers see the old content or the new."""
    replace(path, lambda aside: aside.write_text(text))


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
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk too; not every system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
