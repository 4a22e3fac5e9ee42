"""Any data set of labelled images, from the layouts in which they are commonly stored."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ghn_fast._system.device import on_cpu
from ghn_fast._system.errors import FileError, failures, one_line, shown
from ghn_fast._system.random import permutation
from ghn_fast.data.arrow import arrow_files, arrow_schema, read_arrow
from ghn_fast.data.cifar10 import CLASSES, SPLITS, find_cifar10, load_cifar10
from ghn_fast.data.encoded import FORMATS, Encoded, EncodedImages, pictures
from ghn_fast.data.errors import DataError
from ghn_fast.data.folders import (
    class_names,
    has_pictures,
    is_picture,
    pictures_by_class,
    with_pictures,
)
from ghn_fast.data.images import ImageSource, held_out
from ghn_fast.data.mapped import MappedItems, as_arrow
from ghn_fast.data.parquet import parquet_files, read_parquet

MEMORY = 2 * 2**30
"""Bytes up to which a data set is decoded at once and kept."""
MOST_CLASSES = 2**20
"""Of data sets whose classes have no names."""
CIFAR10_COLUMNS = {"img", "label"}
_STORED = {
    "train": ("train",),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Names under which splits are stored."""
_PARTS = frozenset(chain.from_iterable(_STORED.values()))
TEST_SHARE = 5
ORDER_SEED = 0
"""Of the order of all images but CIFAR-10's, which are stored by class as often as not."""
_LABELS = ("label", "labels", "fine_label", "target")


