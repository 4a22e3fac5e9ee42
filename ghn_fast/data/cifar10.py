"""CIFAR-10 as tensors, read from the layouts in which it is commonly stored."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghn_fast.data.errors import DataError
from ghn_fast.data.images import Images, held_out

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SPLITS = ("train", "val", "test")
DATA_VARIABLE = "GHN_FAST_DATA"
DEFAULT_FOLDERS = ("data/cifar10", "../shared/data/cifar10")

_TORCHVISION_FOLDER = "cifar-10-batches-py"
_TORCHVISION_FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}


def load_cifar10(
    root: str | Path | None = None, split: str = "train", download: bool = False
) -> Images:
    """Reads CIFAR-10 into memory.

    Two layouts are known: the Parquet files of the Hugging Face data set ``uoft-cs/cifar10``
    (``train-*.parquet`` and ``test-*.parquet``, in the folder or below it) and torchvision's
    folder ``cifar-10-batches-py``.

    Args:
        root: the folder. Without it ``$GHN_FAST_DATA``, ``./data/cifar10`` and
            ``../shared/data/cifar10`` are tried.
        split: ``"train"``, ``"val"`` (5,000 training images that ``"train"`` is without, the
            same ones always) or ``"test"``.
        download: where no data are found, let torchvision download them to ``root``
            (``./data/cifar10`` by default).

    Raises:
        DataError: nothing was found, or what was found is damaged.
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    stored = "test" if split == "test" else "train"
    images = _read(root, stored, download)
    if split == "test":
        return images
    return images.select(held_out(len(images), split))


def find_cifar10(root: str | Path | None = None) -> Path | None:
    """The folder that :func:`load_cifar10` would read, or None."""
    return next((path for path in _candidates(root) if _layout(path) is not None), None)


def _candidates(root: str | Path | None) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get(DATA_VARIABLE)
    return [Path(named).expanduser()] if named else [Path(path) for path in DEFAULT_FOLDERS]


def _layout(folder: Path) -> str | None:
    if _parquet_files(folder, "train") or _parquet_files(folder, "test"):
        return "parquet"
    return "torchvision" if _torchvision_folder(folder).is_dir() else None


def _parquet_files(folder: Path, stored: str) -> list[Path]:
    return sorted(folder.glob(f"{stored}-*.parquet")) or sorted(
        folder.glob(f"*/{stored}-*.parquet")
    )


def _torchvision_folder(folder: Path) -> Path:
    return folder if folder.name == _TORCHVISION_FOLDER else folder / _TORCHVISION_FOLDER


def _read(root: str | Path | None, stored: str, download: bool) -> Images:
    folder = find_cifar10(root)
    if folder is None and download:
        folder = Path(root or DEFAULT_FOLDERS[0]).expanduser()
        _download(folder)
    if folder is None:
        tried = ", ".join(str(path) for path in _candidates(root))
        raise DataError(
            f"no CIFAR-10 found in: {tried}. Looked for {stored}-*.parquet (the Hugging Face "
            f"layout) and {_TORCHVISION_FOLDER} (torchvision's). Pass the folder, set "
            f"${DATA_VARIABLE}, or download it with load_cifar10(download=True)."
        )
    if _layout(folder) == "parquet":
        return _read_parquet(folder, stored)
    return _read_torchvision(_torchvision_folder(folder), stored)


def _download(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(str(folder), download=True)


def _read_parquet(folder: Path, stored: str) -> Images:
    files = _parquet_files(folder, stored)
    if not files:
        raise DataError(f"{folder} has no {stored}-*.parquet; copy it there")
    parts = [_read_parquet_file(path) for path in files]
    return _images(
        np.concatenate([pixels for pixels, _ in parts]),
        np.concatenate([labels for _, labels in parts]),
        files[0],
    )


def _read_parquet_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 32, 32, 3) and labels (n,)."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}); copy it again") from None
    columns = set(table.column_names)
    if not {"img", "label"} <= columns:
        raise DataError(
            f"{path} has the columns {', '.join(sorted(columns))}; CIFAR-10 has 'img' and 'label'"
        )
    encoded = [image["bytes"] for image in table["img"].to_pylist()]
    return _decode(encoded, path), np.asarray(table["label"].to_pylist(), dtype=np.int64)


def _decode(encoded: Sequence[bytes], path: Path) -> np.ndarray:
    pixels = np.empty((len(encoded), 32, 32, 3), dtype=np.uint8)
    for row, content in enumerate(encoded):
        pixels[row] = _decode_image(content, f"{path}: image {row}")
    return pixels


def _decode_image(content: bytes, name: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{name} is not a picture ({error}); copy the file again") from None
    if pixels.shape != (32, 32, 3):
        raise DataError(
            f"{name} is not a 32 x 32 picture but {pixels.shape[0]} x {pixels.shape[1]}"
        )
    return pixels


def _read_torchvision(folder: Path, stored: str) -> Images:
    parts = [_read_batch(folder / name) for name in _TORCHVISION_FILES[stored]]
    pixels = np.concatenate([part for part, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part for _, part in parts])
    return _images(pixels.transpose(0, 2, 3, 1), labels, folder)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, lists and strings; refuses everything else a pickle could ask for."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) and labels (n,) of one of torchvision's files."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        pixels = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3072)
        return pixels, np.asarray(content["labels"], dtype=np.int64)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; download CIFAR-10 again") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is damaged ({error}); download CIFAR-10 again") from None


def _images(pixels: np.ndarray, labels: np.ndarray, path: Path) -> Images:
    if len(pixels) != len(labels) or len(labels) == 0:
        raise DataError(f"{path} has {len(pixels)} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"{path} has labels from {labels.min()} to {labels.max()}, not 0 to 9")
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return Images(torch.from_numpy(channels_first), torch.from_numpy(labels))
