"""Image data sets and batches of them.

Knows files and tensors; nothing of networks or of what images are for.
"""

from __future__ import annotations

from ghn_fast.data.cifar10 import CLASSES, find_cifar10, load_cifar10
from ghn_fast.data.encoded import EncodedImages
from ghn_fast.data.errors import DataError
from ghn_fast.data.images import Images, ImageSource, ImageStream, augment, normalise, normalised_by
from ghn_fast.data.load import load_class_names, load_images

__all__ = [
    "CLASSES",
    "DataError",
    "EncodedImages",
    "ImageSource",
    "ImageStream",
    "Images",
    "augment",
    "find_cifar10",
    "load_cifar10",
    "load_class_names",
    "load_images",
    "normalise",
    "normalised_by",
]
