"""Reading images in the processes of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ghn_fast._system.processes import Processes
    from ghn_fast.data import ImageSource
    from ghn_fast.ghn import GHNConfig

NORMALISATIONS = ("auto", "cifar10", "imagenet")


def load_parts(
    processes: Processes,
    source: str | Path | None,
    splits: Sequence[str],
    image_size: int,
    download: bool,
) -> list[ImageSource]:
    """Parts of a data set, in every process; with ``download`` the first one downloads them.

    Raises:
        ghn_fast.data.DataError: as :func:`ghn_fast.data.load_images`.
    """
    from ghn_fast.data import load_images

    if download and not processes.is_first:
        processes.gather(None)  # the others read what the first has downloaded
    images = [load_images(source, split, image_size, download) for split in splits]
    if download and processes.is_first:
        processes.gather(None)
    return images


def normalisation(name: str, ghn: GHNConfig) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """In words, the mean and the deviation of one of :data:`NORMALISATIONS`, for a GHN."""
    from ghn_fast.data import images

    if name == "auto" and ghn.mean:
        return "what the GHN was trained with", ghn.mean, ghn.std
    if name == "auto":
        name = "cifar10" if ghn.num_classes < 1000 else "imagenet"
    whose = name.upper()
    return name, getattr(images, f"{whose}_MEAN"), getattr(images, f"{whose}_STD")
