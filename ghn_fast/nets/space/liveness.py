"""Which operations of a network of cells carry a signal to the output.

`none` operations cut edges. A state whose two inputs are cut has no value; an operation whose
result nobody reads is dead. Both are known from the genotype alone.
"""

from __future__ import annotations

from typing import NamedTuple

from ghn_fast.nets.space.genotypes import Genotype


class CellPlan(NamedTuple):
    """What one cell computes."""

    operations: tuple[bool, ...]
    """for each operation of the genotype, whether it reaches the network's output"""
    inputs: tuple[bool, bool]
    """whether states 0 and 1 are read, that is, whether their preprocessing is alive"""
    concat: tuple[int | None, ...]
    """the concatenated states, None where a state has no value and zeros stand for it"""


class NetworkPlan(NamedTuple):
    """What a network of cells computes."""

    cells: tuple[CellPlan | None, ...]
    """None for a cell whose output nobody reads"""
    stem: tuple[bool, bool]
    """whether the values that the first cell gets as states 0 and 1 are read by any cell"""


def is_reduction(cell: int, num_cells: int) -> bool:
    """Whether the cell halves the resolution: those at one and two thirds of the depth do."""
    return cell > 0 and cell in (num_cells // 3, 2 * num_cells // 3)


def plan_network(genotype: Genotype, num_cells: int) -> NetworkPlan | None:
    """The plan of a network of `num_cells` cells, or None when no signal reaches its output."""
    valid = _valid_states(genotype, num_cells)
    if not any(valid[-1][state] for state in _cell_of(genotype, num_cells - 1, num_cells)[1]):
        return None
    # Position k + 2 of `needed` is the output of cell k, positions 0 and 1 are the stem's.
    needed = [False] * (num_cells + 2)
    needed[-1] = True
    plans: list[CellPlan | None] = [None] * num_cells
    for cell in reversed(range(num_cells)):
        if needed[cell + 2]:
            plan = _plan_cell(*_cell_of(genotype, cell, num_cells), valid[cell])
            plans[cell] = plan
            needed[cell] |= plan.inputs[0]
            needed[cell + 1] |= plan.inputs[1]
    return NetworkPlan(tuple(plans), (needed[0], needed[1]))


def _cell_of(
    genotype: Genotype, cell: int, num_cells: int
) -> tuple[list[tuple[str, int]], list[int]]:
    if is_reduction(cell, num_cells):
        return genotype.reduce, genotype.reduce_concat
    return genotype.normal, genotype.normal_concat


def _valid_states(genotype: Genotype, num_cells: int) -> list[list[bool]]:
    """For each cell, whether each of its states has a value."""
    previous = (True, True)
    result = []
    for cell in range(num_cells):
        edges, concat = _cell_of(genotype, cell, num_cells)
        states = list(previous)
        for step in range(0, len(edges), 2):
            states.append(
                any(name != "none" and states[source] for name, source in edges[step : step + 2])
            )
        result.append(states)
        previous = (previous[1], any(states[state] for state in concat))
    return result


def _plan_cell(edges: list[tuple[str, int]], concat: list[int], valid: list[bool]) -> CellPlan:
    needed = [False] * len(valid)
    for state in concat:
        needed[state] = valid[state]
    alive = [False] * len(edges)
    for position in reversed(range(len(edges))):
        name, source = edges[position]
        alive[position] = needed[2 + position // 2] and name != "none" and valid[source]
        needed[source] |= alive[position]
    return CellPlan(
        tuple(alive),
        (needed[0], needed[1]),
        tuple(state if valid[state] else None for state in concat),
    )
