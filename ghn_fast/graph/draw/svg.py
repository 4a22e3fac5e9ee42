"""Graphs as SVG text, without any library: what a notebook and a page in a browser show."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from html import escape
from typing import TYPE_CHECKING

from ghn_fast.graph.draw.layout import Layout, Point, layout
from ghn_fast.graph.draw.style import STYLES, Style, kernel_of, style_of

if TYPE_CHECKING:
    from ghn_fast.graph.graph import Graph
    from ghn_fast.graph.node import Node

_UNIT = 26.0
"""Pixels between the centres of neighbouring nodes."""
_RADIUS = 8.0
_LEGEND_WIDTH = 215.0
_MOST_STAGES = 40
_FONT = "font-family='system-ui, sans-serif'"
_NO_CHARACTER = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Of XML 1.0, in which there is no way to write it (section 2.2)."""


def svg(
    graph: Graph,
    *,
    shades: Mapping[int, float] | None = None,
    hollow: Collection[int] = (),
    notes: Mapping[int, str] | None = None,
) -> str:
    """A graph from top to bottom, with arrowheads, and its stages by name.

    Pointing at a node shows its name, its shape and what ``notes`` has of it.

    Args:
        graph: what to draw. Only 1-hop edges are drawn.
        shades: {node: from 0, pale, to 1}; the others have the full colour of their kind.
        hollow: nodes of which only the outline is drawn.
        notes: {node: further lines}.
    """
    edges = [(int(source), int(target)) for source, target in graph.edges.tolist()]
    places = layout(graph.num_nodes, edges)
    left, top, right, bottom = places.box
    used = Counter(style_of(node) for node in graph.nodes)
    width = (right - left + 3) * _UNIT + _LEGEND_WIDTH
    height = max((bottom - top + 2) * _UNIT, (len(used) + 1) * 20.0)
    origin = (left - 1.5, top - 1.0)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' "
        f"viewBox='0 0 {width:.0f} {height:.0f}' {_FONT}>",
        _edges(places, origin),
        *_stages(graph, places, origin),
    ]
    for index, node in enumerate(graph.nodes):
        x, y = _pixel(tuple(places.nodes[index]), origin)
        fill = "white" if index in hollow else _shaded(style_of(node), (shades or {}).get(index))
        parts.append(_node(node, x, y, fill, (notes or {}).get(index, "")))
    parts += [*_legend(used, width - _LEGEND_WIDTH + 10), "</svg>"]
    return _NO_CHARACTER.sub("\ufffd", "\n".join(parts))


def _pixel(point: tuple[float, ...], origin: Point) -> Point:
    return (point[0] - origin[0]) * _UNIT, (point[1] - origin[1]) * _UNIT


def _edges(places: Layout, origin: Point) -> str:
    ends = {tuple(map(float, place)) for place in places.nodes.tolist()}
    paths, tips = [], []
    for line in places.lines:
        points = [_pixel(point, origin) for point in line]
        paths.append(f"<path d='{_curve(points)}'/>")
        # Where several edges share a line to a passing place, only its end at a node has a tip.
        if tuple(map(float, line[-1])) in ends:
            tips.append(f"<path d='{_tip(points)}'/>")
    return (
        f"<g fill='none' stroke='#9a9a9a' stroke-width='1.1'>{''.join(paths)}</g>\n"
        f"<g class='tips' fill='#8a8a8a'>{''.join(tips)}</g>"
    )


def _curve(points: list[Point]) -> str:
    """Downwards an S, around a column a line with corners."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    if len(points) == 2:
        middle = (y0 + y1) / 2
        return f"M{x0:.1f} {y0:.1f}C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _tip(points: list[Point]) -> str:
    """A triangle before the node at the end; markers would have names, which drawings share."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    # An S arrives downwards or upwards, whatever is between its ends.
    along = (0.0, math.copysign(1.0, y1 - y0))
    if len(points) > 2 and length > 0:
        along = ((x1 - x0) / length, (y1 - y0) / length)
    corners = [
        (x1 - back * along[0] - side * along[1], y1 - back * along[1] + side * along[0])
        for back, side in ((_RADIUS + 7, 3.5), (_RADIUS, 0.0), (_RADIUS + 7, -3.5))
    ]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "z"


