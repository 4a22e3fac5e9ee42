"""Image data sets and batches of them."""

from __future__ import annotations

from ghn_fast.data.cifar10 import CLASSES, DataError, find_cifar10, load_cifar10
from ghn_fast.data.images import Images, ImageStream, augment, normalise

__all__ = [
    "CLASSES",
    "DataError",
    "ImageStream",
    "Images",
    "augment",
    "find_cifar10",
    "load_cifar10",
    "normalise",
]
