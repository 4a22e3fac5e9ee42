"""What an architecture is, its widths, names and stem apart."""

from __future__ import annotations

import hashlib

from ghn_fast.graph.graph import Graph


def signature(graph: Graph) -> str:
    """16 hexadecimal digits of the types, kernels and edges of a graph.

    Two networks that differ in their channels, in the kernel of their first layer or in the names
    of their parameters have the same one. The first layer is what is fitted to the size of images.
    """
    content = hashlib.sha256()
    seen_layer = False
    for node in graph.nodes:
        kernel = tuple((node.shape or ())[2:]) if node.type != "pos_enc" else ()
        is_layer = node.parameter is not None and node.type != "pos_enc"
        content.update(repr((node.type, kernel if seen_layer or not is_layer else ())).encode())
        seen_layer |= is_layer
    content.update(graph.edges.numpy().tobytes())
    return content.hexdigest()[:16]
