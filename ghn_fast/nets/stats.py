"""What the networks of a split are like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ghn_fast._core import core
from ghn_fast.graph.graph import Graph
from ghn_fast.graph.types import NODE_TYPES
from ghn_fast.nets.deepnets1m import DeepNets1M
from ghn_fast.nets.families import family_split, sample_member
from ghn_fast.nets.measure.count import count_parameters
from ghn_fast.nets.measure.multiply_adds import count_multiply_adds
from ghn_fast.nets.space.network import build_net


@dataclass(frozen=True)
class NetsStats:
    """Of B networks.

    Attributes:
        nodes, edges: (B,) numbers of nodes and of 1-hop edges.
        depth: (B,) edges on the longest path.
        parameters, multiply_adds: (B,) of the network and its forward pass for one image.
        degrees: entry d is how many nodes of all networks have d edges.
        types: (15,) how many nodes of all networks are of each of `NODE_TYPES`.
    """

    nodes: np.ndarray
    edges: np.ndarray
    depth: np.ndarray
    parameters: np.ndarray
    multiply_adds: np.ndarray
    degrees: np.ndarray
    types: np.ndarray


def measure(nets: DeepNets1M, count: int, threads: int = 1) -> NetsStats:
    """Measures the first `count` networks.

    Raises:
        ValueError: `count` is not from 1 to the number of networks.
    """
    if not 0 < count <= len(nets):
        raise ValueError(f"split {nets.split!r} has {len(nets):,} networks, not {count:,}")
    if nets.is_sampled:
        return _of_sampled(nets, count, threads)
    return _of_graphs(nets, count)


def _of_sampled(nets: DeepNets1M, count: int, threads: int) -> NetsStats:
    columns: list[tuple[np.ndarray, ...]] = []
    degrees = np.zeros(1, dtype=np.int64)
    types = np.zeros(len(NODE_TYPES), dtype=np.int64)
    for start in range(0, count, _CHUNK):
        indices = range(start, min(start + _CHUNK, count))
        where = (nets.split, nets.seed, indices, nets.num_classes, nets.large_images)
        num_nodes, node_types, _, num_edges, edges, *_ = core.deepnets_batch(
            *where, max_distance=1, with_rows=False, num_threads=threads
        )
        parameters, multiply_adds, depth = core.deepnets_measures(*where, num_threads=threads)
        columns.append((num_nodes, num_edges, depth, parameters, multiply_adds))
        firsts = np.repeat(np.cumsum(num_nodes) - num_nodes, num_edges)
        ends = (edges + firsts[:, None]).ravel()
        degrees = _added(degrees, np.bincount(np.bincount(ends, minlength=int(num_nodes.sum()))))
        types += np.bincount(node_types, minlength=len(NODE_TYPES))
    nodes, edge_counts, *rest = map(np.concatenate, zip(*columns, strict=True))
    return NetsStats(nodes, edge_counts, rest[0], rest[1], rest[2], degrees, types)


_CHUNK = 1000


def _of_graphs(nets: DeepNets1M, count: int) -> NetsStats:
    def measured(index: int) -> tuple[Graph, int, int]:
        graph = nets[index]
        assert graph.net_args is not None
        sizes = parameters_and_multiply_adds(graph.net_args, nets.num_classes, nets.large_images)
        return graph, *sizes

    return _of_each(map(measured, range(count)))


def measure_members(split: str, seed: int, count: int) -> NetsStats:
    """Measures the first `count` networks of a split, or of one family of it
    (:mod:`ghn_fast.nets.families`)."""
    whole, family = family_split(split)
    members = (sample_member(whole, seed, index, family=family) for index in range(count))
    return _of_each((m.graph, m.parameters, m.multiply_adds) for m in members)


def _of_each(measured: Iterable[tuple[Graph, int, int]]) -> NetsStats:
    """From graphs with their numbers of parameters and multiply-adds."""
    rows = []
    degrees = np.zeros(1, dtype=np.int64)
    types = np.zeros(len(NODE_TYPES), dtype=np.int64)
    for graph, *sizes in measured:
        rows.append((graph.num_nodes, len(graph.edges), longest_path(graph), *sizes))
        ends = np.bincount(graph.edges.numpy().ravel(), minlength=graph.num_nodes)
        degrees = _added(degrees, np.bincount(ends))
        types += np.bincount(graph.node_types.numpy(), minlength=len(NODE_TYPES))
    table = np.array(rows, dtype=np.int64)
    return NetsStats(
        table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4], degrees, types
    )


def parameters_and_multiply_adds(
    net_args: Mapping[str, Any], num_classes: int, large_images: bool
) -> tuple[int, int]:
    """The numbers of parameters and of multiply-adds of a network of DeepNets-1M."""
    if net_args["genotype"] != "resnet50":
        return (
            count_parameters(net_args, num_classes, large_images),
            count_multiply_adds(net_args, num_classes, large_images),
        )
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build_net(net_args, num_classes, large_images)
        size = 224 if large_images else 32
        images = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, counter.get_total_flops() // 2


def longest_path(graph: Graph) -> int:
    """The number of edges on the longest path."""
    depth = [0] * graph.num_nodes
    for source, target in graph.edges.tolist():  # sorted, so that sources are final
        depth[target] = max(depth[target], depth[source] + 1)
    return max(depth)


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = max(len(a), len(b))
    return np.pad(a, (0, size - len(a))) + np.pad(b, (0, size - len(b)))
