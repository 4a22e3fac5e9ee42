"""Folders of pictures by class: which folders are classes, and which files are their pictures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ghn_fast._system.errors import one_line
from ghn_fast.data.encoded import FORMATS

_HIDDEN = {"__MACOSX", "@eaDir"}
"""Folders beside those whose names begin with a dot in which systems keep copies of pictures."""
_COMPANIONS = {".csv", ".db", ".html", ".ini", ".json", ".md", ".txt", ".xml", ".yaml"}
"""Ends of files that are often beside pictures, and are not meant to be any."""


@cache
def extensions() -> frozenset[str]:
    """Ends of the names of pictures that are read, in small letters, with their dots."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(end for end, kind in known if kind in FORMATS)


def class_names(folder: Path) -> list[str]:
    """The names of its folders, sorted, but for hidden ones."""
    return sorted(c.name for c in folder.iterdir() if not _is_hidden(c.name) and c.is_dir())


def with_pictures(folder: Path) -> list[str]:
    """Those of :func:`class_names` that have pictures in themselves, not only deeper."""
    return [name for name in class_names(folder) if has_pictures(folder / name)]


def has_pictures(folder: Path) -> bool:
    """Whether there are pictures in itself, not only deeper."""
    return any(is_picture(c.name) for c in folder.iterdir())


def pictures_by_class(folder: Path) -> dict[str, list[Path]]:
    """The pictures in each class's folder, at any depth, in the order of torchvision's ImageFolder.

    Links are followed, but for those to a folder above, where the pictures of other classes are. A
    picture that is in a class twice, by a link, counts once. Hidden files and folders are left out;
    of other files that are left out a warning tells.
    """
    found: dict[str, list[Path]] = {}
    skipped: list[str] = []
    root = Path(os.path.realpath(folder))
    for name in class_names(folder):
        files = sorted(_files(os.path.join(folder, name), (root,), set()), key=os.path.split)
        found[name] = [Path(file) for file in files if is_picture(file)]
        others = (file for file in files if not is_picture(file))
        skipped += (file for file in others if _end(file) not in _COMPANIONS)
    if skipped:
        text = (
            f"files in the class folders of {folder} that end like no picture, and are left out: "
            f"{len(skipped):,}, such as {skipped[0]} (read are {', '.join(FORMATS)})"
        )
        warnings.warn(one_line(text), UserWarning, stacklevel=2)
    return found


def _files(folder: str, way: tuple[Path, ...], seen: set[str]) -> Iterator[str]:
    """All files in it, each once by its real path; ``way`` are the real folders that led here."""
    real = os.path.realpath(folder)
    if real in seen or any(place.is_relative_to(real) for place in way):
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        shown = sorted((e for e in entries if not _is_hidden(e.name)), key=lambda e: e.name)
    for entry in shown:
        if entry.is_dir():
            yield from _files(entry.path, (*way, Path(real)), seen)
            continue
        own = os.path.join(real, entry.name)
        own = os.path.realpath(own) if entry.is_symlink() else own
        if own not in seen:
            seen.add(own)
            yield entry.path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def is_picture(name: str) -> bool:
    """Whether a file is a picture that is read, by its name."""
    return not _is_hidden(os.path.basename(name)) and _end(name) in extensions()


def _end(name: str) -> str:
    return os.path.splitext(name)[1].lower()
