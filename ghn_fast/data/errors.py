"""Errors of reading images."""

from __future__ import annotations


class DataError(ValueError):
    """A data folder is missing, incomplete or damaged. The message says what to do."""
