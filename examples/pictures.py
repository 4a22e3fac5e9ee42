"""Pictures to put your own in the place of: the 1,797 handwritten digits that come with
scikit-learn, as a GHN for 32 x 32 images sees them, and rectangles in masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
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


def rectangles(count: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Pictures of one or two rectangles on noise, the first green, the second blue; and masks of
    their numbers."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        picture = torch.randint(0, 100, (96, 128, 3), generator=generator, dtype=torch.uint8)
        mask = torch.zeros(96, 128, dtype=torch.uint8)
        for number in range(1, 2 + index % 2):
            top, left = torch.randint(0, 30, (2,), generator=generator).tolist()
            place = slice(top, top + 60), slice(left + 64 * (number - 1), left + 64 * number - 34)
            picture[place][..., number], mask[place] = 220, number
        yield Image.fromarray(picture.numpy()), Image.fromarray(mask.numpy())


@torch.no_grad()
def accuracy(model: torch.nn.Module, batches: Batches) -> float:
    """Top-1 in percent."""
    right = sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)
