"""Where the nodes of a graph are drawn: in layers, from top to bottom, with few crossings.

The usual four steps (Sugiyama, Tagawa and Toda, 1981): layers by the longest path from the input,
an order within each layer by barycentres, coordinates, and edges that follow free places where
they pass a layer. Long graphs go on in further columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Point = tuple[float, float]

_SWEEPS = 12
_SETTLING = 12
_DUMMY_WIDTH = 0.55
"""Of the place of a passing edge, where a node's is 1."""
_GUTTER = 1.6
"""Between columns."""
_LANE = 0.25
"""Between edges that lead from one column to the next."""
_TURN = 0.7
"""How far they go beyond the ends of the columns."""
_TALL = 24
"""Graphs of so many layers are not folded."""


@dataclass(frozen=True)
class Layout:
    """Places, in units of one node; y grows downwards.

    Attributes:
        nodes: (N, 2) coordinates.
        lines: for each edge or part of a bundle of edges, the points that it passes.
    """

    nodes: np.ndarray
    lines: list[list[Point]]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        points = np.concatenate([self.nodes, *(np.array(line) for line in self.lines)])
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


def layout(num_nodes: int, edges: Sequence[tuple[int, int]], aspect: float = 1.6) -> Layout:
    """The layout of a graph in topological order.

    Args:
        num_nodes: how many nodes.
        edges: (source, target), source < target.
        aspect: width divided by height that is aimed at.
    """
    layered = _Layered(num_nodes, edges)
    layered.order()
    layered.settle()
    return _folded(layered, num_nodes, aspect)


class _Layered:
    """Nodes and, from number `num_nodes` on, places that edges pass.

    The edges that leave a node share these places until each reaches its target.
    """

    def __init__(self, num_nodes: int, edges: Sequence[tuple[int, int]]) -> None:
        self.num_nodes = num_nodes
        self.layer = _layers(num_nodes, edges)
        self.up: dict[int, list[int]] = defaultdict(list)
        self.down: dict[int, list[int]] = defaultdict(list)
        targets: dict[int, list[int]] = defaultdict(list)
        for source, target in edges:
            targets[source].append(target)
        for source, ends in targets.items():
            self._connect(source, ends)
        self.layers: list[list[int]] = [[] for _ in range(max(self.layer, default=0) + 1)]
        for node, layer in enumerate(self.layer):
            self.layers[layer].append(node)
        self.x = np.zeros(len(self.layer))

    def _connect(self, source: int, targets: list[int]) -> None:
        at = {self.layer[source]: source}
        for target in sorted(targets, key=lambda node: self.layer[node]):
            for layer in range(max(at) + 1, self.layer[target]):
                at[layer] = len(self.layer)
                self.layer.append(layer)
                self._add(at[layer - 1], at[layer])
            self._add(at[self.layer[target] - 1], target)

    def _add(self, source: int, target: int) -> None:
        self.down[source].append(target)
        self.up[target].append(source)

    @property
    def segments(self) -> Iterator[tuple[int, int]]:
        for source, targets in self.down.items():
            for target in targets:
                yield source, target

    # Order.

    def order(self) -> None:
        """Orders each layer by the mean places of its neighbours, in sweeps down and up."""
        best, fewest = [list(nodes) for nodes in self.layers], self._crossings()
        for sweep in range(_SWEEPS):
            downwards = sweep % 2 == 0
            neighbours = self.up if downwards else self.down
            for nodes in self.layers if downwards else reversed(self.layers):
                self._sort(nodes, neighbours)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(nodes) for nodes in self.layers], crossings
            if fewest == 0:
                break
        self.layers = best

    def _sort(self, nodes: list[int], neighbours: dict[int, list[int]]) -> None:
        for place, node in enumerate(nodes):
            others = neighbours[node]
            if others:
                self.x[node] = sum(self.x[other] for other in others) / len(others)
            else:
                self.x[node] = place
        nodes.sort(key=lambda node: self.x[node])
        for place, node in enumerate(nodes):
            self.x[node] = place - (len(nodes) - 1) / 2

    def _crossings(self) -> int:
        place = {node: i for nodes in self.layers for i, node in enumerate(nodes)}
        total = 0
        for nodes in self.layers:
            ends = [sorted(place[target] for target in self.down[node]) for node in nodes]
            flat = [end for part in ends for end in part]
            total += sum(
                flat[i] > flat[j] for i in range(len(flat)) for j in range(i + 1, len(flat))
            )
        return total

    # Coordinates.

    def settle(self) -> None:
        """Moves nodes towards their neighbours without changing the order or overlapping."""
        for nodes in self.layers:
            self._place(nodes, [0.0] * len(nodes))
        for step in range(_SETTLING):
            last, down = step == _SETTLING - 1, step % 2 == 0
            for nodes in self.layers if down else reversed(self.layers):
                sides = (self.up, self.down) if last else (self.up if down else self.down,)
                wanted = [self._wanted(node, sides) for node in nodes]
                self._place(nodes, wanted)

    def _wanted(self, node: int, sides: tuple[dict[int, list[int]], ...]) -> float:
        """The mean place of a node's neighbours; passing edges prefer to go straight on."""
        others = [other for side in sides for other in side[node]] or [node]
        if node >= self.num_nodes:
            others = [other for other in others if other >= self.num_nodes] or others
        return float(np.mean(self.x[others]))

    def _place(self, nodes: list[int], wanted: list[float]) -> None:
        """The places nearest to those wanted, in least squares, that keep their distances."""
        widths = [1.0 if node < self.num_nodes else _DUMMY_WIDTH for node in nodes]
        gaps = [0.0] + [(a + b) / 2 for a, b in pairwise(widths)]
        shifts = np.cumsum(gaps)
        self.x[nodes] = _increasing(np.asarray(wanted) - shifts) + shifts


