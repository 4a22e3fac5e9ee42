"""Contraction in C++ against its definition."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ghn_fast._core import core
from ghn_fast.graph.trace.contract import contract, contract_reference


def random_records(rng: random.Random) -> tuple[list[int], list[tuple[int, ...]], list[int]]:
    count = rng.randint(1, 60)
    kinds = [1] + [rng.choice([0, 0, 0, 1, 2]) for _ in range(count - 1)]
    parents = [
        tuple(rng.sample(range(i), min(i, rng.choice([0, 1, 1, 2, 2, 5])))) for i in range(count)
    ]
    return kinds, parents, rng.sample(range(count), min(count, 3))


@pytest.mark.parametrize("seed", range(200))
def test_against_reference(seed: int) -> None:
    records = random_records(random.Random(seed))
    for got, expected in zip(contract(*records), contract_reference(*records), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_by_hand() -> None:
    # input -> conv -> relu -> (conv | relu) -> join of different sources -> join of the same
    kinds = [1, 1, 0, 1, 2, 2]
    parents = [(), (0,), (1,), (2,), (2, 3), (4, 4)]
    nodes, edges, live = contract(kinds, parents, [5])
    assert nodes.tolist() == [0, 1, 3, 4]
    assert edges.tolist() == [[0, 1], [1, 2], [1, 3], [2, 3]]
    assert live.all()


@pytest.mark.parametrize(
    ("kinds", "offsets", "operands", "outputs", "message"),
    [
        ([1, 1], [0, 0, 1], [1], [1], "does not come before"),
        ([1, 1], [0, 0, 1], [-1], [1], "does not come before"),
        ([1, 7], [0, 0, 1], [0], [1], "unknown kind"),
        ([1, 1], [0, 0, 1], [0], [2], "not a record"),
        ([1, 1], [0, 0, 2], [0], [1], "number of operands"),
        ([1, 1, 1], [0, 99, 0, 1], [0], [1], "offsets decrease at record 1"),
        ([1], [0], [], [0], "number of operands"),
    ],
)
def test_errors(
    kinds: list[int], offsets: list[int], operands: list[int], outputs: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        core.contract(
            np.array(kinds, dtype=np.uint8),
            *(np.array(values, dtype=np.int64) for values in (offsets, operands, outputs)),
        )
