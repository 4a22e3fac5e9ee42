"""What networks reach without a GHN: trained with SGD."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast._system.device import images_to_device, to_device
from ghn_fast.data import ImageSource, ImageStream

SGD_LR, SGD_MOMENTUM, SGD_WEIGHT_DECAY, SGD_GRAD_CLIP = 0.025, 0.9, 3e-4, 5.0
"""Of the networks trained with SGD in arXiv 2110.13100, section 5.1; the batch has 96 images."""
SGD_BATCH = 96


def train_network(
    model: nn.Module,
    data: ImageSource,
    steps: int,
    seed: int,
    batch_size: int = SGD_BATCH,
    on_step: Callable[[Tensor, Tensor], object] | None = None,
) -> nn.Module:
    """Trains a network as the SGD baseline of arXiv 2110.13100, section 5.1; in place.

    SGD with a learning rate of 0.025 that follows a cosine to 0, momentum 0.9, weight decay 3e-4
    and gradients clipped to a norm of 5; random crops and mirrored images. Dropout is not applied,
    so that the result is a function of the arguments.

    ``on_step`` gets the outputs and the labels of each batch, on the model's device.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), SGD_LR, momentum=SGD_MOMENTUM, weight_decay=SGD_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stream = ImageStream(data, min(batch_size, len(data)), seed)
    device = next(model.parameters()).device
    use_batch_statistics(model.eval())
    for step in range(steps):
        images, labels = stream[step]
        optimizer.zero_grad(set_to_none=True)
        images, labels = images_to_device(images, device), to_device(labels, device)
        outputs = model(images)
        F.cross_entropy(outputs, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), SGD_GRAD_CLIP)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(outputs.detach(), labels)
    return model