def _node(node: Node, x: float, y: float, fill: str, note: str) -> str:
    style = style_of(node)
    shape = "" if node.shape is None else " x ".join(map(str, node.shape))
    lines = [node.name, f"{style.label}{', ' + shape if shape else ''}", note]
    title = escape("\n".join(line for line in lines if line))
    kernel = kernel_of(node)
    text = (
        f"<text x='{x:.1f}' y='{y + 3:.1f}' font-size='8' text-anchor='middle' "
        f"fill='{'#333' if fill != style.colour else 'white'}'>{kernel}</text>"
        if kernel
        else ""
    )
    outline = "stroke='#444' stroke-width='1.2'"
    if fill == "white":  # all there is to see of its kind, and some kinds are pale
        outline = f"stroke='{_mixed(style.colour, '#000000', 0.65)}' stroke-width='2.2'"
    mark = _MARKS.get(style.marker, _circle)(x, y, f"fill='{fill}' {outline}")
    return f"<g class='node'><title>{title}</title>{mark}{text}</g>"


def _circle(x: float, y: float, look: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{_RADIUS - 1:.1f}' {look}/>"


def _square(x: float, y: float, look: str) -> str:
    side = 2 * _RADIUS - 2
    return (
        f"<rect x='{x - side / 2:.1f}' y='{y - side / 2:.1f}' width='{side:.1f}' "
        f"height='{side:.1f}' rx='2' {look}/>"
    )


def _polygon(*angles: float, inner: float = 1.0) -> _Mark:
    """Corners at angles, every second one nearer to the centre by ``inner``."""

    def mark(x: float, y: float, look: str) -> str:
        corners = " ".join(
            f"{x + _RADIUS * (inner if i % 2 else 1) * math.cos(math.radians(a)):.1f},"
            f"{y + _RADIUS * (inner if i % 2 else 1) * math.sin(math.radians(a)):.1f}"
            for i, a in enumerate(angles)
        )
        return f"<polygon points='{corners}' {look}/>"

    return mark


_Mark = Callable[[float, float, str], str]
_DIAMOND = (0, 90, 180, 270)
_MARKS: dict[str, _Mark] = {
    "s": _square,
    "D": _polygon(*_DIAMOND),
    "^": _polygon(-90, 30, 150),
    "v": _polygon(90, 210, 330),
    "h": _polygon(*range(0, 360, 60)),
    "*": _polygon(*range(-90, 270, 36), inner=0.45),
    "P": _polygon(*range(0, 360, 45), inner=0.5),
}


def _stages(graph: Graph, places: Layout, origin: Point) -> list[str]:
    """The first part of the parameters' names, where it changes."""
    found: list[tuple[str, float, float]] = []
    for node, place in zip(graph.nodes, places.nodes.tolist(), strict=True):
        stage = (node.parameter or "").rpartition(".")[0]
        stage = ".".join(stage.split(".")[: 2 if stage.split(".")[0] in _BODIES else 1])
        if stage and (not found or found[-1][0] != stage):
            found.append((stage, *_pixel(tuple(place), origin)))
    if len(found) > _MOST_STAGES:
        return []
    return [
        f"<text x='{x + _RADIUS + 3:.1f}' y='{y - _RADIUS + 1:.1f}' font-size='9' fill='#555' "
        f"stroke='white' stroke-width='2.5' paint-order='stroke'>{escape(stage)}</text>"
        for stage, x, y in found
    ]


_BODIES = ("features", "cells", "blocks", "encoder", "layers", "stages")
"""Modules that the whole network is in: what is inside them are the stages."""


def _legend(used: Counter[Style], left: float) -> list[str]:
    parts = []
    known = [style for style in STYLES.values() if style in used]
    for row, style in enumerate([*known, *(style for style in used if style not in known)]):
        y = 16 + 20 * row
        look = f"fill='{style.colour}' stroke='#444'"
        parts.append(_MARKS.get(style.marker, _circle)(left + 10, y, look))
        parts.append(
            f"<text x='{left + 26:.0f}' y='{y + 4}' font-size='11' fill='#222'>"
            f"{escape(style.label)} ({used[style]})</text>"
        )
    return parts


def _shaded(style: Style, shade: float | None) -> str:
    """The style's colour, mixed with white."""
    if shade is None:
        return style.colour
    return _mixed(style.colour, "#ffffff", 0.15 + 0.85 * min(max(shade, 0.0), 1.0))


def _mixed(colour: str, other: str, share: float) -> str:
    """With another colour, ``share`` of the first."""
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(b + (a - b) * share):02x}" for a, b in pairs)
