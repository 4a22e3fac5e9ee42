"""From records to a graph: contraction of everything that is no node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghn_fast.graph.recorder import Kind


def contract(
    kinds: Sequence[int], parents: Sequence[Sequence[int]], outputs: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Joins the inputs of contracted records to their outputs.

    Args:
        kinds: a :class:`Kind` for each record, in topological order.
        parents: the records each depends on; all before it.
        outputs: the records whose values the model returns.

    Returns:
        The records that are nodes, in order; the edges (E, 2) between them, as positions in that
        list; and for each record whether an output depends on it.
    """
    live = _live(parents, outputs, len(kinds))
    sources: list[tuple[int, ...]] = []
    nodes: list[int] = []
    edges: list[tuple[int, int]] = []
    for record, (kind, before) in enumerate(zip(kinds, parents, strict=True)):
        if not live[record]:
            sources.append(())
            continue
        operands = [sources[p] for p in before if sources[p]]
        merged = operands[0] if len(operands) == 1 else tuple({s for o in operands for s in o})
        joins = kind == Kind.JOIN and len(operands) > 1 and len(merged) > 1
        if kind == Kind.KEEP or joins:
            edges += [(source, len(nodes)) for source in merged]
            sources.append((len(nodes),))
            nodes.append(record)
        else:
            sources.append(merged)
    edge_array = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    return np.array(nodes, dtype=np.int64), edge_array, np.array(live, dtype=bool)


def _live(parents: Sequence[Sequence[int]], outputs: Sequence[int], count: int) -> list[bool]:
    live = [False] * count
    for record in outputs:
        live[record] = True
    for record in range(count - 1, -1, -1):
        if live[record]:
            for parent in parents[record]:
                live[parent] = True
    return live
