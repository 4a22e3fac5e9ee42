"""Which layers compute what a model returns, if that is one value a class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.recorder import Output, Recorder


def first_output(
    recorder: Recorder, outputs: Iterable[Tensor], inputs: Iterable[Tensor]
) -> Output | None:
    """The first output of a run, where it depends on the model.

    Args:
        recorder: of the run.
        outputs: all tensors that the model returned.
        inputs: all tensors that it was called with; the first tells how many examples there are.
    """
    output = next(iter(outputs), None)
    record = None if output is None else recorder.record_of(output)
    if output is None or record is None:
        return None
    examples = next((x.shape[0] for x in inputs if x.dim() > 0), 1)
    return Output(record, math.ceil(output.numel() / max(1, examples)))


def heads_of(
    nodes: Sequence[Node],
    edges: NDArray[np.int64],
    output: Output | None,
    ends: Sequence[int],
) -> tuple[int, ...]:
    """The last nodes of the output layers; see :class:`ghn_fast.graph.Graph`.

    Args:
        nodes: of the graph.
        edges: (E, 2) between them.
        output: the first.
        ends: the nodes that it comes from.
    """
    if output is None or len(ends) != 1:
        return ()
    layers = _added(nodes, edges, ends[0])
    # An output with positions has a value of each class at each of them.
    are_heads = all(
        _ends_layer(nodes, edges, last) and output.values <= (nodes[last].shape or (0,))[0]
        for last in layers
    )
    return tuple(layers) if are_heads else ()


def _added(nodes: Sequence[Node], edges: NDArray[np.int64], last: int) -> list[int]:
    """The nodes whose values are added up to a node's, each there for nothing else."""
    if nodes[last].type != "sum":
        return [last]
    parts = edges[edges[:, 1] == last, 0].tolist()
    alone = all((edges[:, 0] == part).sum() == 1 for part in parts)
    return [end for part in parts for end in _added(nodes, edges, part)] if alone else [last]


def _ends_layer(nodes: Sequence[Node], edges: NDArray[np.int64], last: int) -> bool:
    """Whether a node is a matrix or kernel, or its bias."""
    weight = last - (nodes[last].type == "bias")
    if nodes[weight].type != "conv" or len(nodes[weight].shape or ()) < 2:
        return False
    return weight == last or [weight, last] in edges[edges[:, 1] == last].tolist()


def ends_of(recorder: Recorder, record: int, kept: NDArray[np.int64]) -> list[int]:
    """The nodes, as positions in ``kept``, that a record's value was computed from last."""
    positions = {int(node): position for position, node in enumerate(kept)}
    seen, pending, found = {record}, [record], []
    while pending:
        current = pending.pop()
        if current in positions:
            found.append(positions[current])
            continue
        before = [p for p in recorder.records.parents[current] if p not in seen]
        seen.update(before)
        pending += before
    return sorted(found)
