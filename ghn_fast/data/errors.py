"""Errors of reading images."""

from __future__ import annotations

from ghn_fast._system.errors import FileError


class DataError(FileError):
    """A data folder is missing, incomplete or damaged. The message says what to do."""
