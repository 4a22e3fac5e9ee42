"""Models inside of what PyTorch wraps them in."""

from __future__ import annotations

from torch import nn

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """What ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` wrapped."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, _PARALLEL):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
