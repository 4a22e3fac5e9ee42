"""From records to a graph: contraction of everything that is no node."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from ghn_fast.graph.trace.recorder import Kind

Contraction = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]


def contract(
    kinds: Sequence[int], parents: Sequence[Sequence[int]], outputs: Sequence[int]
) -> Contraction:
    """Joins the inputs of contracted records to their outputs.

    Args:
        kinds: a :class:`~ghn_fast.graph.trace.recorder.Kind` for each of R records, in topological
            order.
        parents: the records each depends on; all before it.
        outputs: the records whose values the model returns.

    Returns:
        The records that are nodes, in order; the edges (E, 2) between them, as positions in that
        list, sorted; and (R,) for each record whether an output depends on it.

    Raises:
        ValueError: a record that depends on one after it, an unknown kind or output.
    """
    from ghn_fast._core import core

    nodes, edges, live = core.contract(
        np.array(kinds, dtype=np.uint8),
        np.fromiter(accumulate(map(len, parents), initial=0), np.int64, len(parents) + 1),
        np.fromiter(chain.from_iterable(parents), np.int64),
        np.array(outputs, dtype=np.int64),
    )
    return nodes, edges.reshape(-1, 2), live.astype(bool)


def contract_reference(
    kinds: Sequence[int], parents: Sequence[Sequence[int]], outputs: Sequence[int]
) -> Contraction:
    """:func:`contract` by its definition, in Python."""
    live = [False] * len(kinds)
    for record in range(len(kinds) - 1, -1, -1):
        live[record] = live[record] or record in outputs
        for parent in parents[record] if live[record] else ():
            live[parent] = True
    sources: list[set[int]] = []
    nodes: list[int] = []
    edges: list[tuple[int, int]] = []
    for record, (kind, before) in enumerate(zip(kinds, parents, strict=True)):
        operands = [sources[p] for p in before if sources[p]]
        merged = set().union(*operands)
        joins = kind == Kind.JOIN and len(operands) > 1 and len(merged) > 1
        if live[record] and (kind == Kind.KEEP or joins):
            edges += [(source, len(nodes)) for source in merged]
            merged = {len(nodes)}
            nodes.append(record)
        sources.append(merged if live[record] else set())
    edge_array = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    return np.array(nodes, dtype=np.int64), edge_array, np.array(live, dtype=bool)