def _layers(num_nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    layer = [0] * num_nodes
    first_target = [num_nodes] * num_nodes
    has_source = [False] * num_nodes
    for source, target in sorted(edges):
        layer[target] = max(layer[target], layer[source] + 1)
        has_source[target] = True
    for source, target in edges:
        first_target[source] = min(first_target[source], layer[target])
    for node in range(1, num_nodes):
        if not has_source[node] and first_target[node] < num_nodes:
            layer[node] = first_target[node] - 1  # a table that is added later on
    return layer


def _increasing(values: np.ndarray) -> np.ndarray:
    """The nearest non-decreasing sequence, in least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in blocks])


# Columns.


def _folded(layered: _Layered, num_nodes: int, aspect: float) -> Layout:
    """The columns side by side, and the edges between them around their ends."""
    spread = [(float(np.min(layered.x[n])), float(np.max(layered.x[n]))) for n in layered.layers]
    starts = [0, *_breaks(layered, spread, aspect)]
    column = np.searchsorted(starts, layered.layer, side="right") - 1
    inner = []
    around: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for source, target in layered.segments:
        if column[source] == column[target]:
            inner.append((source, target))
        else:
            around[int(column[target])].append((source, target))
    x = layered.x.copy()
    y = np.array(layered.layer, dtype=float) - np.array(starts)[column]
    left = 0.0
    gutters = {}
    for number, (start, stop) in enumerate(pairwise([*starts, len(spread)])):
        low = min(low for low, _ in spread[start:stop])
        high = max(high for _, high in spread[start:stop])
        gutters[number] = left - _GUTTER / 2 - _LANE * len(around.get(number, ()))
        x[column == number] += left - low
        left += high - low + _GUTTER + _LANE * len(around.get(number + 1, ()))
    lines = [[(x[a], y[a]), (x[b], y[b])] for a, b in inner]
    for number, segments in around.items():
        lines += _lanes(segments, x, y, gutters[number])
    return Layout(np.stack([x[:num_nodes], y[:num_nodes]], axis=1), lines)


def _lanes(
    segments: list[tuple[int, int]], x: np.ndarray, y: np.ndarray, gutter: float
) -> list[list[Point]]:
    """Edges from the bottom of a column to the top of the next, nested so that none cross."""
    lines = []
    bottom = max(y[source] for source, _ in segments)
    ordered = sorted(segments, key=lambda ends: (x[ends[0]], x[ends[1]]), reverse=True)
    for rank, (a, b) in enumerate(ordered):
        low = bottom + _TURN + _LANE * rank
        high = -_TURN - _LANE * (len(segments) - 1 - rank)
        middle = gutter + _LANE * rank
        lines.append(
            [(x[a], y[a]), (x[a], low), (middle, low), (middle, high), (x[b], high), (x[b], y[b])]
        )
    return lines


def _breaks(layered: _Layered, spread: list[tuple[float, float]], aspect: float) -> list[int]:
    """The layers that begin a new column: where few edges pass, near equal heights."""
    layers = len(spread)
    width = float(np.mean([high - low for low, high in spread])) + 1.5 + _GUTTER
    columns = max(1, round((aspect * layers / width) ** 0.5)) if layers > _TALL else 1
    passing = np.zeros(layers, dtype=int)
    for _, target in layered.segments:
        passing[layered.layer[target]] += 1
    breaks = []
    for number in range(1, columns):
        ideal = number * layers / columns
        reach = max(1, layers // (5 * columns))
        window = range(max(1, round(ideal) - reach), min(layers - 1, round(ideal) + reach) + 1)
        breaks.append(min(window, key=lambda layer: (passing[layer], abs(layer - ideal))))
    return breaks
