"""Errors about files: one line that names the file, whatever is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 600
"""Characters of a message, most of which may be the file's path."""


class FileError(ValueError):
    """A file is not what it has to be. The message is one line, whatever the file has put in it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, longest: int = _LONGEST) -> str:
    """The text without its middle, should it be long, and with everything unprintable escaped."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def shown(value: object) -> str:
    """A value out of a file: plain ones that are short as they are, of the others their type.

    The text of a list may be longer than any memory, or nested deeper than any stack.
    """
    if type(value) is str:
        return one_line(repr(value[:100]), 60)
    if type(value) is int:
        return str(value) if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"
    plain = value is None or type(value) in (bool, float)
    return repr(value) if plain else f"a {type(value).__name__}"


@contextmanager
def failures(path: str | Path, kind: type[FileError]) -> Iterator[None]:
    """Whatever goes wrong in reading a file becomes an error of this kind, which names the file.

    Libraries raise almost any type of exception for a damaged file.
    """
    try:
        yield
    except FileError as error:
        raise kind(f"{path}: {error}") from None
    except MemoryError as error:
        raise kind(f"{path} needs more memory than there is") from error
    except (ImportError, NameError):  # nothing that a file could do
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise kind(f"{path} cannot be read: {error.strerror}") from error
        raise kind(f"{path} is truncated or damaged ({type(error).__name__}: {error})") from error
