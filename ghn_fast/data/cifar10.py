"""CIFAR-10 as tensors, read from the layouts in which it is commonly stored."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ghn_fast._system.errors import FileError, failures, shown
from ghn_fast._system.plain_pickle import Instructions, PlainUnpickler, Source
from ghn_fast.data.encoded import Row, opened, pictures
from ghn_fast.data.errors import DataError
from ghn_fast.data.images import Images, held_out
from ghn_fast.data.parquet import parquet_files, read_parquet

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
        root: the folder. Without it the one that ``$GHN_FAST_DATA`` names or, where that is not
            set, ``./data/cifar10`` or ``../shared/data/cifar10``.
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
    return _read(root, split, download)


def find_cifar10(root: str | Path | None = None) -> Path | None:
    """The folder that :func:`load_cifar10` would read, or None."""
    return next((path for path in _candidates(root) if _layout(path) is not None), None)


def _candidates(root: str | Path | None) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    named = os.environ.get(DATA_VARIABLE)
    return [Path(named).expanduser()] if named else [Path(path) for path in DEFAULT_FOLDERS]


def _layout(folder: Path) -> str | None:
    if parquet_files(folder, "train") or parquet_files(folder, "test"):
        return "parquet"
    return "torchvision" if _torchvision_folder(folder).is_dir() else None


def _torchvision_folder(folder: Path) -> Path:
    return folder if folder.name == _TORCHVISION_FOLDER else folder / _TORCHVISION_FOLDER


def _stored(split: str) -> str:
    """The part of the files that a split is of."""
    return "test" if split == "test" else "train"


def _chosen(count: int, split: str) -> Tensor:
    """Which of the images of that part are the split's."""
    return torch.arange(count, device="cpu") if split == "test" else held_out(count, split)


def _read(root: str | Path | None, split: str, download: bool) -> Images:
    with failures(root or "CIFAR-10", DataError):
        folder = find_cifar10(root)
    if folder is None and download:
        folder = Path(root or DEFAULT_FOLDERS[0]).expanduser()
        with failures(folder, DataError):
            _download(folder)
    if folder is None:
        tried = ", ".join(str(path) for path in _candidates(root))
        raise DataError(
            f"no CIFAR-10 found in: {tried}. Looked for {_stored(split)}-*.parquet (the Hugging "
            f"Face layout) and {_TORCHVISION_FOLDER} (torchvision's). Pass the folder, set "
            f"${DATA_VARIABLE}, or download it with load_cifar10(download=True), --download "
            "on the command line."
        )
    if _layout(folder) == "parquet":
        return _read_parquet(folder, split)
    images = _read_torchvision(_torchvision_folder(folder), _stored(split))
    return images.select(_chosen(len(images), split))


