"""Percent of images that a network classifies correctly, and its batch normalisation for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast._system.batches import device_of, logits_of, run
from ghn_fast._system.device import to_device
from ghn_fast._system.restored import restored
from ghn_fast.calibration import calibrate_
from ghn_fast.data import ImageSource
from ghn_fast.data.images import check_source

BATCH_SIZE = 64
CALIBRATION_BATCHES = 16
Batch = tuple[Tensor, Tensor]


@torch.no_grad()
def top1(
    model: nn.Module,
    data: ImageSource,
    batch_size: int = BATCH_SIZE,
    batch_statistics: bool = True,
) -> float:
    """Percent of the images that are classified correctly, by the first tensor of the outputs.

    Batch normalisation uses the statistics of each batch, or with ``batch_statistics=False`` the
    running ones that the model has. Batches are those of :func:`batches_in_order`. The model is
    left as it was found, its mode and its running statistics too.

    Raises:
        TypeError: ``data`` is a loader or something else that is no source of images.
        ValueError: it is empty, or ``batch_size`` is not positive.
    """
    check_source(data)
    device = device_of(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with restored(model):
        model.eval()
        if batch_statistics:
            use_batch_statistics(model)
        for images, labels in batches_in_order(data, batch_size):
            logits = logits_of(run(model, images))
            correct += (logits.argmax(dim=1) == to_device(labels, device)).sum()
    return 100.0 * int(correct) / len(data)


def calibrate(
    model: nn.Module,
    data: ImageSource,
    batches: int = CALIBRATION_BATCHES,
    batch_size: int = BATCH_SIZE,
) -> nn.Module:
    """:func:`ghn_fast.calibrate_` on the first images; leaves the model in evaluation mode."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        calibrate_(model, batches_in_order(data.first(batches * batch_size), batch_size))
    return model.eval()


def batches_in_order(data: ImageSource, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
    """All images once, normalised, and their labels.

    A last batch that would be shorter is taken into the one before: a network that knows each
    batch's own statistics alone sees images otherwise among fewer of them, and a single image has
    no statistics.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size}")
    whole = max(len(data) // batch_size, 1)
    ends = [batch_size * number for number in range(1, whole)]
    for chosen in torch.arange(len(data), device="cpu").tensor_split(ends):
        yield data.batch(chosen), data.labels[chosen]
