"""Graphs as pictures: node types by colour and shape, as in arXiv 2110.13100 (figure 1)."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn_fast.graph.draw.layout import Layout, layout
from ghn_fast.graph.draw.style import STYLES, kernel_of, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ghn_fast.graph.graph import Graph


_UNIT = 0.3
"""Inches for one node."""
_MIN_HEIGHT, _LEGEND_WIDTH, _TITLE_HEIGHT = 3.6, 2.6, 0.3
_MARKER_AREAS = {"*": 190.0, "P": 120.0, "h": 120.0, "D": 62.0, "^": 95.0, "v": 95.0}
_AREA = 88.0


class Drawing:
    """A picture of a graph; shows itself in a notebook."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def save(self, path: str | Path) -> None:
        """Writes the picture in the format that the name ends in, for example .svg or .png."""
        self.figure.savefig(path, dpi=150)

    def _repr_svg_(self) -> str:
        text = io.StringIO()
        self.figure.savefig(text, format="svg")
        return text.getvalue()


def draw(graph: Graph, path: str | Path | None = None, title: str | None = None) -> Drawing:
    """Draws a graph from top to bottom; long ones go on in further columns to the right.

    Args:
        graph: what to draw. Only 1-hop edges are drawn.
        path: where to save it, .svg, .png or .pdf.
        title: above the picture; the number of nodes if None.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install 'ghn-fast[draw]'") from None
    edges = [(int(source), int(target)) for source, target in graph.edges.tolist()]
    places = layout(graph.num_nodes, edges)
    left, top, right, bottom = places.box
    width = (right - left + 2) * _UNIT
    height = max((bottom - top + 2) * _UNIT, _MIN_HEIGHT)
    whole = (width + _LEGEND_WIDTH, height + _TITLE_HEIGHT)
    figure = Figure(figsize=whole, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, width / whole[0], height / whole[1]))
    axes.set_xlim(left - 1, left - 1 + width / _UNIT)
    axes.set_ylim(top - 1 + height / _UNIT, top - 1)
    axes.axis("off")
    _draw_lines(axes, places)
    _draw_nodes(axes, graph, places)
    figure.text(
        *(0.15 / whole[0], 1 - 0.1 / whole[1], title or f"{graph.num_nodes} nodes"),
        va="top",
        fontsize=11,
    )
    _draw_legend(figure, graph, width / whole[0])
    drawing = Drawing(figure)
    if path is not None:
        drawing.save(path)
    return drawing


def _draw_lines(axes: Axes, places: Layout) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    vertices: list[tuple[float, float]] = []
    codes: list[Any] = []
    for line in places.lines:
        points, kinds = _curve(line, Curve)
        vertices += points
        codes += kinds
    if vertices:
        axes.add_patch(
            PathPatch(Curve(vertices, codes), facecolor="none", edgecolor="#9a9a9a", lw=0.9)
        )


def _curve(
    line: list[tuple[float, float]], curve: Any
) -> tuple[list[tuple[float, float]], list[Any]]:
    """Downwards an S, around a column a line with rounded corners."""
    if len(line) == 2:
        (x0, y0), (x1, y1) = line
        middle = (y0 + y1) / 2
        return (
            [(x0, y0), (x0, middle), (x1, middle), (x1, y1)],
            [curve.MOVETO, curve.CURVE4, curve.CURVE4, curve.CURVE4],
        )
    points, kinds = [line[0]], [curve.MOVETO]
    for before, corner, after in zip(line, line[1:], line[2:], strict=False):
        points += [_towards(corner, before), corner, _towards(corner, after)]
        kinds += [curve.LINETO, curve.CURVE3, curve.CURVE3]
    return [*points, line[-1]], [*kinds, curve.LINETO]


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    share = min(0.5, 0.35 / max(abs(dx), abs(dy), 1e-9))
    return corner[0] + share * dx, corner[1] + share * dy


def _draw_nodes(axes: Axes, graph: Graph, places: Layout) -> None:
    styles = [style_of(node) for node in graph.nodes]
    for style in dict.fromkeys(styles):
        chosen = [i for i, other in enumerate(styles) if other is style]
        axes.scatter(
            places.nodes[chosen, 0],
            places.nodes[chosen, 1],
            s=_MARKER_AREAS.get(style.marker, _AREA),
            c=style.colour,
            marker=style.marker,
            edgecolors="#333333",
            linewidths=0.6,
            zorder=2,
        )
    for node, (x, y) in zip(graph.nodes, places.nodes.tolist(), strict=True):
        kernel = kernel_of(node)
        if kernel:
            size = 6.5 if len(kernel) == 1 else 4.6
            axes.text(
                x,
                y,
                kernel,
                fontsize=size,
                color="white",
                ha="center",
                va="center_baseline",
                zorder=3,
            )


def _draw_legend(figure: Figure, graph: Graph, left: float) -> None:
    from matplotlib.lines import Line2D

    counts = Counter(style_of(node) for node in graph.nodes)
    used = [style for style in STYLES.values() if style in counts]
    handles = [
        Line2D(
            [],
            [],
            ls="",
            marker=style.marker,
            mfc=style.colour,
            mec="#333333",
            mew=0.6,
            ms=_MARKER_AREAS.get(style.marker, _AREA) ** 0.5,
            label=f"{style.label} ({counts[style]})",
        )
        for style in used
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, 1.0),
        frameon=False,
        fontsize=8,
        labelspacing=0.7,
        handletextpad=0.4,
    )
