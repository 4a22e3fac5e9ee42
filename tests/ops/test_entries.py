"""What every entry of the core refuses, the registered operations called directly included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ghn_fast._core import core
from ghn_fast.graph import Graph, Node
from ghn_fast.nets import sample_net_args
from ghn_fast.nets.space.genotypes import from_dict
from ghn_fast.ops.shortest_paths import device_dags, shortest_paths, shortest_paths_batch
from ghn_fast.ops.tile import Tile, TileTable, tile
from tests.ops.test_gated_gnn import random_case

OPS = torch.ops.ghn_fast
HUGE = 2**62


def tile_arguments(**changes: Any) -> tuple[Any, ...]:
    arguments = {
        "blocks": [torch.zeros(2, 2, 2)],
        "entries": [0, 1, 0, 2, 4, 3],
        "scales": [1.0],
        "dtype": torch.float32,
        "backend": "cpp",
    }
    return tuple({**arguments, **changes}.values())


def test_tile_called_directly_works() -> None:
    assert [p.shape for p in OPS.tile(*tile_arguments())] == [(4, 3)]


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": [0, 1, 0, 2, 4]},
        {"entries": [0, 1, 0, 2, 4, 3, 9]},
        {"entries": []},
        {"entries": [0, 1, 3, 2, 4, 3]},
        {"entries": [0, 1, -1, 2, 4, 3]},
        {"entries": [0, 1, 0, -2, 4, 3]},
        {"entries": [0, 1, 0, HUGE, 4, 3]},
        {"entries": [0, 2, 0, 2, 4, 3]},
        {"entries": [1, 0, 0, 2, 4, 3]},
        {"entries": [0, 1, 0, 3, 4, 3, 1]},
        {"entries": [0, 1, 0, 2, -4, 3]},
        {"entries": [0, 1, 0, 2, HUGE, 4]},
        {"scales": [1.0, 1.0]},
        {"blocks": []},
        {"blocks": [torch.zeros(())]},
        {"blocks": [torch.zeros(2, 0, 2)]},
        {"blocks": [torch.zeros(2, 2, 2, dtype=torch.bfloat16)]},
        {"dtype": torch.int64},
        {"backend": "reference"},
        {"backend": "opencl"},
    ],
)
def test_tile_called_directly_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        OPS.tile(*tile_arguments(**changes))


def backward_arguments(**changes: Any) -> tuple[Any, ...]:
    arguments = {
        "values": [torch.zeros(2, 2, 2)],
        "grads": [torch.ones(4, 3)],
        "entries": [0, 1, 1, 2, 4, 3],
        "scales": [1.0],
        "dims": [3],
        "sizes": [2, 2, 2],
        "strides": [4, 2, 1],
        "like": torch.zeros(0),
        "backend": "cpp",
    }
    return tuple({**arguments, **changes}.values())


def test_gradient_of_tile_called_directly_works() -> None:
    (grad,) = OPS.tile_backward(*backward_arguments())
    assert grad[0].sum() == 0
    assert grad[1].sum() == pytest.approx(4 * 3 / 4)  # the slope of 2 sigmoid(p / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": []},
        {"values": [None]},
        {"values": [torch.zeros(2, 2, 3)]},
        {"values": [torch.zeros(2, 2, 2, dtype=torch.float64)]},
        {"grads": []},
        {"grads": [torch.ones(3, 4)]},
        {"grads": [torch.ones(4, 3, dtype=torch.int64)]},
        {"entries": [0, 2, 1, 2, 4, 3]},
        {"entries": [0, 1, 1, 2, HUGE, HUGE]},
        {"dims": [4]},
        {"dims": [-3]},
        {"dims": [2, 1]},
        {"sizes": [2, -2, 2]},
        {"sizes": [HUGE, HUGE, 2]},
        {"strides": [HUGE, HUGE, HUGE]},
        {"strides": [4, 2, -1]},
        {"strides": [4, 2]},
        {"like": torch.zeros(0, dtype=torch.float16)},
        {"backend": "reference"},
        {"backend": ""},
    ],
)
def test_gradient_of_tile_called_directly_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        OPS.tile_backward(*backward_arguments(**changes))


def test_tables_of_impossible_shapes() -> None:
    for shape in ((-1, 2), (HUGE, 4), (2**31, 2**31)):
        with pytest.raises(ValueError, match="no tensor has the shape"):
            TileTable([Tile(0, 0, shape)])
    with pytest.raises(ValueError, match="not of no dimensions"):
        tile([torch.zeros(())], TileTable([Tile(0, 0, ())]))


def gnn_arguments(**changes: Any) -> tuple[Any, ...]:
    case = random_case(0, [3, 2])
    arguments = {
        "x": case.x,
        "distances": case.distances,
        "num_nodes": case.num_nodes,
        "weights": case.weights,
        "rounds": 1,
        "save": True,
        "backend": "cpp",
    }
    return tuple({**arguments, **changes}.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": []},
        {"weights": [torch.zeros(())] * 8},
        {"weights": random_case(0, [3, 2]).weights[:11]},
        {"num_nodes": torch.tensor([-3, 8])},
        {"num_nodes": torch.tensor([2**32, 2**32])},
        {"num_nodes": torch.tensor(5)},
        {"rounds": 0},
        {"rounds": HUGE},
        {"x": torch.zeros(5, dtype=torch.float64)},
        {"distances": torch.zeros(12, dtype=torch.uint8)},
        {"backend": "reference"},
        {"backend": "opencl"},
    ],
)
def test_gated_gnn_called_directly_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        OPS.gated_gnn(*gnn_arguments(**changes))


def test_gradient_of_gated_gnn_called_directly_refuses() -> None:
    arguments = gnn_arguments()
    out, saved = OPS.gated_gnn(*arguments)
    _, distances, num_nodes, weights, *_ = arguments

    def differentiate(**changes: Any) -> list[Tensor]:
        given = {"weights": weights, "saved": saved, "grad": out, "rounds": 1, **changes}
        return list(OPS.gated_gnn_backward(distances, num_nodes, *given.values(), "cpp"))

    assert len(differentiate()) == 13
    wrong: list[dict[str, Any]] = [
        {"saved": []},
        {"saved": [saved[0][:-1]]},
        {"saved": [saved[0].float()]},
        {"rounds": 2},
        {"rounds": HUGE},
        {"grad": out[:-1]},
        {"weights": weights[:4]},
    ]
    for changes in wrong:
        with pytest.raises(ValueError):
            differentiate(**changes)


TRANSPOSED = torch.tensor([[0, 1, 2], [1, 2, 3]])


@pytest.mark.parametrize(
    "entry",
    [
        lambda edges: shortest_paths(4, edges),
        lambda edges: shortest_paths_batch([4], [edges]),
        lambda edges: device_dags([4], [edges]),
        lambda edges: Graph([Node("sum", "sum")] * 4, edges),
    ],
)
def test_edges_have_to_be_pairs(entry: Callable[[Tensor], object]) -> None:
    entry(TRANSPOSED.t())
    with pytest.raises(ValueError, match=r"\(E, 2\), not of shape \(2, 3\)"):
        entry(TRANSPOSED)
    with pytest.raises(ValueError, match="int64"):
        entry(TRANSPOSED.t().double())


def test_impossible_numbers_of_nodes_and_distances() -> None:
    edges = torch.zeros(0, 2, dtype=torch.int64)
    for count in (-1, 2**32):
        with pytest.raises(ValueError):
            shortest_paths(count, edges)
        with pytest.raises(ValueError):
            shortest_paths_batch([2, count], [edges, edges])
    with pytest.raises(ValueError, match="max_distance"):
        shortest_paths(2, edges, 2**40)


def in_the_core(net_args: dict[str, Any]) -> dict[str, Any]:
    return {**net_args, "genotype": from_dict(net_args["genotype"])}


@pytest.mark.parametrize(
    "changes",
    [
        {"C": 2**31 - 1},
        {"C": 2**24},
        {"C": 0},
        {"C": -8},
        {"C_mult": 2**20},
        {"C_mult": 0},
        {"n_cells": 2**31 - 1},
        {"ks": 2**31 - 1},
        {"fc_dim": 2**31 - 1, "fc_layers": 2},
        {"fc_dim": -1, "fc_layers": 2},
        {"fc_layers": 2**31 - 1},
    ],
)
def test_networks_of_impossible_widths(changes: dict[str, int]) -> None:
    net_args = {**in_the_core(sample_net_args("train", 0, 0)), **changes}
    for measure in (
        core.deepnets_graph,
        core.deepnets_count_parameters,
        core.deepnets_count_multiply_adds,
    ):
        with pytest.raises(ValueError):
            measure(net_args, 10, False)


@pytest.mark.parametrize("classes", [0, -1, 2**31 - 1])
def test_impossible_numbers_of_classes(classes: int) -> None:
    net_args = in_the_core(sample_net_args("train", 0, 0))
    with pytest.raises(ValueError):
        core.deepnets_graph(net_args, classes, False)
    with pytest.raises(ValueError):
        core.deepnets_batch("train", 0, [0], classes, False, 50, False, 1)
    with pytest.raises(ValueError):
        core.deepnets_measures("train", 0, [0], classes, False, 1)


def infos(*sizes: int) -> list[list[int]]:
    """A tensor at no address; refused before it is read."""
    return [[0, *sizes, *(1,) * 5]]


@pytest.mark.parametrize(
    ("block", "parameter"),
    [
        ((2, 2, 1, 1, 1), (HUGE, 4, 1, 1, 1)),
        ((HUGE, HUGE, 1, 1, 1), (2, 2, 1, 1, 1)),
        ((2, 2, 1, 1, 1), (2, -2, 1, 1, 1)),
        ((2, 0, 1, 1, 1), (2, 2, 1, 1, 1)),
    ],
)
def test_sizes_in_the_core(block: tuple[int, ...], parameter: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        core.tile_float(infos(*block), infos(*parameter), [0], [0], [1.0], 1)
    arguments = infos(*block), infos(*block), infos(*parameter)
    with pytest.raises(ValueError):
        core.tile_backward_float(*arguments, [False], [0], [1.0], 1)


def test_kinds_in_the_core() -> None:
    one = infos(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="unknown type"):
        core.tile_float(one, one, [4], [0], [1.0], 1)
    with pytest.raises(ValueError, match="unknown rule"):
        core.tile_float(one, one, [0], [3], [1.0], 1)
    with pytest.raises(ValueError, match="adds to none"):
        core.tile_backward_float(one, one, one, [True], [0], [1.0], 1)
    with pytest.raises(ValueError, match="more elements"):
        core.gated_gnn_saved_size(2**40, 32, 32, 32, 2**20)
