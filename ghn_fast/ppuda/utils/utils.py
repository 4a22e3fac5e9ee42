"""Small helpers."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn


def capacity(model: nn.Module, is_grad: bool = True) -> tuple[int, int]:
    """The number of parameter tensors and of their elements.

    Args:
        is_grad: count those only that require gradients.
    """
    sizes = [p.numel() for p in model.parameters() if p.requires_grad or not is_grad]
    return len(sizes), sum(sizes)


def default_device() -> str:
    """Where to compute: "cuda" if there is such a device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_seed(seed: int, only_torch: bool = False) -> None:
    """Seeds PyTorch's generators and, unless `only_torch`, Python's and NumPy's."""
    torch.manual_seed(seed)
    if not only_torch:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what programs that call this use


def rand_choice(x: Tensor, n: int | None = None) -> Tensor:
    """One of the first `n` entries of a tensor, of all where it is None, as a tensor of one."""
    return x[torch.randint(len(x) if n is None else min(n, len(x)), size=(1,))]