@on_cpu()
def load_images(
    source: str | Path | None = None,
    split: str = "train",
    image_size: int = 32,
    download: bool = False,
) -> ImageSource:
    """Reads a data set of images with labels.

    Known are CIFAR-10 (see :func:`load_cifar10`); a folder of pictures for each class (as
    ``torchvision.datasets.ImageFolder`` reads, without hidden ones such as
    ``.ipynb_checkpoints``), or ``train`` and ``val`` or ``test`` folders of such (as ImageNet is
    stored); Parquet files with a column of pictures and one of labels (as Hugging Face stores image
    data sets), one alone, in a folder or by their name on the hub; and what
    ``datasets.Dataset.save_to_disk`` wrote. Of pictures that are in no parts, or all in ``train``,
    a fifth is for ``"test"``. A part without labels is left out, and a warning says so.

    What is small enough (2 GiB decoded) is decoded at once and kept, and augmented as CIFAR-10 is;
    the rest is decoded when needed, and cropped and scaled at random in training. Encoded pictures
    are read through a memory map where they are more than that (:mod:`ghn_fast.data.mapped`).
    Images come in a fixed random order, so that the first ones are of all classes; CIFAR-10 keeps
    its own order. Classes are numbered as the training images have them, in all parts. A data set
    without a test part of its own gives its validation part as ``"test"``; ``"val"`` is then held
    out from the training images, so that no choice is made on what is reported.

    Pictures are normalised by ImageNet's mean and deviation, CIFAR-10 by its own (``.mean``,
    ``.std``); :func:`normalised_by` takes others, as a GHN's ``config.mean`` and ``config.std``.

    Args:
        source: a folder, or ``owner/name`` on the hub; None looks for CIFAR-10.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image_size: height and width that images are brought to; CIFAR-10 keeps its 32. Networks
            for more than 32 are those for ImageNet.
        download: of CIFAR-10 where none is found.

    Raises:
        DataError: nothing was found, what was found is damaged or of no class, or a part has
            classes that the training images lack.
        ValueError: an unknown split, or an impossible size.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if image_size < 1:
        raise ValueError(f"image_size must be positive, not {image_size}")
    if source is None or (download and _existing(source) is None):
        return load_cifar10(source, split, download)
    folder = _folder(source)
    if _is_cifar10(folder):
        return load_cifar10(folder, split)
    images = _shuffled(_split(_Parts(folder), split, image_size))
    if len(images) == 0:
        raise DataError(f"{folder} has too few images for a part of them to be for {split!r}")
    if len(images) * 3 * image_size**2 <= MEMORY:
        return images.in_memory()
    return images


def is_cifar10(source: str | Path | None) -> bool:
    """Whether :func:`load_images` reads CIFAR-10 from there.

    Raises:
        DataError: nothing was found.
    """
    return source is None or _is_cifar10(_folder(source))


def _folder(source: str | Path) -> Path:
    return _existing(source) or _from_hub(str(source))


def _existing(source: str | Path) -> Path | None:
    with failures(source, DataError):
        folder = Path(source).expanduser()
        return folder if folder.exists() else None


def _shuffled(images: EncodedImages) -> EncodedImages:
    return images.select(permutation(len(images), ORDER_SEED))


def _is_cifar10(folder: Path) -> bool:
    if find_cifar10(folder) is None:
        return False
    files = parquet_files(folder, "train") or parquet_files(folder, "test")
    return not files or set(_schema(files[0]).names) >= CIFAR10_COLUMNS


def load_class_names(source: str | Path | None = None) -> list[str]:
    """What the classes of a data set are called, in the order of their numbers.

    Their numbers where they have no names.

    Raises:
        DataError: as :func:`load_images`.
    """
    if is_cifar10(source):
        return list(CLASSES)
    assert source is not None
    parts = _Parts(_folder(source))
    if parts.has_folders:
        return parts.class_folders()
    files = parts.training_files
    return _class_names(files[0]) or [str(i) for i in range(_class_count(files, files))]


class _Parts:
    """The stored parts of a data set, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        if folder.is_file() and is_picture(folder.name):
            raise DataError(
                f"{folder} is one picture: pass the folder that has a folder of pictures for each "
                "class"
            )
        self.folder = folder
        self.files = {split: self._find_files(split) for split in SPLITS}
        self.folders = {split: self._find_folder(split) for split in SPLITS}
        if not self.has_folders and not any(self.files.values()):
            self.files["train"] = [folder] if folder.is_file() else arrow_files(folder)
            found = [] if self.files["train"] else with_pictures(folder)
            _check_classes(folder, found)
            self.folders["train"] = folder if found else None
        if (train := self.folders["train"]) is not None:
            _check_classes(train, class_names(train))
        if not any(self.files.values()) and not any(self.folders.values()):
            raise DataError(
                f"{folder} has no images in a known layout. Looked for train-*.parquet and "
                "test-*.parquet, for folders of pictures for each class, in folders train and "
                "val or test or in none, and for what save_to_disk of datasets writes."
            )

    def _find_files(self, split: str) -> list[Path]:
        found = (
            parquet_files(self.folder, name) or arrow_files(self.folder / name)
            for name in _STORED[split]
        )
        return next((files for files in found if files), [])

    def _find_folder(self, split: str) -> Path | None:
        folders = (self.folder / name for name in _STORED[split])
        return next((path for path in folders if path.is_dir() and class_names(path)), None)

    def has(self, split: str) -> bool:
        return self.folders[split] is not None or bool(self.files[split])

    @property
    def has_folders(self) -> bool:
        return any(folder is not None for folder in self.folders.values())

    @property
    def training_files(self) -> list[Path]:
        """Those of the training images; where there are none, of the first part that has files."""
        return next(files for files in self.files.values() if files)

    def is_labelled(self, split: str) -> bool:
        """Whether there is such a part, with labels: those of some test parts are kept back."""
        folder = self.folders[split]
        if folder is not None:
            names = class_names(folder)
            return len(names) > 1 or not set(self.class_folders()).isdisjoint(names)
        files = self.files[split]
        return bool(files) and min(_read_labels(files[0]), default=-1) >= 0

    def without_labels(self, split: str) -> Path | None:
        """Where the pictures of a part without labels are, if there is such a part."""
        if self.folder in self.folders.values():  # classes may be called as parts are
            return None
        if self.has(split):
            return self.folders[split] or self.files[split][0]
        folders = (self.folder / name for name in _STORED[split])
        return next((path for path in folders if path.is_dir() and has_pictures(path)), None)

    def read(self, split: str, image_size: int) -> EncodedImages:
        folder = self.folders[split]
        if folder is not None:
            return _read_folder(folder, self.class_folders(), image_size)
        files = self.files[split]
        return _read_parquet(files, self.files["train"] or files, image_size)

    def class_folders(self) -> list[str]:
        """Of the training images; where there are none, of the first part that has folders."""
        return next(class_names(path) for path in self.folders.values() if path is not None)


