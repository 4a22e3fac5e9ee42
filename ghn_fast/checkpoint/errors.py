"""The error of everything that can be wrong with a checkpoint."""

from __future__ import annotations

from ghn_fast._system.errors import FileError


class CheckpointError(FileError):
    """A checkpoint is missing, damaged, of another kind, or holds what must not be loaded."""
