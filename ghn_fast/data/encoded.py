"""Images that stay encoded, as files or bytes, until they are needed."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ghn_fast._system.errors import FileError, failures
from ghn_fast.data.errors import DataError
from ghn_fast.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LARGEST_SMALL_SIZE,
    Images,
    normalise,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Of pictures. Pillow knows many more, and runs Ghostscript for some of them."""


class Row(NamedTuple):
    """A picture in a row of a Parquet file."""

    path: Path
    row: int
    content: bytes

    @property
    def name(self) -> str:
        return f"{self.path}: image {self.row}"


Encoded = bytes | Path | Row
LARGEST_PICTURE = 2**26
"""Pixels; ImageNet's largest has 61 million."""
CROP_SHARE = 224 / 256
"""The central part of a larger image that is evaluated, as usual on ImageNet."""
SMALLEST_AREA = 0.08
LARGEST_RATIO = 4 / 3
"""Of random crops in training (Szegedy et al., arXiv 1409.4842, section 6)."""


@dataclass(frozen=True, repr=False)
class EncodedImages:
    """Labelled images, decoded when asked for; an :class:`ImageSource`.

    Attributes:
        items: of each image, a file or its content.
        labels: (N,) int64.
        num_classes: of the data set.
        size: height and width that they are brought to.
        mean, std: of the channels, that normalise them.
    """

    items: Sequence[Encoded]
    labels: Tensor
    num_classes: int
    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"EncodedImages({len(self):,} as {self.size} x {self.size}, {self.num_classes} classes)"
        )

    @property
    def is_large(self) -> bool:
        return self.size > LARGEST_SMALL_SIZE

    def select(self, indices: Tensor) -> EncodedImages:
        take = getattr(self.items, "take", None)
        items = take(indices) if take else [self.items[index] for index in indices.tolist()]
        return replace(self, items=items, labels=self.labels[indices])

    def first(self, count: int | None) -> EncodedImages:
        if count is None:
            return self
        return replace(self, items=self.items[:count], labels=self.labels[:count])

    def batch(self, indices: Tensor) -> Tensor:
        """Images (B, 3, size, size) float32, normalised: the shorter side scaled, the centre cut.

        Raises:
            DataError: an image is damaged; says which.
        """
        return normalise(self._decode(indices.tolist()), self.mean, self.std)

    def training_batch(
        self, indices: Tensor, generator: torch.Generator, crop: bool = True
    ) -> Tensor:
        """The same, half of them mirrored; with ``crop`` of random 8 to 100 % of the area."""
        draws = torch.rand(len(indices), 5, generator=generator, dtype=torch.float64, device="cpu")
        pixels = self._decode(indices.tolist(), draws if crop else None)
        mirrored = draws[:, 4] < 0.5
        pixels[mirrored] = pixels[mirrored].flip(-1)
        return normalise(pixels, self.mean, self.std)

    def in_memory(self) -> Images:
        """All of them, decoded."""
        pixels = self._decode(range(len(self)))
        return Images(pixels, self.labels, self.num_classes, self.mean, self.std)

    def _decode(self, chosen: Sequence[int], draws: Tensor | None = None) -> Tensor:
        """(B, 3, size, size) uint8."""
        pixels = np.empty((len(chosen), self.size, self.size, 3), dtype=np.uint8)

        def decode(place: int) -> None:
            draw = None if draws is None else draws[place].tolist()
            pixels[place] = _decode(self.items[chosen[place]], chosen[place], self.size, draw)

        # Pillow decodes and scales without the interpreter's lock.
        with ThreadPoolExecutor(min(os.cpu_count() or 1, max(len(chosen), 1))) as workers:
            list(workers.map(decode, range(len(chosen))))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode(item: Encoded, index: int, size: int, draw: Sequence[float] | None) -> np.ndarray:
    """(size, size, 3) of one image; ``draw`` are five numbers from 0 to 1 that decide its crop."""
    from PIL import Image

    name = item.name if isinstance(item, Row) else item if isinstance(item, Path) else index
    with opened(item, str(name)) as image:
        picture = _in_colours(image)
    box = _centre(picture, size) if draw is None else _random_crop(picture, draw)
    scaled: Any = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(scaled)


def _in_colours(image: Any) -> Any:
    """Upright, RGB of 8 bits, on white where it is transparent."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise FileError("its pixels are of floating point, and nothing says which is white")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        values = np.asarray(image).clip(0, 2**16 - 1) // 257
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextmanager
def opened(item: Encoded, name: str) -> Iterator[Any]:
    """A picture whose size can be looked at before it is decoded.

    Raises:
        DataError: it is none, is damaged, or is so large that it must be a decompression bomb.
    """
    from PIL import Image, UnidentifiedImageError

    content = item.content if isinstance(item, Row) else item
    with failures(name, DataError):
        try:
            image = Image.open(
                io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS
            )
        except UnidentifiedImageError:
            raise FileError(f"it is not a picture ({', '.join(FORMATS)})") from None
        with image:
            if image.width * image.height > LARGEST_PICTURE:
                raise FileError(f"it has {image.width} x {image.height} pixels, too many to decode")
            yield image


def pictures(column: Any, path: Path) -> list[Row]:
    """The pictures of a column of a Parquet file: structs with the bytes of a file in each."""
    rows = column.to_pylist()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("bytes")) is not bytes:
            raise FileError(without_picture(number))
    return [Row(path, number, row["bytes"]) for number, row in enumerate(rows)]


def without_picture(row: int) -> str:
    return f"image {row} is none: its row has no bytes of a picture"


def crop_share(size: int) -> float:
    """Of the shorter side, for images of ``size`` pixels: for large networks seven eighths."""
    return CROP_SHARE if size > LARGEST_SMALL_SIZE else 1.0


def _centre(picture: Any, size: int) -> tuple[float, float, float, float]:
    side = crop_share(size) * min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    return left, top, left + side, top + side


def _random_crop(picture: Any, draw: Sequence[float]) -> tuple[float, float, float, float]:
    width, height = picture.size
    area = width * height * (SMALLEST_AREA + (1 - SMALLEST_AREA) * draw[0])
    ratio = math.exp((2 * draw[1] - 1) * math.log(LARGEST_RATIO))
    wide = min(math.sqrt(area * ratio), width)
    high = min(math.sqrt(area / ratio), height)
    left, top = draw[2] * (width - wide), draw[3] * (height - high)
    return left, top, left + wide, top + high