def _split(parts: _Parts, split: str, image_size: int) -> EncodedImages:
    has_test, has_val = parts.is_labelled("test"), parts.is_labelled("val")
    if (split == "val" and not has_val) or (split == "test" and not has_test):
        _tell_of_others(parts, split, "val" if split == "test" and has_val else "train")
    if parts.has("train") and not (has_test or has_val):
        images = parts.read("train", image_size)
        return images.select(_share_of(images.labels, split))
    is_whole = split == "test" or (has_test and has_val)
    stored = split if is_whole else "train"
    if split == "test" and not has_test:
        stored = "val"
    if not parts.has(stored):
        bare = parts.without_labels(stored)
        where = "" if bare is None else f": {_without_classes(bare)}"
        raise DataError(f"{parts.folder} has no labelled images for {split!r}{where}")
    images = parts.read(stored, image_size)
    return images if is_whole else images.select(held_out(len(images), split))


def _tell_of_others(parts: _Parts, split: str, other: str) -> None:
    """That a part is there without labels, and images of another are taken in its place."""
    path = parts.without_labels(split)
    if path is None:
        return
    why = _without_classes(path) if path.is_dir() else f"{path} has no labels"
    taken = "those of the 'val' part" if other == "val" else "a share of the training images"
    text = f"{why}; it is left out, and {split!r} is {taken}"
    warnings.warn(one_line(text), UserWarning, stacklevel=2)


def _without_classes(folder: Path) -> str:
    return (
        f"the pictures in {folder} are not in a folder for each class, as in "
        f"{folder.name}/CLASS/1.jpg, and nothing says which class they are of"
    )


