"""Layouts without overlaps, and pictures with everything that the graph has."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest
import torch

from ghn_fast.graph import Graph, Node
from ghn_fast.graph.draw import svg
from ghn_fast.graph.draw.layout import layout
from ghn_fast.nets import DARTS, DeepNets1M, graph_of
from tests.graphs import small_classifier

pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"


def edges_of(graph: Graph) -> list[tuple[int, int]]:
    return [(source, target) for source, target in graph.edges.tolist()]


@pytest.mark.parametrize(("split", "index"), [("val", 0), ("test", 3), ("dense", 1), ("train", 5)])
def test_nodes_do_not_overlap(split: str, index: int) -> None:
    graph = DeepNets1M(split)[index]
    places = layout(graph.num_nodes, edges_of(graph))
    assert places.nodes.shape == (graph.num_nodes, 2)
    rows: dict[float, list[float]] = {}
    for x, y in places.nodes.tolist():
        rows.setdefault(y, []).append(x)
    for row in rows.values():
        assert all(abs(a - b) > 0.99 for a, b in combinations(row, 2))


def test_lines_lead_from_sources_to_targets() -> None:
    graph = DeepNets1M("val")[1]
    edges = edges_of(graph)
    places = layout(graph.num_nodes, edges)
    follow: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for line in places.lines:
        follow.setdefault(line[0], []).append(line[-1])
    node_at = {tuple(place): node for node, place in enumerate(places.nodes.tolist())}
    found = set()
    for node, place in enumerate(places.nodes.tolist()):
        pending = list(follow.get(tuple(place), []))
        while pending:
            point = pending.pop()
            if point in node_at:
                found.add((node, node_at[point]))
            else:
                pending += follow[point]
    assert found == set(edges)


def test_short_graphs_are_one_column_from_top_to_bottom() -> None:
    edges = [(0, 1), (1, 2), (0, 3), (2, 4), (3, 4), (0, 4)]
    places = layout(5, edges)
    heights = places.nodes[:, 1]
    assert all(heights[source] < heights[target] for source, target in edges)
    assert heights[4] == 3
    left, top, right, bottom = places.box
    assert (top, bottom) == (0, 3)
    assert right - left < 3


def crossings(lines: list[list[tuple[float, float]]]) -> int:
    pairs = combinations([line for line in lines if len(line) == 2], 2)
    return sum(
        a[0][1] == b[0][1] and (a[0][0] - b[0][0]) * (a[1][0] - b[1][0]) < -1e-9 for a, b in pairs
    )


def test_few_crossings() -> None:
    """A ladder drawn in a bad order has none; a DARTS network has a small share of its edges."""
    ladder = [(0, 2), (0, 1), (1, 4), (2, 3), (3, 5), (4, 6), (5, 7), (6, 7)]
    assert crossings(layout(8, ladder).lines) == 0
    darts = graph_of({"C": 16, "genotype": DARTS, "n_cells": 8})
    assert crossings(layout(darts.num_nodes, edges_of(darts)).lines) < len(darts.edges) / 4


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(ending: str, tmp_path: Path) -> None:
    from ghn_fast.graph.draw import draw

    graph = DeepNets1M("val", num_nets=3)[2]
    path = tmp_path / f"graph.{ending}"
    drawing = draw(graph, path, title="val:2")
    if ending == "png":
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert ElementTree.fromstring(drawing._repr_svg_()).tag.endswith("svg")
    axes = drawing.figure.axes[0]
    drawn = sum(len(points.get_offsets()) for points in axes.collections)
    assert drawn == graph.num_nodes
    texts = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert sum(int(text.rsplit("(")[-1].rstrip(")")) for text in texts) == graph.num_nodes
    assert any(text.startswith("batch norm (") for text in texts)


def test_every_node_type_has_its_own_look() -> None:
    from ghn_fast.graph import CHANNEL_NODE_TYPES
    from ghn_fast.graph.draw.style import STYLES

    assert set(STYLES) == {*CHANNEL_NODE_TYPES, "linear"}
    assert len({(style.colour, style.marker) for style in STYLES.values()}) == len(STYLES)


def _drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_svg_shows_nodes_arrows_stages_and_shapes() -> None:
    graph = small_classifier()
    picture = _drawn(graph._repr_svg_())
    titles = [element.text or "" for element in picture.iter(f"{SVG}title")]
    assert len(titles) == graph.num_nodes
    named = next(title for title in titles if title.startswith("conv.weight"))
    assert "8 x 3 x 3 x 3" in named
    (tips,) = [group for group in picture.iter(f"{SVG}g") if group.get("class") == "tips"]
    assert len(tips) == len(graph.edges)
    assert not [element for element in picture.iter() if element.get("id")]
    words = {element.text for element in picture.iter(f"{SVG}text")}
    assert {"conv", "bn", "fc", "batch norm (1)"} <= words


def test_svg_is_xml_whatever_the_names() -> None:
    name = "a\x00\x1b\ufffe\ud800b\U0001f600.weight"
    graph = Graph((Node("conv", name, (8, 3, 3, 3), name),), torch.empty(0, 2).long())
    assert "a\ufffd\ufffd\ufffd\ufffdb\U0001f600.weight" in "".join(_drawn(svg(graph)).itertext())


def test_svg_is_shaded_hollow_and_noted() -> None:
    graph = small_classifier()
    plain = svg(graph)
    looks = svg(graph, shades={1: 0.0}, hollow=[2], notes={2: "kept: <why>"})
    assert svg(graph, hollow=[2]).count("fill='white'") == plain.count("fill='white'") + 1
    assert "kept: &lt;why&gt;" in looks
    assert looks != svg(graph, shades={1: 1.0}, hollow=[2], notes={2: "kept: <why>"})
    assert svg(graph, shades={1: 1.0}) == plain


def test_the_outline_of_a_hollow_node_is_dark_enough_to_see() -> None:
    graph = small_classifier()
    assert any(node.type == "bias" for node in graph.nodes), "the palest of all"
    for index in range(graph.num_nodes):
        outline = re.search(r"fill='white' stroke='#(\w{6})'", svg(graph, hollow=[index]))
        assert outline is not None
        channels = [int(outline[1][at : at + 2], 16) / 255 for at in (0, 2, 4)]
        assert sum(channels) / 3 < 0.6


def test_svg_of_nodes_that_have_no_style() -> None:
    node = Node("input", "input")
    graph = Graph((node, Node("sum", "a<b")), [[0, 1]])
    object.__setattr__(graph.nodes[1], "type", "some_other")
    assert "some other (1)" in svg(graph)
    assert "a&lt;b" in svg(graph)


def test_graphs_of_networkx() -> None:
    pytest.importorskip("networkx")
    graph = small_classifier()
    other = graph.to_networkx()
    assert sorted(other.edges) == sorted(map(tuple, graph.edges.tolist()))
    assert [other.nodes[i]["type"] for i in other] == [node.type for node in graph.nodes]
    assert other.nodes[1]["shape"] == (8, 3, 3, 3)
