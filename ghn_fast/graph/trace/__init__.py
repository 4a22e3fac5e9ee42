"""How a model becomes a graph: it runs once without arithmetic, and what it calls is recorded.

Knows nodes, not graphs or batches of them; and nothing of GHNs.
"""

from __future__ import annotations

from ghn_fast.graph.trace.tracer import TraceError, trace

__all__ = ["TraceError", "trace"]
