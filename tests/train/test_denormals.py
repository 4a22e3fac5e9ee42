from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


SHARED_WORK = """
import torch
from ghn_fast.train.denormals import flush_denormals, flushed_denormals
smallest = torch.full((1 << 20,), torch.finfo(torch.float32).tiny)
with flushed_denormals():
    print(int((smallest / 2).count_nonzero()))
"""


@pytest.mark.parametrize("is_called", [False, True])
def test_threads_of_an_operation_have_the_mode_of_their_start(
    tmp_path: Path, is_called: bool
) -> None:
    """Half of the elements are computed by the second thread."""
    program = SHARED_WORK
    if is_called:
        program = program.replace("smallest =", "flush_denormals()\nsmallest =")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (int(done.stdout) == 0) == is_called
