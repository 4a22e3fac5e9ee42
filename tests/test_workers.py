from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ghn_fast._system.workers import one_core_workers


@pytest.fixture
def three_cores(threads: None) -> None:
    torch.set_num_threads(3)


def cores_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as new:
        return new.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("three_cores")
def test_only_the_workers_compute_on_one_core() -> None:
    with one_core_workers(2) as workers:
        assert set(workers.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert torch.get_num_threads() == cores_of_a_new_thread() == 3


@pytest.mark.usefixtures("three_cores")
def test_so_too_after_an_error() -> None:
    def fail() -> None:
        with one_core_workers(2) as workers:
            workers.submit(torch.get_num_threads).result()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert cores_of_a_new_thread() == 3
