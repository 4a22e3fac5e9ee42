"""Percent of images that a network classifies correctly, and its batch normalisation for it."""

from __future__ import annotations

import torch
from torch import nn

from ghn_fast._system.device import images_to_device, to_device
from ghn_fast.data import ImageSource

BATCH_SIZE = 64
CALIBRATION_BATCHES = 16


@torch.no_grad()
def top1(
    model: nn.Module,
    data: ImageSource,
    batch_size: int = BATCH_SIZE,
    batch_statistics: bool = True,
) -> float:
    """Percent of the images that are classified correctly.

    Batch normalisation uses the statistics of each batch, or with ``batch_statistics=False`` the
    running ones that the model has.
    """
    device = next(model.parameters()).device
    model.eval()
    if batch_statistics:
        use_batch_statistics(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, len(data), batch_size):
        chosen = torch.arange(start, min(start + batch_size, len(data)))
        images = images_to_device(data.batch(chosen), device)
        labels = to_device(data.labels[start : start + batch_size], device)
        correct += (model(images).argmax(dim=1) == labels).sum()
    return 100.0 * int(correct) / len(data)


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Makes batch normalisation use each batch's own statistics and keep none; in place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


@torch.no_grad()
def calibrate(
    model: nn.Module,
    data: ImageSource,
    batches: int = CALIBRATION_BATCHES,
    batch_size: int = BATCH_SIZE,
) -> nn.Module:
    """Gives batch normalisation the mean statistics of the first images; in place.

    Everything else is left as it is, and in evaluation mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return model.eval()
    device = next(model.parameters()).device
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        size = norm.num_features
        norm.running_mean = torch.zeros(size, device=device)
        norm.running_var = torch.ones(size, device=device)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=device)
        norm.track_running_stats, norm.momentum = True, None  # None: a plain mean of all batches
        norm.train()
    for start in range(0, min(batches * batch_size, len(data)), batch_size):
        chosen = torch.arange(start, min(start + batch_size, len(data)))
        model(images_to_device(data.batch(chosen), device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
