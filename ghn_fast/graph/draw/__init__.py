"""How a graph looks: where its nodes go, and the picture.

Knows graphs; nothing of GHNs or of how a graph was made.
"""

from __future__ import annotations

from ghn_fast.graph.draw.picture import draw
from ghn_fast.graph.draw.svg import svg

__all__ = ["draw", "svg"]
