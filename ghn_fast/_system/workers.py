"""Threads that compute on one core each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_workers(count: int, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """Threads of one core each: small operations gain little from several.

    PyTorch makes what a thread asks for the number of all threads that begin later, so afterwards
    the caller's is that again.
    """
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, name, torch.set_num_threads, (1,)) as workers:
            yield workers
    finally:
        torch.set_num_threads(cores)
