"""Models as graphs: nodes, edges, shortest paths and batches.

Knows models and operations; nothing of parameters that are predicted, or of GHNs.
"""

from __future__ import annotations

from ghn_fast.graph.batch import GraphBatch
from ghn_fast.graph.graph import Graph
from ghn_fast.graph.layout import Layout, Origins, Storage
from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.rules import register
from ghn_fast.graph.trace.tracer import TraceError
from ghn_fast.graph.types import (
    CHANNEL_NODE_TYPES,
    LANGUAGE_NODE_TYPES,
    NODE_TYPE_INDEX,
    NODE_TYPES,
)

__all__ = [
    "CHANNEL_NODE_TYPES",
    "LANGUAGE_NODE_TYPES",
    "NODE_TYPES",
    "NODE_TYPE_INDEX",
    "Graph",
    "GraphBatch",
    "Layout",
    "Node",
    "Origins",
    "Storage",
    "TraceError",
    "register",
]
