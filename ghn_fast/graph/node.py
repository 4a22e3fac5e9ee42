"""One node of a graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One node of a :class:`ghn_fast.graph.Graph`.

    Attributes:
        type: one of :data:`ghn_fast.graph.types.NODE_TYPES`.
        name: the parameter's name, or the operation's (``"input"``, ``"sum"``, ``"max_pool"``).
        shape: of the parameter, as its module stores it; (1, 1, kh, kw) for max and average
            pooling; None for the other operations.
        parameter: the name in ``model.named_parameters()``; None for operations.
        bias: for normalisation layers, the bias that is predicted together with the weight.
    """

    type: str
    name: str
    shape: tuple[int, ...] | None = None
    parameter: str | None = None
    bias: str | None = None
