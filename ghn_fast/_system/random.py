"""Random numbers that leave those of the caller alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_SEEDING = threading.RLock()
"""PyTorch initialises from a generator that all threads share."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn from PyTorch's generator meanwhile follows from a seed.

    For what takes no generator, as the initial weights of a module do. They are made on the CPU.
    Afterwards the generator is where it was. Those of other devices are never touched:
    ``torch.manual_seed`` would begin them anew for good. One thread at a time.

    Args:
        seed: any integer; see :func:`seed_of_32_bits`.
    """
    with _SEEDING, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed_of_32_bits(seed))
        yield


def permutation(count: int, seed: int) -> Tensor:
    """The numbers below ``count`` (count,) int64 in an order that follows from a seed of 32 bits.

    On the CPU whatever the default device is, as a generator draws for its own device only.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu")


def seed_of_32_bits(seed: int) -> int:
    """A seed of which PyTorch's generator on the CPU, a Mersenne twister, uses every bit.

    It drops all but the lowest 32, so that seeds 2^32 apart would give the same numbers. Seeds
    below that stay as they are, others are hashed.
    """
    if 0 <= seed < 2**32:
        return seed
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "little")
