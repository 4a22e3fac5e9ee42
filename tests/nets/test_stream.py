"""Meta-batches: pure functions of the step, the same for any number of workers and ranks."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from ghn_fast.graph import GraphBatch
from ghn_fast.nets import DeepNets1M, MetaBatches

ENDLESS = 1 << 62


def numbers(batch: GraphBatch) -> list[int]:
    return [graph.index or 0 for graph in batch]


def assert_same(a: GraphBatch, b: GraphBatch) -> None:
    assert numbers(a) == numbers(b)
    assert torch.equal(a.num_nodes, b.num_nodes)
    assert torch.equal(a.offsets, b.offsets)
    assert torch.equal(a.node_types, b.node_types)
    assert torch.equal(a.distances, b.distances)


@pytest.mark.parametrize("arguments", [{"num_nets": ENDLESS}, {"num_nets": 40}, {"split": "deep"}])
@pytest.mark.parametrize("large", [False, True])
def test_arrays_are_those_of_the_graphs(arguments: dict, large: bool) -> None:
    nets = DeepNets1M(**arguments, seed=3, large_images=large)
    for batch in islice(MetaBatches(nets, 4, max_nodes=None), 3):
        assert len(batch) == 4
        assert_same(batch, GraphBatch(list(batch)))
        assert all(graph.digest() == nets[graph.index].digest() for graph in batch)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    stream = MetaBatches(DeepNets1M(num_nets=ENDLESS), meta_batch=3, start=5)
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    for step, batch in zip(range(5, 12), islice(loader, 7), strict=True):
        assert_same(batch, stream.batch(step))


def test_ranks_and_steps_differ() -> None:
    nets = DeepNets1M(num_nets=ENDLESS)
    seen = set()
    for rank in range(3):
        stream = MetaBatches(nets, 2, rank=rank, num_ranks=3)
        for batch in islice(stream, 4):
            seen.update(numbers(batch))
    assert len(seen) == 24
    other = MetaBatches(nets, 2, seed=1).batch(0)
    assert not seen & set(numbers(other))


def test_limit_of_nodes() -> None:
    nets = DeepNets1M(num_nets=ENDLESS)
    free = [MetaBatches(nets, 8, max_nodes=None).batch(step) for step in range(40)]
    limited = [MetaBatches(nets, 8, max_nodes=1200).batch(step) for step in range(40)]
    assert max(int(batch.offsets[-1]) for batch in free) > 1200
    assert max(int(batch.offsets[-1]) for batch in limited) <= 1200
    for a, b in zip(free, limited, strict=True):
        if int(a.offsets[-1]) <= 1200:
            assert_same(a, b)


def test_all_networks_are_drawn_alike() -> None:
    stream = MetaBatches(DeepNets1M(num_nets=20), meta_batch=8, max_nodes=None)
    counts = torch.zeros(20)
    for step in range(150):
        for index in numbers(stream.batch(step)):
            counts[index] += 1
    expected = 150 * 8 / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8  # chi-square, p = 0.001


def test_published_files(shared: Path) -> None:
    nets = DeepNets1M(nets_dir=shared / "conformance" / "deepnets1m")
    stream = MetaBatches(nets, meta_batch=2)
    loader = DataLoader(stream, batch_size=None, num_workers=1)
    for step, batch in zip(range(2), loader, strict=False):
        assert_same(batch, stream.batch(step))
        assert set(numbers(batch)) <= set(range(20))


def test_batches_travel_light() -> None:
    batch = MetaBatches(DeepNets1M(num_nets=ENDLESS), meta_batch=8).batch(0)
    nodes = next(iter(batch)).nodes
    arrays = sum(t.nbytes for t in (batch.node_types, batch.distances, batch.num_nodes))
    content = pickle.dumps(batch)
    assert len(content) < arrays + 4000
    assert pickle.loads(content)[0].nodes == nodes


@pytest.mark.parametrize(
    "arguments", [{"meta_batch": 0}, {"start": -1}, {"rank": 2, "num_ranks": 2}]
)
def test_bad_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot draw meta-batches"):
        MetaBatches(DeepNets1M(), **arguments)


def test_lengths_must_fit() -> None:
    batch = MetaBatches(DeepNets1M(), meta_batch=2).batch(0)
    with pytest.raises(ValueError, match=r"2 graphs of \d+ nodes need"):
        GraphBatch.from_arrays(
            batch.graphs, batch.num_nodes, batch.node_types, batch.distances[:-1]
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_memory() -> None:
    stream = MetaBatches(DeepNets1M(), meta_batch=2)
    batch = next(iter(DataLoader(stream, batch_size=None, pin_memory=True)))
    assert batch.distances.is_pinned()
    assert_same(batch.to("cuda").to("cpu"), stream.batch(0))
