"""Graphs as pictures: SVG text, and by matplotlib the formats that it writes, as PNG and PDF."""

from __future__ import annotations

import pathlib
from itertools import chain
from typing import TYPE_CHECKING

from ghn_fast._system.files import replace, write_text
from ghn_fast.graph.draw.scene import scene_of
from ghn_fast.graph.draw.shapes import Group, Path, Scene, Words, readable
from ghn_fast.graph.draw.svg import text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ghn_fast.graph.graph import Graph

_PIXELS, _POINTS = 96, 72 / 96
"""SVG's pixels in an inch; in a pixel, the points that matplotlib measures fonts and lines in."""


class Drawing:
    """A picture of a graph; shows itself in a notebook."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the picture in the format that the name ends in, for example .svg or .png."""
        path = pathlib.Path(path)
        if path.suffix == ".svg":
            write_text(path, self._repr_svg_())
            return
        figure, kind = self.figure(), path.suffix[1:] or "png"
        replace(path, lambda aside: figure.savefig(aside, format=kind, dpi=2 * _PIXELS))

    def figure(self) -> Figure:
        """The picture as a figure of matplotlib."""
        from matplotlib.figure import Figure

        width, height, shapes = self._scene
        figure = Figure(figsize=(width / _PIXELS, height / _PIXELS), facecolor="white")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        groups = (shape.shapes if isinstance(shape, Group) else [shape] for shape in shapes)
        for order, part in enumerate(chain.from_iterable(groups)):
            if isinstance(part, Words):
                _write(axes, part, order)
            else:
                _paint(axes, part, order)
        return figure

    def _repr_svg_(self) -> str:
        return text_of(self._scene)


def draw(graph: Graph, path: str | pathlib.Path | None = None, title: str | None = None) -> Drawing:
    """Draws a graph from top to bottom; long ones go on in further columns to the right.

    Args:
        graph: what to draw. Only 1-hop edges are drawn.
        path: where to save it, .svg, .png or .pdf.
        title: above the picture; the number of nodes if None.
    """
    drawing = Drawing(scene_of(graph, title or f"{graph.num_nodes} nodes", {}, (), {}))
    if path is not None:
        drawing.save(path)
    return drawing


def _write(axes: Axes, words: Words, order: int) -> None:
    from matplotlib.patheffects import withStroke

    text = axes.text(
        *words.place,
        readable(words.text),
        fontsize=words.size * _POINTS,
        color=words.colour,
        horizontalalignment="center" if words.centred else "left",
        parse_math=False,
        zorder=order,
    )
    if words.halo:
        text.set_path_effects([withStroke(linewidth=2.5 * _POINTS, foreground="white")])


def _paint(axes: Axes, path: Path, order: int) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    kinds = {"M": Curve.MOVETO, "L": Curve.LINETO, "C": Curve.CURVE4, "Z": Curve.CLOSEPOLY}
    steps = [(letter, points or [(0.0, 0.0)]) for letter, points in path.steps]
    vertices = [point for _, points in steps for point in points]
    codes = [kinds[letter] for letter, points in steps for _ in points]
    look = {"facecolor": path.fill, "edgecolor": path.stroke, "linewidth": path.width * _POINTS}
    if vertices:  # a graph of one node has no edges
        axes.add_patch(PathPatch(Curve(vertices, codes), **look, joinstyle="round", zorder=order))
