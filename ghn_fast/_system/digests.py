"""What tells tensors and models from others."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def content(tensor: Tensor) -> memoryview:
    """Its elements' bytes, on the CPU; those of a contiguous one there are not copied."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def tensor_digest(tensor: Tensor) -> str:
    """Of its elements."""
    return hashlib.sha256(content(tensor)).hexdigest()


def state_digest(model: nn.Module) -> str:
    """Of all parameters and buffers that are kept."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(content(value))
    return digest.hexdigest()
