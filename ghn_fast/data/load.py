"""Any data set of labelled images, from the layouts in which they are commonly stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ghn_fast.data.cifar10 import SPLITS, find_cifar10, load_cifar10
from ghn_fast.data.encoded import Encoded, EncodedImages
from ghn_fast.data.errors import DataError
from ghn_fast.data.images import ImageSource, held_out

MEMORY = 2 * 2**30
"""Bytes up to which a data set is decoded at once and kept."""
CIFAR10_COLUMNS = {"img", "label"}
_STORED = {
    "train": ("train",),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Names under which splits are stored."""
_LABELS = ("label", "labels", "fine_label", "target")


def load_images(
    source: str | Path | None = None,
    split: str = "train",
    image_size: int = 32,
    download: bool = False,
) -> ImageSource:
    """Reads a data set of images with labels.

    Known are CIFAR-10 (see :func:`load_cifar10`), a folder with ``train`` and ``val`` or ``test``
    folders that have a folder of pictures for each class (as ImageNet is stored, and as
    ``torchvision.datasets.ImageFolder`` reads), and Parquet files with a column of pictures and one
    of labels (as Hugging Face stores image data sets), in a folder or by their name on the hub.

    What is small enough (2 GiB decoded) is decoded at once and kept, and augmented as CIFAR-10 is;
    the rest is decoded when needed, and cropped and scaled at random in training. A data set
    without a test part of its own gives its validation part as ``"test"``; ``"val"`` is then held
    out from the training images, so that no choice is made on what is reported.

    Args:
        source: a folder, or ``owner/name`` on the hub; None looks for CIFAR-10.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image_size: height and width that images are brought to; CIFAR-10 keeps its 32. Networks
            for more than 32 are those for ImageNet.
        download: of CIFAR-10 where none is found.

    Raises:
        DataError: nothing was found, or what was found is damaged.
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    folder = None if source is None else Path(source).expanduser()
    if folder is None or (download and not folder.exists()):
        return load_cifar10(source, split, download)
    if not folder.exists():
        folder = _from_hub(str(source))
    if _is_cifar10(folder):
        return load_cifar10(folder, split)
    parts = _Parts(folder)
    images = _split(parts, split, image_size)
    if len(images) * 3 * image_size**2 <= MEMORY:
        return images.in_memory()
    return images


def _is_cifar10(folder: Path) -> bool:
    if find_cifar10(folder) is None:
        return False
    files = _parquet_files(folder, "train") or _parquet_files(folder, "test")
    return not files or set(_schema(files[0]).names) >= CIFAR10_COLUMNS


class _Parts:
    """The stored parts of a data set, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {split: self._find_files(split) for split in SPLITS}
        self.folders = {split: self._find_folder(split) for split in SPLITS}
        if not any(self.files.values()) and not any(self.folders.values()):
            raise DataError(
                f"{folder} has no images in a known layout. Looked for train-*.parquet and "
                "test-*.parquet, and for folders train and val or test with a folder of pictures "
                "for each class."
            )

    def _find_files(self, split: str) -> list[Path]:
        found = (_parquet_files(self.folder, name) for name in _STORED[split])
        return next((files for files in found if files), [])

    def _find_folder(self, split: str) -> Path | None:
        folders = (self.folder / name for name in _STORED[split])
        return next((path for path in folders if path.is_dir() and _has_folders(path)), None)

    def is_labelled(self, split: str) -> bool:
        """Whether there is such a part, with labels: those of some test parts are kept back."""
        if self.folders[split] is not None:
            return True
        files = self.files[split]
        return bool(files) and min(_read_labels(files[0]), default=-1) >= 0

    def read(self, split: str, image_size: int) -> EncodedImages:
        folder = self.folders[split]
        if folder is not None:
            return _read_folder(folder, image_size)
        if not self.files[split]:
            raise DataError(f"{self.folder} has no labelled images for {split!r}")
        return _read_parquet(self.files[split], image_size)


def _split(parts: _Parts, split: str, image_size: int) -> EncodedImages:
    has_test = parts.is_labelled("test")
    if split == "test":
        return parts.read("test" if has_test else "val", image_size)
    if has_test and parts.is_labelled("val"):
        return parts.read(split, image_size)
    images = parts.read("train", image_size)
    return images.select(held_out(len(images), split))


def _has_folders(path: Path) -> bool:
    return any(child.is_dir() for child in path.iterdir())


def _read_folder(folder: Path, image_size: int) -> EncodedImages:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{folder} is no folder of pictures by class ({error})") from None
    items: list[Encoded] = [Path(path) for path, _ in found.samples]
    return EncodedImages(items, torch.tensor(found.targets), len(found.classes), image_size)


def _parquet_files(folder: Path, stored: str) -> list[Path]:
    patterns = (f"{stored}-*.parquet", f"*/{stored}-*.parquet", f"{stored}.parquet")
    return next((sorted(files) for p in patterns if (files := list(folder.glob(p)))), [])


def _schema(path: Path) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}); copy it again") from None


def _read_table(path: Path, columns: list[str]) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path, columns=columns)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}); copy it again") from None


def _read_labels(path: Path) -> list[int]:
    _, label = _columns(_schema(path), path)
    return [
        -1 if value is None else value for value in _read_table(path, [label])[label].to_pylist()
    ]


def _read_parquet(files: Sequence[Path], image_size: int) -> EncodedImages:
    schema = _schema(files[0])
    image, label = _columns(schema, files[0])
    items: list[Encoded] = []
    labels: list[int] = []
    for path in files:
        table = _read_table(path, [image, label])
        items += [content["bytes"] for content in table[image].to_pylist()]
        labels += table[label].to_pylist()
    num_classes = _class_count(schema, label) or max(labels) + 1
    return EncodedImages(items, torch.tensor(labels), num_classes, image_size)


def _columns(schema: Any, path: Path) -> tuple[str, str]:
    """The names of the columns of pictures and of labels."""
    import pyarrow

    def is_picture(kind: Any) -> bool:
        return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    pictures = [field.name for field in schema if is_picture(field.type)]
    numbers = [field.name for field in schema if pyarrow.types.is_integer(field.type)]
    label = next((name for name in _LABELS if name in numbers), numbers[0] if numbers else None)
    if not pictures or label is None:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; needed are one of pictures "
            "(a struct with 'bytes') and one of labels (integers)"
        )
    return pictures[0], label


def _class_count(schema: Any, label: str) -> int | None:
    """The number of names that the file's metadata has for the labels."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    names = json.loads(metadata)["info"]["features"].get(label, {}).get("names")
    return len(names) if names else None


def _from_hub(name: str) -> Path:
    """The folder of a data set of the hub, downloaded once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.count("/") != 1:
        raise DataError(f"{name} is neither a folder nor a data set of the hub (owner/name)")
    try:
        path = snapshot_download(name, repo_type="dataset", allow_patterns="*.parquet")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{name} is no folder here, and could not be had from the hub: {error}"
        ) from None
    return Path(path)
