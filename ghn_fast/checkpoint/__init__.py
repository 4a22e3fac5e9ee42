"""Checkpoints: reading ours and the published ones, writing ours, GHNs by name."""

from __future__ import annotations

from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.checkpoint.files import load, load_ghn, load_metadata, save
from ghn_fast.checkpoint.hub import from_pretrained, known_names, push_ghn_to_hub, save_pretrained

__all__ = [
    "CheckpointError",
    "from_pretrained",
    "known_names",
    "load",
    "load_ghn",
    "load_metadata",
    "push_ghn_to_hub",
    "save",
    "save_pretrained",
]
