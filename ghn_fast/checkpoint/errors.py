"""The error of everything that can be wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another kind, or holds what must not be loaded."""
