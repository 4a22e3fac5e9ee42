"""Checkpoints: from bytes to a configuration and tensors, and back.

Knows no GHN. The functions that make GHNs of them stand in :mod:`ghn_fast.ghn.files` and
:mod:`ghn_fast.ghn.hub`, and can be imported from here as well.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.checkpoint.files import load_metadata

if TYPE_CHECKING:
    from ghn_fast.ghn.files import load as load
    from ghn_fast.ghn.files import load_ghn as load_ghn
    from ghn_fast.ghn.files import save as save
    from ghn_fast.ghn.hub import from_pretrained as from_pretrained
    from ghn_fast.ghn.hub import list_models as list_models
    from ghn_fast.ghn.hub import push_ghn_to_hub as push_ghn_to_hub
    from ghn_fast.ghn.hub import save_pretrained as save_pretrained

_OF_GHNS = {
    "from_pretrained": "ghn_fast.ghn.hub",
    "list_models": "ghn_fast.ghn.hub",
    "load": "ghn_fast.ghn.files",
    "load_ghn": "ghn_fast.ghn.files",
    "push_ghn_to_hub": "ghn_fast.ghn.hub",
    "save": "ghn_fast.ghn.files",
    "save_pretrained": "ghn_fast.ghn.hub",
}

__all__ = ["CheckpointError", "load_metadata", *sorted(_OF_GHNS)]


def __getattr__(name: str) -> Any:
    if name not in _OF_GHNS:
        raise AttributeError(f"module 'ghn_fast.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(_OF_GHNS[name]), name)
