"""Genotypes: the cells of DeepNets-1M networks (arXiv 2110.13100, sec. 3.1; arXiv 1806.09055)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

OPERATIONS: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
"""The operations of a cell. The first four have no parameters at stride 1. The order is part of
the definition of the sampled networks: do not change it."""


class Genotype(NamedTuple):
    """A normal and a reduction cell.

    States 0 and 1 of a cell are the outputs of the two cells before it. Entries `2 * i` and
    `2 * i + 1` of `normal` (or `reduce`) are the operations, with the states they read, that are
    added up to state `i + 2`. The output concatenates the states of `normal_concat`.

    Examples:
        >>> genotype = ghn_fast.Genotype(
        ...     normal=[("conv_3x3", 0), ("skip_connect", 1)], normal_concat=[2],
        ...     reduce=[("max_pool_3x3", 0), ("conv_1x1", 1)], reduce_concat=[2],
        ... )
        >>> network = ghn_fast.Network(16, 10, genotype, n_cells=3)
    """

    normal: list[tuple[str, int]]
    normal_concat: list[int]
    reduce: list[tuple[str, int]]
    reduce_concat: list[int]

    @property
    def operations(self) -> list[str]:
        """The operation names of both cells."""
        return [name for name, _ in (*self.normal, *self.reduce)]


def from_dict(genotype: Genotype | Mapping[str, Any]) -> Genotype:
    """The checked genotype of `genotype`, which may be the dictionary of the published JSON.

    Raises:
        TypeError: it is neither a Genotype nor a dictionary.
        ValueError: a field is missing or describes no cell; the message says which and why.
    """
    if isinstance(genotype, Mapping):
        missing = [field for field in Genotype._fields if field not in genotype]
        if missing:
            raise ValueError(f"the genotype lacks {', '.join(missing)}")
        fields = [genotype[field] for field in Genotype._fields]
    elif isinstance(genotype, tuple) and len(genotype) == len(Genotype._fields):
        fields = list(genotype)
    else:
        raise TypeError(f"expected a Genotype or a dictionary, got {type(genotype).__name__}")
    return Genotype(
        _checked_edges("normal", fields[0]),
        _checked_concat("normal", fields[1], len(fields[0])),
        _checked_edges("reduce", fields[2]),
        _checked_concat("reduce", fields[3], len(fields[2])),
    )


def to_dict(genotype: Genotype) -> dict[str, Any]:
    """The dictionary form used by the published JSON files; the inverse of `from_dict`."""
    return {
        "normal": [list(edge) for edge in genotype.normal],
        "normal_concat": list(genotype.normal_concat),
        "reduce": [list(edge) for edge in genotype.reduce],
        "reduce_concat": list(genotype.reduce_concat),
    }


def _checked_edges(cell: str, edges: Sequence[Sequence[Any]]) -> list[tuple[str, int]]:
    if not edges or len(edges) % 2:
        raise ValueError(f"the {cell} cell needs two operations per step, it has {len(edges)}")
    for position, (name, source) in enumerate(edges):
        if name not in OPERATIONS:
            raise ValueError(
                f"unknown operation {name!r} in the {cell} cell; known: {', '.join(OPERATIONS)}"
            )
        if not 0 <= source < 2 + position // 2:
            raise ValueError(
                f"operation {position} of the {cell} cell reads state {source}, "
                f"but only states 0 to {1 + position // 2} come before it"
            )
    return [(str(name), int(source)) for name, source in edges]


def _checked_concat(cell: str, concat: Sequence[int], num_edges: int) -> list[int]:
    states = [int(state) for state in concat]
    if not states:
        raise ValueError(f"{cell}_concat is empty, so the cell has no output")
    if any(not 0 <= state < 2 + num_edges // 2 for state in states):
        raise ValueError(f"{cell}_concat is {states}, but the last state is {1 + num_edges // 2}")
    return states


DARTS = Genotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
    reduce_concat=[2, 3, 4, 5],
)
"""The best cell of DARTS (second order, CIFAR-10; arXiv 1806.09055, figures 4 and 5)."""

VIT = Genotype(
    normal=[("none", 0), ("msa", 1)],
    normal_concat=[2],
    reduce=[("none", 0), ("avg_pool_3x3", 1)],
    reduce_concat=[2],
)
"""The Visual Transformer of the predefined split."""
