from __future__ import annotations

import pytest
import torch

from ghn_fast.graph import NODE_TYPES, Graph, GraphBatch, Node
from tests.graphs import small_classifier


@pytest.mark.parametrize("model", ["resnet18", small_classifier])
def test_of_a_name_or_a_function(model: object) -> None:
    with pytest.raises(TypeError, match=f"a torch.nn.Module, not {type(model).__name__}"):
        Graph.from_model(model)  # type: ignore[arg-type]


def test_types_and_distances() -> None:
    graph = small_classifier()
    assert [NODE_TYPES[i] for i in graph.node_types] == [node.type for node in graph.nodes]
    assert graph.node_types.dtype == torch.int64
    assert graph.distances.tolist()[0] == [0, 1, 2, 3, 4, 5]


def test_edges_are_sorted_and_unique() -> None:
    nodes = tuple(Node("sum", "sum") for _ in range(3))
    graph = Graph(nodes, torch.tensor([[1, 2], [0, 1], [1, 2]]))
    assert graph.edges.tolist() == [[0, 1], [1, 2]]


def test_unknown_type() -> None:
    with pytest.raises(ValueError, match="unknown node type 'relu'; known types: max_pool"):
        Graph((Node("relu", "relu"),), torch.zeros(0, 2, dtype=torch.int64))


def test_digest_tells_architectures_apart() -> None:
    assert small_classifier().digest() == small_classifier().digest()
    assert small_classifier(8).digest() != small_classifier(16).digest()


def test_batch_layout() -> None:
    graphs = [small_classifier(8), small_classifier(16)]
    batch = GraphBatch(graphs)
    assert batch.num_nodes.tolist() == [6, 6]
    assert batch.offsets.tolist() == [0, 6, 12]
    assert torch.equal(batch.distances[36:].view(6, 6), graphs[1].distances)
    assert list(batch) == graphs
    assert batch[1] is graphs[1]


def test_a_batch_on_another_device_is_another_batch() -> None:
    batch = GraphBatch([small_classifier()])
    moved = batch.to("meta")
    assert moved.node_types.is_meta
    assert moved.distances.is_meta
    assert moved.num_nodes.is_cpu
    assert batch.node_types.is_cpu
    assert batch.distances.is_cpu
    assert batch.to("cpu") is batch


def test_empty_batch() -> None:
    with pytest.raises(ValueError, match="at least one graph"):
        GraphBatch([])
