from __future__ import annotations

import torch
from torch import Tensor

from ghn_fast.ghn.embed.graphormer import (
    Attention,
    Graphormer,
    Padding,
    centrality,
    pair_indices,
)
from ghn_fast.graph import Graph, GraphBatch, Node
from ghn_fast.ops.shortest_paths import matrices
from tests.graphs import random_edges

HID, HEADS = 16, 4


def random_graph(num_nodes: int, generator: torch.Generator) -> Graph:
    nodes = tuple(Node("sum", "sum") for _ in range(num_nodes))
    return Graph(nodes, random_edges(num_nodes, generator, density=0.05))


def random_batch(generator: torch.Generator, sizes: tuple[int, ...] = (70, 5, 31)) -> GraphBatch:
    return GraphBatch([random_graph(size, generator) for size in sizes])


def attention_by_definition(attention: Attention, x: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention over the nodes of one graph: x (N, hid), bias (N, N, heads)."""
    query, key, value = attention.to_qkv(x).view(len(x), 3, HEADS, -1).unbind(1)
    scores = torch.einsum("uhc,vhc->uvh", query, key) / (HID // HEADS) ** 0.5
    heard = torch.einsum("uvh,vhc->uhc", (scores + bias).softmax(dim=1), value)
    return attention.to_out(heard.flatten(1))


def bias_by_definition(attention: Attention, distances: Tensor) -> Tensor:
    """The MLP of the two directions' embeddings for every pair of nodes: (N, N, heads)."""
    embedded = attention.edge_embed.embed(distances.long() + 2)
    return attention.proj_e(torch.cat((embedded, embedded.transpose(0, 1)), dim=-1))


def test_equals_its_definition(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    graphormer = Graphormer(HID, layers=3, heads=HEADS)
    batch = random_batch(generator)
    x = torch.randn(int(batch.num_nodes.sum()), HID, generator=generator)
    expected = []
    for graph, nodes in zip(batch, x.split(batch.num_nodes.tolist()), strict=True):
        bias = bias_by_definition(graphormer[0].attn, graph.distances)
        for layer in graphormer:
            nodes = nodes + attention_by_definition(layer.attn, layer.ln1(nodes), bias)
            nodes = nodes + layer.ff(layer.ln2(nodes))
        expected.append(nodes)
    torch.testing.assert_close(graphormer(x, batch), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_definition(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    graphormer = Graphormer(HID, layers=1, heads=HEADS).double()
    batch = random_batch(generator, (12, 5))
    x = torch.randn(17, HID, generator=generator, dtype=torch.float64)
    weight = torch.randn(17, HID, generator=generator, dtype=torch.float64)
    graphormer(x, batch).mul(weight).sum().backward()
    gradients = {name: p.grad for name, p in graphormer.named_parameters()}
    graphormer.zero_grad()
    outputs = []
    for graph, nodes in zip(batch, x.split([12, 5]), strict=True):
        layer = graphormer[0]
        bias = bias_by_definition(layer.attn, graph.distances)
        nodes = nodes + attention_by_definition(layer.attn, layer.ln1(nodes), bias)
        outputs.append(nodes + layer.ff(layer.ln2(nodes)))
    torch.cat(outputs).mul(weight).sum().backward()
    for name, parameter in graphormer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_bias_table_has_a_row_for_each_pair_of_distances() -> None:
    attention = Attention(HID, HEADS, first=True)
    table = attention.bias_table(50)
    assert table.shape == (101, HEADS)
    for row, (forward, backward) in {0: (0, 0), 7: (7, 0), 50: (50, 0), 58: (0, 8)}.items():
        pair = attention.edge_embed.embed(torch.tensor([forward + 2, backward + 2])).flatten()
        torch.testing.assert_close(table[row], attention.proj_e(pair))


def test_pair_indices_are_rows_of_the_table(generator: torch.Generator) -> None:
    batch = random_batch(generator, (6, 9))
    padding = Padding.of(batch, torch.device("cpu"))
    rows = pair_indices(batch, padding, max_distance=50)
    assert rows.shape == (2, 9, 9)
    distances = batch[0].distances.long()
    for u in range(6):
        for v in range(6):
            expected = distances[u, v] if u < v else 50 + distances[v, u] if v < u else 0
            assert rows[0, u, v] == expected


def test_padding_and_back(generator: torch.Generator) -> None:
    batch = random_batch(generator, (4, 2, 3))
    padding = Padding.of(batch, torch.device("cpu"))
    x = torch.randn(9, 5, generator=generator)
    padded = padding.pad(x)
    assert padded.shape == (3, 4, 5)
    assert torch.equal(padded[1, :2], x[4:6])
    assert not padded[1, 2:].any()
    assert torch.equal(padding.unpad(padded), x)


def test_equal_sizes_are_not_copied(generator: torch.Generator) -> None:
    batch = random_batch(generator, (4, 4))
    padding = Padding.of(batch, torch.device("cpu"))
    x = torch.randn(8, 5, generator=generator)
    assert padding.pad(x).data_ptr() == x.data_ptr()
    assert torch.equal(padding.matrices(batch)[1], batch[1].distances)


def test_centrality(generator: torch.Generator) -> None:
    edges = torch.tensor([[0, 1], [0, 2], [1, 3], [2, 3], [3, 4]])
    graph = Graph(tuple(Node("sum", "sum") for _ in range(5)), edges)
    batch = GraphBatch([graph, random_graph(3, generator)])
    degree_in, degree_out, depth = centrality(batch)
    assert degree_in[:5].tolist() == [0, 1, 1, 2, 1]
    assert degree_out[:5].tolist() == [2, 1, 1, 1, 0]
    assert depth[:5].tolist() == [0, 1, 1, 2, 3]
    assert len(depth) == 8


def test_matrices(generator: torch.Generator) -> None:
    batch = random_batch(generator)
    found = matrices(batch.distances, batch.num_nodes.tolist())
    for graph, matrix in zip(batch, found, strict=True):
        assert torch.equal(graph.distances, matrix)
