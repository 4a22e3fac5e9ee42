"""What a device can do at most: its floating-point and memory rates, measured when asked for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import pytest
import torch

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def device_of(way: str) -> torch.device:
    """Of a way of doing things: those on a GPU are skipped where there is none."""
    if not way.startswith(("triton", "cuda")):
        return CPU
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return CUDA


def waiting(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` until the device is done with it."""
    if device.type != "cuda":
        return run

    def wait() -> object:
        result = run()
        torch.cuda.synchronize()
        return result

    return wait


@functools.lru_cache
def flops_per_second(device: torch.device) -> float:
    """Of float32 matrix products."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device)
    return 2 * size**3 / best_of(waiting(lambda: a @ a, device))


@functools.lru_cache
def bytes_per_second(device: torch.device) -> float:
    """Read and written by a copy that no cache holds."""
    source, target = torch.zeros(2, 2**28 if device.type == "cuda" else 2**24, device=device)
    return 2 * source.nbytes / best_of(waiting(lambda: target.copy_(source), device))


def best_of(function: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def card(device: torch.device) -> dict[str, str]:
    """For ``extra_info``: which card, on a GPU."""
    return {"card": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
