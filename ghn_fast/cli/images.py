"""Reading images in the processes of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ghn_fast._system.processes import Processes
    from ghn_fast.data import ImageSource


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
