"""Pictures that come with scikit-learn: 1,797 handwritten digits, as a GHN for 32 x 32 images sees
them. Put your own in their place."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

Batches = list[tuple[Tensor, Tensor]]


def digits() -> tuple[Batches, Batches]:
    """Batches (B, 3, 32, 32) and their labels to fit to, and others to measure by."""
    data = load_digits()
    pixels = torch.from_numpy(data.images).float()[:, None]
    pixels = F.interpolate(pixels, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    pixels = (pixels - pixels.mean()) / pixels.std()
    labels = torch.from_numpy(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    batches = [(pixels[part], labels[part]) for part in order.split(100)]
    return batches[:4], batches[4:6]


@torch.no_grad()
def accuracy(model: torch.nn.Module, batches: Batches) -> float:
    """Top-1 in percent."""
    right = sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)