def _download(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(str(folder), download=True)


def _read_parquet(folder: Path, split: str) -> Images:
    """Decodes those of the split alone, which is what takes time."""
    files = parquet_files(folder, _stored(split))
    if not files:
        raise DataError(f"{folder} has no {_stored(split)}-*.parquet; copy it there")
    parts = [_read_parquet_file(path) for path in files]
    items = [item for part, _ in parts for item in part]
    labels = np.concatenate([part for _, part in parts])
    _check(len(items), labels, files[0])
    chosen = _chosen(len(items), split)
    pixels = np.empty((len(chosen), 32, 32, 3), dtype=np.uint8)
    for row, number in enumerate(chosen.tolist()):
        pixels[row] = _decode(items[number])
    return _images(pixels, labels[chosen.numpy()])


def _read_parquet_file(path: Path) -> tuple[list[Row], np.ndarray]:
    """Encoded pictures, and labels (n,)."""
    import pyarrow.parquet

    with failures(path, DataError):
        columns = set(pyarrow.parquet.read_schema(path).names)
        if not {"img", "label"} <= columns:
            raise FileError(
                f"it has the columns {', '.join(sorted(columns))}; CIFAR-10 has 'img' and 'label'"
            )
        table = read_parquet(path, ["img", "label"])
        labels = whole_numbers(table["label"].to_pylist())
        return pictures(table["img"], path), labels


def _decode(item: Row) -> np.ndarray:
    with opened(item, item.name) as picture:
        if picture.size != (32, 32):
            width, height = picture.size
            raise FileError(f"it is not a 32 x 32 picture but {height} x {width}")
        return np.asarray(picture.convert("RGB"))


def _read_torchvision(folder: Path, stored: str) -> Images:
    parts = [_read_batch(folder / name) for name in _TORCHVISION_FILES[stored]]
    pixels = np.concatenate([part for part, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part for _, part in parts])
    _check(len(pixels), labels, folder)
    return _images(pixels.transpose(0, 2, 3, 1), labels)


@dataclass
class _Array:
    """An array of a pickle, before and after it gets its content."""

    pixels: np.ndarray | None = None


def _array(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _dtype(code: Any, align: Any = False, copy: Any = False) -> str:
    """The only one that there is. A crafted one makes numpy follow pointers out of the file."""
    if code != "u1":
        raise FileError(f"it has numbers of type {shown(code)}, not bytes")
    return "u1"


def _encoded(text: Any, encoding: Any) -> bytes:
    """As Python 3 writes bytes in Python 2's protocols."""
    if type(text) is not str or encoding != "latin1":
        raise FileError(f"it encodes {shown(text)}")
    return text.encode("latin1")


class _ArrayUnpickler(PlainUnpickler):
    """Reads plain values and arrays of bytes."""

    names: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy._core.multiarray", "_reconstruct"): _array,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _encoded,
    }
    dispatch = Instructions(PlainUnpickler.dispatch)
    dispatch[pickle.BINSTRING[0]] = lambda self: self.load_bytes("<I")  # of Python 2
    dispatch[pickle.SHORT_BINSTRING[0]] = pickle._Unpickler.dispatch[pickle.SHORT_BINSTRING[0]]

    def literal(self, size: int) -> bytes:
        return self.source.read(size)

    def build(self, value: Any, state: Any) -> None:
        if type(value) is _Array and type(state) is tuple and len(state) == 5:
            _version, shape, dtype, is_fortran, data = state
            if dtype != "u1" or is_fortran is not False or type(data) is not bytes:
                raise FileError("it has an array of other things than bytes")
            if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape[:3]):
                raise FileError("it has an array of no shape")
            value.pixels = np.frombuffer(data, np.uint8).reshape(shape[:3])
        elif value != "u1":
            raise FileError(f"it changes {shown(value)}")


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) and labels (n,) of one of torchvision's files."""
    if not path.exists():
        raise DataError(f"{path} is missing; download CIFAR-10 again")
    with failures(path, DataError), path.open("rb") as file:
        source = Source(file, path.stat().st_size)
        content = _ArrayUnpickler(source).load()
        source.finish()
        if type(content) is not dict or type(content.get("data")) is not _Array:
            raise FileError("it has no pixels, or not as an array; download CIFAR-10 again")
        return content["data"].pixels.reshape(-1, 3072), whole_numbers(content.get("labels"))


def whole_numbers(values: Any) -> np.ndarray:
    """Labels out of a file, each of which has to be a whole number of at most 62 bits."""
    if type(values) is not list:
        raise FileError(f"its labels are {shown(values)}, not a list")
    for row, value in enumerate(values):
        if type(value) is not int or value.bit_length() > 62:
            raise FileError(f"the label of image {row} is {shown(value)}, not a whole number")
    return np.asarray(values, dtype=np.int64)


def _check(count: int, labels: np.ndarray, path: Path) -> None:
    if count != len(labels) or len(labels) == 0:
        raise DataError(f"{path} has {count} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"{path} has labels from {labels.min()} to {labels.max()}, not 0 to 9")


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return Images(torch.from_numpy(channels_first), torch.from_numpy(labels))
