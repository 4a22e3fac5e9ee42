"""Graphs as SVG text, without any library: what a notebook and a page in a browser show."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from typing import TYPE_CHECKING

from ghn_fast.graph.draw.scene import scene_of
from ghn_fast.graph.draw.shapes import Group, Path, Scene, Words, readable

if TYPE_CHECKING:
    from ghn_fast.graph.graph import Graph


def svg(
    graph: Graph,
    *,
    title: str | None = None,
    shades: Mapping[int, float] | None = None,
    hollow: Collection[int] = (),
    notes: Mapping[int, str] | None = None,
) -> str:
    """A graph from top to bottom, with arrowheads, and its stages by name.

    Pointing at a node shows its name, its shape and what ``notes`` has of it.

    Args:
        graph: what to draw. Only 1-hop edges are drawn.
        title: above the picture.
        shades: {node: from 0, pale, to 1}; the others have the full colour of their kind.
        hollow: nodes of which only the outline is drawn.
        notes: {node: further lines}.
    """
    return text_of(scene_of(graph, title, shades or {}, hollow, notes or {}))


def text_of(scene: Scene) -> str:
    """A picture as SVG. Nothing in it has a name, which pictures on one page would share."""
    size = f"{scene.width:.0f}", f"{scene.height:.0f}"
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{size[0]}' height='{size[1]}' "
        f"viewBox='0 0 {' '.join(size)}' font-family='system-ui, sans-serif' "
        f"stroke-linejoin='round'>"
    )
    return readable("\n".join((head, *map(_element, scene.shapes), "</svg>")))


def _element(shape: Path | Words | Group) -> str:
    if isinstance(shape, Group):
        inside = "".join(map(_element, shape.shapes))
        return f"<g class='node'><title>{escape(shape.title)}</title>{inside}</g>"
    if isinstance(shape, Words):
        (x, y), look = shape.place, f"font-size='{shape.size}' fill='{shape.colour}'"
        look += " text-anchor='middle'" if shape.centred else ""
        look += " stroke='white' stroke-width='2.5' paint-order='stroke'" if shape.halo else ""
        return f"<text x='{x:.1f}' y='{y:.1f}' {look}>{escape(shape.text)}</text>"
    steps = (
        letter + " ".join(f"{x:.1f} {y:.1f}" for x, y in points) for letter, points in shape.steps
    )
    look = f"fill='{shape.fill}' stroke='{shape.stroke}' stroke-width='{shape.width}'"
    return f"<path d='{''.join(steps)}' {look}/>"