def _share_of(labels: torch.Tensor, split: str) -> torch.Tensor:
    """Of images in no parts a fifth is for testing, and a part of the others is held out.

    Evenly of all classes, in a fixed random order; the first of a class is for training.
    """
    order = permutation(len(labels), ORDER_SEED)
    order = order[labels[order].argsort(stable=True)]
    is_first = labels[order].diff(prepend=torch.tensor([-1])) != 0
    tested = max(len(labels) // TEST_SHARE, 1)
    held = len(held_out(len(labels) - tested, "val"))
    test, rest = _evenly(order[~is_first], tested)
    val, rest = _evenly(rest, held)
    parts = {"train": torch.cat([order[is_first], rest]), "val": val, "test": test}
    return parts[split].sort().values


def _evenly(of: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` of them, as far from one another as can be, and the others."""
    count = min(count, len(of))
    chosen = torch.zeros(len(of), dtype=torch.bool)
    chosen[((torch.arange(count) + 0.5) * len(of) / max(count, 1)).long()] = True
    return of[chosen], of[~chosen]


def _read_folder(folder: Path, classes: Sequence[str], image_size: int) -> EncodedImages:
    """Pictures by class, numbered by their class's place in ``classes``."""
    unknown = [name for name in class_names(folder) if name not in classes]
    if unknown:
        raise DataError(
            f"{folder} has classes that the training images lack: {_some(unknown)}; its folders "
            "have to be named as those of the training images"
        )
    with failures(folder, DataError):
        found = pictures_by_class(folder)
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise DataError(
            f"{folder} has no pictures in its folder {_some(empty)}: put some there "
            f"({', '.join(FORMATS)}), or remove the folder"
        )
    items: list[Encoded] = [path for paths in found.values() for path in paths]
    numbers = torch.tensor([classes.index(name) for name in found])
    labels = numbers.repeat_interleave(torch.tensor([len(paths) for paths in found.values()]))
    return EncodedImages(items, labels, len(classes), image_size)


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    if names and _PARTS.issuperset(name.lower() for name in names):
        raise DataError(
            f"{folder} has pictures in {_some(names)} without a folder for each class: nothing "
            "says which class they are of"
        )
    if len(names) == 1:
        raise DataError(
            f"{folder} has one folder of pictures, {names[0]}: a classifier needs two classes or "
            "more, and a folder for each"
        )


def _some(names: Sequence[object], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def _schema(path: Path) -> Any:
    import pyarrow.parquet

    with failures(path, DataError):
        is_arrow = path.suffix == ".arrow"
        return arrow_schema(path) if is_arrow else pyarrow.parquet.read_schema(path)


def _read_table(path: Path, columns: list[str]) -> Any:
    with failures(path, DataError):
        if path.suffix == ".arrow":
            return read_arrow(path, columns)
        return read_parquet(path, columns)


def _read_labels(path: Path) -> list[int]:
    """Of every row; -1 where there is none, as where labels are kept back."""
    _, label = _columns(_schema(path), path)
    return _numbers(_read_table(path, [label])[label])


def _numbers(labels: Any) -> list[int]:
    return [-1 if value is None else value for value in labels.to_pylist()]


def _read_parquet(
    files: Sequence[Path], training_files: Sequence[Path], image_size: int
) -> EncodedImages:
    image, label = _columns(_schema(files[0]), files[0])
    labels: list[int] = []
    num_classes = _class_count(files, training_files)
    files = _mapped_where_large(files, [image, label])
    tables = [_read_table(path, [image, label]) for path in files]
    for path, table in zip(files, tables, strict=True):
        with failures(path, DataError):
            found = _numbers(table[label])
            unknown = sorted({value for value in found if not 0 <= value < num_classes})
            if unknown:
                shown_labels = ["none" if value == -1 else value for value in unknown]
                raise FileError(
                    f"it has the labels {_some(shown_labels)}, and the training images have 0 to "
                    f"{num_classes - 1}"
                )
        labels += found
    if not labels:
        raise DataError(f"{files[0]} has no images")
    items = _items([table[image] for table in tables], files)
    return EncodedImages(items, torch.tensor(labels), num_classes, image_size)


def _mapped_where_large(files: Sequence[Path], columns: list[str]) -> Sequence[Path]:
    """The files, or Arrow files of the same content where they are too large for the memory."""
    is_large = sum(path.stat().st_size for path in files) > MEMORY
    if not is_large or files[0].suffix == ".arrow":
        return files
    found = []
    for path in files:
        with failures(path, DataError):
            found.append(as_arrow(path, columns))
    return found


def _items(columns: Sequence[Any], files: Sequence[Path]) -> Sequence[Encoded]:
    if files[0].suffix == ".arrow":
        return MappedItems.of(columns, files)
    items: list[Encoded] = []
    for column, path in zip(columns, files, strict=True):
        with failures(path, DataError):
            items += pictures(column, path)
    return items


def _class_count(files: Sequence[Path], training_files: Sequence[Path]) -> int:
    """By the names of the training images' labels, otherwise by the largest label."""
    names, known = _class_names(files[0]), _class_names(training_files[0])
    if names and known and names != known:
        other = [name for name in names if name not in known] or names
        raise DataError(
            f"{files[0]} names its classes otherwise than the training images: {_some(other)}"
        )
    if known:
        return len(known)
    largest, path = max((max(_read_labels(path), default=-1), path) for path in training_files)
    if largest >= MOST_CLASSES:
        raise DataError(f"{path} has the label {largest}, and no names of so many classes")
    return largest + 1


def _columns(schema: Any, path: Path) -> tuple[str, str]:
    """The names of the columns of pictures and of labels."""
    import pyarrow

    def is_picture(kind: Any) -> bool:
        field = kind.get_field_index("bytes") if pyarrow.types.is_struct(kind) else -1
        return field >= 0 and (
            pyarrow.types.is_binary(kind[field].type)
            or pyarrow.types.is_large_binary(kind[field].type)
        )

    with failures(path, DataError):  # a name may be no text
        pictures = [field.name for field in schema if is_picture(field.type)]
        numbers = [field.name for field in schema if pyarrow.types.is_integer(field.type)]
        label = next((name for name in _LABELS if name in numbers), numbers[0] if numbers else None)
        if not pictures or label is None:
            raise FileError(
                f"it has the columns {', '.join(schema.names)}; needed are one of pictures "
                "(a struct with binary 'bytes') and one of labels (integers)"
            )
        return pictures[0], label


def _class_names(path: Path) -> list[str]:
    """The names that the file's metadata has for the labels; none where it has no such."""
    schema = _schema(path)
    _, label = _columns(schema, path)
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return []
    with failures(path, DataError):
        names = _value(json.loads(metadata), "info", "features", label, "names")
        if names is None:
            return []
        if type(names) is not list or any(type(name) is not str for name in names):
            raise FileError(f"the names of its classes are no list of names but {shown(names)}")
        return names


def _value(values: Any, *keys: str) -> Any:
    """What is in a dictionary of dictionaries; None where it is not, or is something else."""
    for key in keys:
        values = values.get(key) if type(values) is dict else None
    return values


def _from_hub(name: str) -> Path:
    """The folder of a data set of the hub, downloaded once."""
    from huggingface_hub import snapshot_download

    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise DataError(f"{name}: no such folder or file")
    if "/" not in name:
        raise DataError(f"{name} is neither a folder nor a data set of the hub (owner/name)")
    try:
        path = snapshot_download(name, repo_type="dataset", allow_patterns="*.parquet")
    except Exception as error:  # of the network, of which there are several libraries
        raise DataError(
            f"{name} is no folder here, and could not be had from the hub: {error}"
        ) from None
    return Path(path)
