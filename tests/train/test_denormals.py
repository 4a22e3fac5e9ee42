from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ghn_fast.train.denormals import flushed_denormals

SMALLEST = torch.tensor(torch.finfo(torch.float32).tiny)


@pytest.fixture(autouse=True)
def usual_mode() -> Iterator[None]:
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


def test_denormals_are_zero_inside_only() -> None:
    assert SMALLEST / 2 > 0
    with flushed_denormals():
        assert SMALLEST / 2 == 0
    assert SMALLEST / 2 > 0


def test_an_error_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), flushed_denormals():
        raise ZeroDivisionError
    assert SMALLEST / 2 > 0


def test_a_mode_that_was_chosen_stays() -> None:
    torch.set_flush_denormal(True)
    with flushed_denormals():
        assert SMALLEST / 2 == 0
    assert SMALLEST / 2 == 0
