"""A graph as the shapes of its picture, the same whoever draws them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from ghn_fast.graph.draw.layout import Point, layout
from ghn_fast.graph.draw.shapes import Group, Path, Scene, Step, Words, mark, polygon
from ghn_fast.graph.draw.style import STYLES, Style, kernel_of, style_of

if TYPE_CHECKING:
    from ghn_fast.graph.graph import Graph
    from ghn_fast.graph.node import Node

_UNIT = 26.0
"""Pixels between the centres of neighbouring nodes."""
_RADIUS = 8.0
_LEGEND_WIDTH, _LEGEND_ROW, _TITLE_HEIGHT = 240.0, 20.0, 24.0
_MOST_STAGES = 40


def scene_of(
    graph: Graph,
    title: str | None,
    shades: Mapping[int, float],
    hollow: Collection[int],
    notes: Mapping[int, str],
) -> Scene:
    """The arguments are those of :func:`ghn_fast.graph.draw.svg`."""
    edges = [(int(source), int(target)) for source, target in graph.edges.tolist()]
    places = layout(graph.num_nodes, edges)
    left, top, right, bottom = places.box
    used = Counter(style_of(node) for node in graph.nodes)
    head = _TITLE_HEIGHT if title else 0.0
    width = (right - left + 3) * _UNIT + _LEGEND_WIDTH
    height = head + max((bottom - top + 2) * _UNIT, (len(used) + 1) * _LEGEND_ROW)

    def pixel(point: Point) -> Point:
        return (point[0] - left + 1.5) * _UNIT, (point[1] - top + 1.0) * _UNIT + head

    nodes = [pixel((x, y)) for x, y in places.nodes.tolist()]
    lines = [[pixel(point) for point in line] for line in places.lines]
    # Where several edges share a line to a passing place, only its end at a node has a tip.
    ends = set(nodes)
    return Scene(
        width,
        height,
        [
            *([Words((10.0, 17.0), title, 14, "#222222")] if title else []),
            Path([step for line in lines for step in _curve(line)], "none", "#9a9a9a", 1.1),
            Path([step for line in lines if line[-1] in ends for step in _tip(line)], "#8a8a8a"),
            *_stages(graph, nodes),
            *(
                _node(node, nodes[i], shades.get(i), i in hollow, notes.get(i, ""))
                for i, node in enumerate(graph.nodes)
            ),
            *_legend(used, width - _LEGEND_WIDTH + 20, head + 16),
        ],
    )


def _curve(points: list[Point]) -> list[Step]:
    """Downwards an S, around a column a line with corners."""
    if len(points) > 2:
        return [("M", points[:1]), ("L", points[1:])]
    (x0, y0), (x1, y1) = points
    middle = (y0 + y1) / 2
    return [("M", points[:1]), ("C", [(x0, middle), (x1, middle), (x1, y1)])]


def _tip(points: list[Point]) -> list[Step]:
    """A triangle before the node at the end."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    # An S arrives downwards or upwards, whatever is between its ends.
    along = (0.0, math.copysign(1.0, y1 - y0))
    if len(points) > 2 and length > 0:
        along = ((x1 - x0) / length, (y1 - y0) / length)
    return polygon(
        [
            (x1 - back * along[0] - side * along[1], y1 - back * along[1] + side * along[0])
            for back, side in ((_RADIUS + 7, 3.5), (_RADIUS, 0.0), (_RADIUS + 7, -3.5))
        ]
    )


def _node(node: Node, place: Point, shade: float | None, is_hollow: bool, note: str) -> Group:
    style, kernel, (x, y) = style_of(node), kernel_of(node), place
    shape = "" if node.shape is None else " x ".join(map(str, node.shape))
    lines = [node.name, f"{style.label}{', ' + shape if shape else ''}", note]
    fill, stroke, width = _shaded(style, shade), "#444444", 1.2
    if is_hollow:  # all there is to see of its kind, and some kinds are pale
        fill, stroke, width = "white", _mixed(style.colour, "#000000", 0.65), 2.2
    shapes: list[Path | Words] = [Path(mark(style.marker, x, y, _RADIUS), fill, stroke, width)]
    if kernel:
        colour = "white" if fill == style.colour else "#333333"
        shapes.append(Words((x, y + 3), kernel, 8 if len(kernel) == 1 else 6, colour, True))
    return Group("\n".join(line for line in lines if line), shapes)


def _stages(graph: Graph, nodes: list[Point]) -> list[Words]:
    """The first part of the parameters' names, where it changes."""
    found: list[tuple[str, float, float]] = []
    for node, (x, y) in zip(graph.nodes, nodes, strict=True):
        stage = (node.parameter or "").rpartition(".")[0]
        stage = ".".join(stage.split(".")[: 2 if stage.split(".")[0] in _BODIES else 1])
        if stage and (not found or found[-1][0] != stage):
            found.append((stage, x + _RADIUS + 3, y - _RADIUS + 1))
    if len(found) > _MOST_STAGES:
        return []
    return [Words((x, y), stage, 9, "#555555", halo=True) for stage, x, y in found]


_BODIES = ("features", "cells", "blocks", "encoder", "layers", "stages")
"""Modules that the whole network is in: what is inside them are the stages."""


def _legend(used: Counter[Style], x: float, y: float) -> Iterator[Path | Words]:
    for style in STYLES.values():
        if style in used:
            yield Path(mark(style.marker, x, y, _RADIUS), style.colour, "#444444", 1.0)
            yield Words((x + 16, y + 4), f"{style.label} ({used[style]})", 11, "#222222")
            y += _LEGEND_ROW


def _shaded(style: Style, shade: float | None) -> str:
    """The style's colour, mixed with white."""
    if shade is None:
        return style.colour
    return _mixed(style.colour, "#ffffff", 0.15 + 0.85 * min(max(shade, 0.0), 1.0))


def _mixed(colour: str, other: str, share: float) -> str:
    """With another colour, ``share`` of the first."""
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(b + (a - b) * share):02x}" for a, b in pairs)
