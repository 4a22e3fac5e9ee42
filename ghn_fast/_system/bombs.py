"""How much may be in a compressed file: pictures are compressed already and become no smaller,
weights by a tenth."""

from __future__ import annotations

from pathlib import Path

from ghn_fast._system.errors import FileError

_BOMB = 64
"""Times its size that a file may have inside."""
_SMALL = 2**26
"""Bytes that any file may have inside."""


def most_inside(path: Path) -> int:
    """Bytes that may come out of a file of its size."""
    return max(_BOMB * path.stat().st_size, _SMALL)


def refuse_if(is_bomb: bool) -> None:
    if is_bomb:
        raise FileError(f"what is in it is more than {_BOMB} times as large as the file")
