"""
The compiled core of ghn_fast.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "GatedGnnSizes",
    "compiler",
    "contract",
    "cuda",
    "deepnets_batch",
    "deepnets_count_multiply_adds",
    "deepnets_count_parameters",
    "deepnets_graph",
    "deepnets_measures",
    "deepnets_published_names",
    "deepnets_sample",
    "gated_gnn_backward_double",
    "gated_gnn_backward_float",
    "gated_gnn_forward_double",
    "gated_gnn_forward_float",
    "gated_gnn_saved_size",
    "isa",
    "openmp",
    "shortest_paths",
    "shortest_paths_cuda",
    "tile_backward_double",
    "tile_backward_float",
    "tile_double",
    "tile_float",
    "use_isa",
]

class GatedGnnSizes:
    def __init__(
        self,
        num_nodes: collections.abc.Sequence[int],
        hid: int,
        width: int,
        width_ve: int,
        rounds: int,
    ) -> None: ...

def contract(
    kinds: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8],
    offsets: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    operands: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    outputs: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
) -> tuple[
    numpy.typing.NDArray[numpy.int64],
    numpy.typing.NDArray[numpy.int64],
    numpy.typing.NDArray[numpy.uint8],
]: ...
def deepnets_batch(
    split: str,
    seed: int,
    indices: collections.abc.Sequence[int],
    num_classes: int,
    large_images: bool,
    max_distance: int,
    with_rows: bool,
    num_threads: int,
) -> tuple[
    numpy.typing.NDArray[numpy.int64],
    numpy.typing.NDArray[numpy.uint8],
    numpy.typing.NDArray[numpy.int32],
    numpy.typing.NDArray[numpy.int64],
    numpy.typing.NDArray[numpy.int32],
    numpy.typing.NDArray[numpy.uint8],
    numpy.typing.NDArray[numpy.uint16],
]: ...
def deepnets_count_multiply_adds(
    net_args: dict[str, typing.Any], num_classes: int, large_images: bool
) -> int: ...
def deepnets_count_parameters(
    net_args: dict[str, typing.Any], num_classes: int, large_images: bool
) -> int: ...
def deepnets_graph(
    net_args: dict[str, typing.Any], num_classes: int, large_images: bool
) -> tuple[
    numpy.typing.NDArray[numpy.uint8],
    numpy.typing.NDArray[numpy.int64],
    list[str | None],
    list[tuple[int, ...] | None],
    list[str | None],
    list[str],
]: ...
def deepnets_measures(
    split: str,
    seed: int,
    indices: collections.abc.Sequence[int],
    num_classes: int,
    large_images: bool,
    num_threads: int,
) -> tuple[
    numpy.typing.NDArray[numpy.int64],
    numpy.typing.NDArray[numpy.int64],
    numpy.typing.NDArray[numpy.int64],
]: ...
def deepnets_published_names(positions: int) -> list[str]: ...
def deepnets_sample(
    split: str, seed: int, index: int, large_images: bool
) -> dict[str, typing.Any]: ...
def gated_gnn_backward_double(
    sizes: GatedGnnSizes,
    distances: int,
    weights: collections.abc.Sequence[int],
    saved: int,
    grad_out: int,
    grad_x: int,
    grad_weights: collections.abc.Sequence[int],
    num_threads: int,
) -> None: ...
def gated_gnn_backward_float(
    sizes: GatedGnnSizes,
    distances: int,
    weights: collections.abc.Sequence[int],
    saved: int,
    grad_out: int,
    grad_x: int,
    grad_weights: collections.abc.Sequence[int],
    num_threads: int,
) -> None: ...
def gated_gnn_forward_double(
    sizes: GatedGnnSizes,
    distances: int,
    weights: collections.abc.Sequence[int],
    x: int,
    out: int,
    saved: int,
    num_threads: int,
) -> None: ...
def gated_gnn_forward_float(
    sizes: GatedGnnSizes,
    distances: int,
    weights: collections.abc.Sequence[int],
    x: int,
    out: int,
    saved: int,
    num_threads: int,
) -> None: ...
def gated_gnn_saved_size(
    num_nodes: int, hid: int, width: int, width_ve: int, rounds: int
) -> int: ...
def isa() -> str: ...
def shortest_paths(
    num_nodes: collections.abc.Sequence[int],
    edges: collections.abc.Sequence[int],
    num_edges: collections.abc.Sequence[int],
    max_distance: int,
    distances: int,
    num_threads: int,
) -> None: ...
def shortest_paths_cuda(
    node_offsets: int,
    matrix_offsets: int,
    successor_offsets: int,
    successors: int,
    num_graphs: int,
    most_nodes: int,
    max_distance: int,
    distances: int,
    stream: int,
) -> None: ...
def tile_backward_double(
    blocks: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    block_gradients: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    parameter_gradients: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    adds: collections.abc.Sequence[bool],
    rules: collections.abc.Sequence[int],
    scales: collections.abc.Sequence[float],
    num_threads: int,
) -> None: ...
def tile_backward_float(
    blocks: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    block_gradients: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    parameter_gradients: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    adds: collections.abc.Sequence[bool],
    rules: collections.abc.Sequence[int],
    scales: collections.abc.Sequence[float],
    num_threads: int,
) -> None: ...
def tile_double(
    blocks: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    parameters: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    types: collections.abc.Sequence[int],
    rules: collections.abc.Sequence[int],
    scales: collections.abc.Sequence[float],
    num_threads: int,
) -> None: ...
def tile_float(
    blocks: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    parameters: collections.abc.Sequence[
        typing.Annotated[collections.abc.Sequence[int], "FixedSize(11)"]
    ],
    types: collections.abc.Sequence[int],
    rules: collections.abc.Sequence[int],
    scales: collections.abc.Sequence[float],
    num_threads: int,
) -> None: ...
def use_isa(name: str) -> None: ...

compiler: str
cuda: bool
openmp: bool
