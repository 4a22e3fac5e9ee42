"""What a picture is made of: paths, words and groups of them, which any writer can draw."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from ghn_fast.graph.draw.layout import Point

Step = tuple[str, Sequence[Point]]
"""M, L, C or Z, as in SVG, and its points in pixels."""


class Path(NamedTuple):
    """Lines and areas of one look."""

    steps: Sequence[Step]
    fill: str = "none"
    stroke: str = "none"
    width: float = 0.0


class Words(NamedTuple):
    """A line of text that begins at a place, or has its middle there."""

    place: Point
    text: str
    size: float
    colour: str
    centred: bool = False
    halo: bool = False


class Group(NamedTuple):
    """What belongs together, and what is shown where it is pointed at."""

    title: str
    shapes: Sequence[Path | Words]


class Scene(NamedTuple):
    """A picture: its size in pixels, and what is drawn in it, one over the other."""

    width: float
    height: float
    shapes: Sequence[Path | Words | Group]


def polygon(corners: Sequence[Point]) -> list[Step]:
    """The area between corners."""
    return [("M", corners[:1]), ("L", corners[1:]), ("Z", ())]


def mark(marker: str, x: float, y: float, radius: float) -> list[Step]:
    """The shape of a node, by matplotlib's letter for it."""
    if marker == "o":
        return _circle(x, y, radius * 7 / 8)
    angles, outer, inner = _MARKS[marker]
    reaches = (radius * (inner if i % 2 else outer) for i in range(len(angles)))
    rays = [(r, math.radians(angle)) for r, angle in zip(reaches, angles, strict=True)]
    return polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in rays])


_MARKS: dict[str, tuple[Sequence[int], float, float]] = {
    "s": (range(45, 405, 90), 1.24, 1.24),
    "D": (range(0, 360, 90), 1.0, 1.0),
    "^": (range(-90, 270, 120), 1.0, 1.0),
    "v": (range(90, 450, 120), 1.0, 1.0),
    "h": (range(0, 360, 60), 1.0, 1.0),
    "*": (range(-90, 270, 36), 1.0, 0.45),
    "P": (range(0, 360, 45), 1.0, 0.5),
}
"""Where the corners are, and how far out they and every second one are."""


def _circle(x: float, y: float, radius: float) -> list[Step]:
    """Of four curves, which differ from it by less than a thousandth."""
    steps: list[Step] = [("M", [(x + radius, y)])]
    for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        unit = ((c - 0.5523 * s, s + 0.5523 * c), (0.5523 * c - s, 0.5523 * s + c), (-s, c))
        steps.append(("C", [(x + radius * a, y + radius * b) for a, b in unit]))
    return [*steps, ("Z", ())]


def readable(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write (section 2.2), nor fonts a form."""
    return _NO_CHARACTER.sub("\ufffd", text)


_NO_CHARACTER = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
