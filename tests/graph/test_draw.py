"""Layouts without overlaps, and pictures with everything that the graph has."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from ghn_fast.graph import CHANNEL_NODE_TYPES, LANGUAGE_NODE_TYPES, Graph, Node
from ghn_fast.graph.draw import draw, svg
from ghn_fast.graph.draw.layout import layout
from ghn_fast.graph.draw.shapes import mark
from ghn_fast.graph.draw.style import STYLES
from ghn_fast.nets import DARTS, DeepNets1M, graph_of
from tests.graphs import small_classifier

SVG = "{http://www.w3.org/2000/svg}"
CLOSED = 79
"""matplotlib's code of a step back to the beginning."""


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


def language_graph() -> Graph:
    types = ["input", "conv", "rmsnorm", "rot_emb", "gate", "rmsnorm", "rot_emb", "gate"]
    nodes = tuple(Node(kind, f"{kind}{i}") for i, kind in enumerate(types))
    return Graph(nodes, [[i, i + 1] for i in range(len(nodes) - 1)])


def parts(picture: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return list(picture.iter(f"{SVG}{kind}"))


@pytest.mark.parametrize("make", [lambda: DeepNets1M("val", num_nets=3)[2], language_graph])
def test_matplotlib_draws_what_svg_does(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph = make()
    drawing = draw(graph, tmp_path / "a.png", title="a picture")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawing.save(tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    picture, axes = _drawn(drawing._repr_svg_()), drawing.figure().axes[0]
    assert len(parts(picture, "title")) == graph.num_nodes
    assert len(axes.patches) == len(parts(picture, "path"))
    assert [text.get_text() for text in axes.texts] == [
        text.text for text in parts(picture, "text")
    ]
    for patch, path in zip(axes.patches, parts(picture, "path"), strict=True):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d", ""))]
        drawn = [point for point, code in patch.get_path().iter_segments() if code != CLOSED]
        assert numbers == pytest.approx(np.concatenate(drawn).tolist(), abs=0.051)


def test_legend_has_every_node() -> None:
    for graph in (DeepNets1M("val", num_nets=3)[2], language_graph()):
        words = [text.text or "" for text in parts(_drawn(svg(graph)), "text")]
        counts = [re.fullmatch(r"(.+) \((\d+)\)", word) for word in words]
        assert sum(int(found[2]) for found in counts if found) == graph.num_nodes
    assert {"RMS norm (2)", "rotary embedding (2)", "product with a gate (2)"} <= set(words)


def test_svg_is_as_a_notebook_shows_it(tmp_path: Path) -> None:
    graph, path = small_classifier(), tmp_path / "a.svg"
    drawing = graph.draw(path)
    assert path.read_text("utf-8") == drawing._repr_svg_() == svg(graph, title="6 nodes")


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_a_picture_is_written_whole_or_not_at_all(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / f"a.{ending}"
    graph = small_classifier()
    graph.draw(path)
    before = path.read_bytes()

    def full(path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ghn_fast._system.files.sync", full)
    with pytest.raises(OSError, match="no space left"):
        graph.draw(path, title="another")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_node_type_has_its_own_look() -> None:
    assert set(STYLES) == {*CHANNEL_NODE_TYPES, *LANGUAGE_NODE_TYPES, "linear"}
    assert len({(style.colour, style.marker) for style in STYLES.values()}) == len(STYLES)


@pytest.mark.parametrize("marker", sorted({style.marker for style in STYLES.values()}))
def test_marks_are_within_their_places(marker: str) -> None:
    points = np.array([point for _, corners in mark(marker, 3.0, 5.0, 8.0) for point in corners])
    reach = np.linalg.norm(points - (3.0, 5.0), axis=1).max()
    assert reach == pytest.approx(9.92 if marker == "s" else 8.0, rel=1e-3)
    if marker == "o":  # between the ends of the curves, too
        (start,), *curves = (corners for _, corners in mark(marker, 0.0, 0.0, 8.0)[:-1])
        for a, b, end in curves:
            halfway = (np.array(start) + 3 * np.array(a) + 3 * np.array(b) + np.array(end)) / 8
            assert np.linalg.norm(halfway) == pytest.approx(7.0, rel=1e-3)
            start = end


def _drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_svg_shows_nodes_arrows_stages_and_shapes() -> None:
    graph = small_classifier()
    picture = _drawn(graph._repr_svg_())
    titles = [element.text or "" for element in picture.iter(f"{SVG}title")]
    assert len(titles) == graph.num_nodes
    named = next(title for title in titles if title.startswith("conv.weight"))
    assert "8 x 3 x 3 x 3" in named
    edges, tips = (path.get("d", "") for path in parts(picture, "path")[:2])
    assert edges.count("M") == tips.count("M") == tips.count("Z") == len(graph.edges)
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


def test_svg_escapes_names() -> None:
    graph = Graph((Node("input", "input"), Node("sum", "a<b")), [[0, 1]])
    assert "a&lt;b" in svg(graph)
    assert "a&lt;b" in svg(graph, title="a<b").splitlines()[1]


def test_graphs_of_networkx() -> None:
    pytest.importorskip("networkx")
    graph = small_classifier()
    other = graph.to_networkx()
    assert sorted(other.edges) == sorted(map(tuple, graph.edges.tolist()))
    assert [other.nodes[i]["type"] for i in other] == [node.type for node in graph.nodes]
    assert other.nodes[1]["shape"] == (8, 3, 3, 3)
