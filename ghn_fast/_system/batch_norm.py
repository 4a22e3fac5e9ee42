"""Which statistics batch normalisation uses: those of each batch, or running ones."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Makes batch normalisation use each batch's own statistics and keep none; in place."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def track_statistics(model: nn.Module) -> nn.Module:
    """Gives norms that were built without running statistics those of new ones; in place."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            like = next(module.parameters(), torch.empty(0, device="cpu"))
            module.running_mean = torch.zeros(module.num_features, device=like.device)
            module.running_var = torch.ones(module.num_features, device=like.device)
            module.num_batches_tracked = torch.tensor(0, device=like.device)
            module.track_running_stats = True
    return model
