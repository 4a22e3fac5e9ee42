"""Files that are complete or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content at once: readers see the old content or the new."""
    replace(path, lambda aside: aside.write_text(text))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` make a file beside ``path``, then puts it in its place.

    The content is on the disk before the old file goes, so neither a crash nor a full disk can
    destroy what was there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
