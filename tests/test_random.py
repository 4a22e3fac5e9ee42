from __future__ import annotations

import pytest
import torch

from ghn_fast._system.random import seed_of_32_bits, seeded


def test_generators_are_left_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
    before = torch.get_rng_state()
    drawn = []
    for seed in (3, 3, 3 + 2**32):
        with seeded(seed):
            drawn.append(torch.randn(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert touched == [], "GPUs begin anew for good"
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(3)
    assert touched == [3]
    assert torch.equal(drawn[0], torch.randn(4))


def test_weights_are_made_on_the_cpu_and_may_be_made_within() -> None:
    with torch.device("meta"), seeded(0):
        outer = torch.nn.Linear(2, 2)
        with seeded(0):
            inner = torch.nn.Linear(2, 2)
    assert torch.equal(outer.weight, inner.weight)


def test_small_seeds_are_themselves() -> None:
    assert [seed_of_32_bits(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    large = {seed_of_32_bits(seed) for seed in (-1, 2**32, 2**33, 2**63, 2**80)}
    assert len(large) == 5
    assert all(0 <= seed < 2**32 for seed in large)
