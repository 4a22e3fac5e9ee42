from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ghn_fast.data import (
    DataError,
    EncodedImages,
    Images,
    load_class_names,
    load_images,
    normalised_by,
)
from ghn_fast.data.mapped import MappedItems
from ghn_fast.nets import build_ghost, sample_net_args

CLASSES = 3


def picture(label: int, width: int = 40, height: int = 30) -> Image.Image:
    """All pixels have the label's colour."""
    return Image.fromarray(np.full((height, width, 3), 60 * label + 20, np.uint8))


def encoded(label: int) -> bytes:
    buffer = io.BytesIO()
    picture(label).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path: Path, labels: list[int], names: list[str] | None = None) -> None:
    pictures = [{"bytes": encoded(max(label, 0)), "path": None} for label in labels]
    table = pyarrow.table({"image": pictures, "label": pyarrow.array(labels, pyarrow.int64())})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    for split, count in (("train", 20), ("val", 2)):
        for label in range(CLASSES):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                picture(label).save(folder / f"{number}.png")
    return tmp_path


def colours(images: torch.Tensor) -> list[float]:
    return images.flatten(1).float().mean(dim=1).tolist()


def test_folders_of_pictures(class_folders: Path) -> None:
    parts = {split: load_images(class_folders, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 54, "val": 6, "test": 6}
    test = parts["test"]
    assert isinstance(test, Images)
    assert test.num_classes == CLASSES
    assert test.images.shape == (6, 3, 32, 32)
    assert colours(test.images) == pytest.approx(
        [60 * label + 20 for label in test.labels.tolist()]
    )
    assert not test.is_large


@pytest.mark.parametrize("places", ["", "data/"])
def test_parquet_files(tmp_path: Path, places: str) -> None:
    names = ["a", "b", "c", "d"]
    write_parquet(tmp_path / f"{places}train-0-of-2.parquet", [0, 1] * 10, names)
    write_parquet(tmp_path / f"{places}train-1-of-2.parquet", [2] * 10, names)
    write_parquet(tmp_path / f"{places}validation-0-of-1.parquet", [1, 2], names)
    write_parquet(tmp_path / f"{places}test-0-of-1.parquet", [2, 0, 1], names)
    parts = [load_images(tmp_path, split) for split in ("train", "val", "test")]
    assert [sorted(part.labels.tolist()) for part in parts[1:]] == [[1, 2], [0, 1, 2]]
    assert len(parts[0]) == 30
    assert {part.num_classes for part in parts} == {4}


def test_configurations_of_a_data_set_are_not_mixed(tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        write_parquet(tmp_path / name / "train-0.parquet", [0, 1] * 10)
    with pytest.raises(DataError, match=r"2 configurations of a data set \(alpha, beta\)"):
        load_images(tmp_path)
    assert len(load_images(tmp_path / "beta")) > 0


def test_an_unlabelled_test_part_is_not_used(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "validation-0.parquet", [1, 1, 0])
    write_parquet(tmp_path / "test-0.parquet", [-1, -1])
    message = r"test-0\.parquet has no labels; it is left out, and 'test' is those of the 'val'"
    with pytest.warns(UserWarning, match=message):
        assert sorted(load_images(tmp_path, "test").labels.tolist()) == [0, 1, 1]
    train, val = (load_images(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 2)


def test_large_data_sets_stay_encoded(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.data.load.MEMORY", 1000)
    images = load_images(class_folders, "train", image_size=48)
    assert isinstance(images, EncodedImages)
    assert images.is_large
    chosen = torch.tensor([0, 53])
    in_memory = images.in_memory()
    torch.testing.assert_close(images.batch(chosen), in_memory.batch(chosen))
    draws = [images.training_batch(chosen, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0].shape == (2, 3, 48, 48)
    assert torch.equal(draws[0], draws[1])
    assert images.select(torch.tensor([5])).labels.tolist() == [images.labels[5].item()]
    assert len(images.first(7)) == 7


def _saved(tmp_path: Path, image: Image.Image, suffix: str, **options: Any) -> list[int]:
    """The mean colour as it is loaded."""
    path = tmp_path / f"x.{suffix}"
    image.save(path, **options)
    pixels = EncodedImages([path], torch.zeros(1, dtype=torch.int64), 1, 16).in_memory().images
    return pixels.float().mean((0, 2, 3)).round().int().tolist()


def test_pictures_of_any_kind_look_as_in_a_viewer(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((16, 16), 257 * 100, np.uint16))
    assert _saved(tmp_path, grey, "png") == [100] * 3
    assert _saved(tmp_path, Image.new("L", (16, 16), 100), "png") == [100] * 3
    drawn = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawn.paste((200, 0, 0, 255), (0, 0, 8, 16))
    assert _saved(tmp_path, drawn, "png") == pytest.approx([228, 128, 128], abs=2)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30])
    assert _saved(tmp_path, palette, "png") == [10, 20, 30]
    assert _saved(tmp_path, palette, "png", transparency=0) == [255] * 3
    with pytest.raises(DataError, match="nothing says which is white"):
        _saved(tmp_path, Image.fromarray(np.zeros((16, 16), np.float32)), "tiff")


def test_pictures_are_upright(tmp_path: Path) -> None:
    """As cameras store them, with a note of how they were held."""
    lying = Image.new("RGB", (32, 32), "black")
    lying.paste("white", (0, 0, 16, 32))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter clockwise
    lying.save(tmp_path / "x.png", exif=exif)
    labels = torch.zeros(1, dtype=torch.int64)
    pixels = EncodedImages([tmp_path / "x.png"], labels, 1, 32).in_memory().images[0, 0]
    assert pixels[:12].min() > 200
    assert pixels[20:].max() < 50


def test_random_crops_are_parts_of_the_image() -> None:
    rows = np.arange(64, dtype=np.uint8).repeat(64).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([rows] * 3, axis=2)).save(buffer, format="PNG")
    images = EncodedImages([buffer.getvalue()] * 32, torch.zeros(32, dtype=torch.int64), 1, 16)
    pixels = images.training_batch(torch.arange(32), torch.Generator().manual_seed(0))
    heights = pixels[:, 0, -1, 0] - pixels[:, 0, 0, 0]
    assert (heights > 0).all()
    assert heights.max() > 2 * heights.min()
    whole = images.training_batch(torch.arange(32), torch.Generator().manual_seed(0), crop=False)
    torch.testing.assert_close(whole, images.batch(torch.arange(32)))


def test_networks_for_large_images_take_them() -> None:
    network = build_ghost(sample_net_args("train", 0, 0, True), 5, True).to_empty(device="cpu")
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_cifar10_keeps_its_reader(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    picture(1, 32, 32).save(pixels, format="PNG")
    table = {"img": [{"bytes": pixels.getvalue(), "path": None}] * 20, "label": [3] * 20}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train-0.parquet")
    images = load_images(tmp_path, "train")
    assert isinstance(images, Images)
    assert (images.num_classes, len(images)) == (10, 18)


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no images in a known layout.*train-\*.parquet"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a data set of the hub"):
        load_images("missing")
    for path in ("/missing", "./missing", "~/missing", "missing/of/this", tmp_path / "missing"):
        with pytest.raises(DataError, match=f"{path}: no such folder or file"):
            load_images(path)
    with pytest.raises(ValueError, match="image_size must be positive, not -5"):
        load_images(tmp_path, image_size=-5)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load_images(tmp_path, "dev")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"has the columns x; needed are one of pictures"):
        load_images(tmp_path)


def test_a_damaged_picture_is_named(class_folders: Path) -> None:
    path = class_folders / "val" / "class1" / "0.png"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{path}: it is not a picture"):
        load_images(class_folders, "test")


@pytest.mark.parametrize("memory", [2**31, 1])
def test_the_first_images_are_of_all_classes(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr("ghn_fast.data.load.MEMORY", memory)
    images = load_images(class_folders, "train")
    assert set(images.first(18).labels.tolist()) == set(range(CLASSES))
    assert images.labels.tolist() == load_images(class_folders, "train").labels.tolist()


def test_the_first_images_of_parquet_files_are_of_all_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0] * 20 + [1] * 20 + [2] * 20)
    write_parquet(tmp_path / "validation-0.parquet", [0] * 20 + [1] * 20 + [2] * 20)
    images = load_images(tmp_path, "test").first(18)
    assert set(images.labels.tolist()) == {0, 1, 2}
    assert isinstance(images, Images)
    assert colours(images.images) == pytest.approx([60 * n + 20 for n in images.labels.tolist()])


def test_folders_are_numbered_by_those_of_the_training_images(class_folders: Path) -> None:
    shutil.rmtree(class_folders / "val" / "class1")
    test = load_images(class_folders, "test")
    assert isinstance(test, Images)
    assert (sorted(test.labels.tolist()), test.num_classes) == ([0, 0, 2, 2], CLASSES)
    assert colours(test.images) == pytest.approx([60 * n + 20 for n in test.labels.tolist()])


def test_folders_of_other_classes_are_refused(class_folders: Path) -> None:
    (class_folders / "val" / "class1").rename(class_folders / "val" / "dog")
    with pytest.raises(DataError, match="val has classes that the training images lack: dog"):
        load_images(class_folders, "test")


def test_a_test_folder_without_classes_is_unlabelled(class_folders: Path) -> None:
    (class_folders / "test" / "images").mkdir(parents=True)
    picture(0).save(class_folders / "test" / "images" / "0.png")
    with pytest.warns(UserWarning, match="test are not in a folder for each class"):
        assert sorted(load_images(class_folders, "test").labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_a_test_folder_of_other_names_is_refused(class_folders: Path) -> None:
    for label in range(CLASSES):
        folder = class_folders / "test" / f"Class{label}"
        folder.mkdir(parents=True)
        picture(label).save(folder / "0.png")
    with pytest.raises(DataError, match="test has classes that the training images lack: Class0"):
        load_images(class_folders, "test")


def test_parquet_files_are_of_the_classes_of_the_training_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1] * 5)
    write_parquet(tmp_path / "train-1.parquet", [2] * 5)
    write_parquet(tmp_path / "test-0.parquet", [0, 1])
    assert load_images(tmp_path, "test").num_classes == 3
    write_parquet(tmp_path / "test-0.parquet", [0, 3])
    with pytest.raises(DataError, match="has the labels 3, and the training images have 0 to 2"):
        load_images(tmp_path, "test")


def test_parquet_files_with_other_names_of_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1], ["cat", "dog"])
    write_parquet(tmp_path / "test-0.parquet", [0, 1], ["cat", "fox"])
    with pytest.raises(DataError, match="otherwise than the training images: fox"):
        load_images(tmp_path, "test")


def test_what_was_asked_for_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-0.parquet", [0, 1])
    with pytest.raises(DataError, match="no labelled images for 'train'"):
        load_images(tmp_path, "train")


def test_few_images_are_shared_by_no_two_parts(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 2, 0, 1])
    parts = [load_images(tmp_path, split).labels.tolist() for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3, 1, 1]
    assert sorted(parts[0]) == [0, 1, 2]
    assert sorted(parts[1] + parts[2]) == [0, 1]
    write_parquet(tmp_path / "train-0.parquet", [0, 1])
    with pytest.raises(DataError, match="too few images for a part of them to be for 'test'"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("place", ["train.parquet", "pictures.parquet"])
def test_a_file_alone_is_divided_evenly_by_class(tmp_path: Path, place: str) -> None:
    """Whether it is called that of the training images or not; rare classes are trained with."""
    counts = (50, 24, 12, 1)
    write_parquet(tmp_path / place, [n for n, count in enumerate(counts) for _ in range(count)])
    source = tmp_path if place == "train.parquet" else tmp_path / place
    labels = [load_images(source, split).labels for split in ("train", "val", "test")]
    train, val, test = (part.bincount(minlength=4).tolist() for part in labels)
    assert [sum(part) for part in (train, val, test)] == [63, 7, 17]
    assert [a + b + c for a, b, c in zip(train, val, test, strict=True)] == list(counts)
    assert train[3] == 1
    assert test == pytest.approx([n / 5 for n in counts], abs=1)
    assert val == pytest.approx([n * 0.08 for n in counts], abs=1)


def write_arrow(
    folder: Path,
    labels: list[int],
    parts: int = 2,
    opened: Any = pyarrow.ipc.new_stream,
    **options: Any,
) -> None:
    """As ``datasets.Dataset.save_to_disk`` does, but for the format and options."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text("{}")
    names = ["red", "green", "blue"]
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part in range(parts):
        own = labels[part::parts]
        pictures = [{"bytes": encoded(label), "path": None} for label in own]
        table = pyarrow.table({"image": pictures, "label": pyarrow.array(own, pyarrow.int64())})
        path = folder / f"data-{part:05}-of-{parts:05}.arrow"
        schema, chosen = (
            table.schema.with_metadata(metadata),
            pyarrow.ipc.IpcWriteOptions(**options),
        )
        with opened(str(path), schema, options=chosen) as sink:
            sink.write_table(table.replace_schema_metadata(metadata))


def test_folders_of_classes_without_parts(class_folders: Path) -> None:
    folder = class_folders / "train"
    parts = {split: load_images(folder, split) for split in ("train", "val", "test")}
    assert {s: len(part) for s, part in parts.items()} == {"train": 44, "val": 4, "test": 12}
    for part in parts.values():
        assert part.num_classes == CLASSES
        images = part.batch(torch.arange(len(part)))
        assert len(set(zip(part.labels.tolist(), colours(images), strict=True))) <= CLASSES
    assert load_class_names(class_folders / "train") == ["class0", "class1", "class2"]
    assert load_class_names(class_folders) == ["class0", "class1", "class2"]


@pytest.mark.parametrize("has_parts", [True, False])
def test_what_datasets_saved(tmp_path: Path, has_parts: bool) -> None:
    labels = [number % CLASSES for number in range(30)]
    write_arrow(tmp_path / "train" if has_parts else tmp_path, labels)
    if has_parts:
        write_arrow(tmp_path / "test", labels[:6])
    parts = {split: load_images(tmp_path, split) for split in ("train", "val", "test")}
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes == {"train": 27 if has_parts else 22, "val": 3 if has_parts else 2, "test": 6}
    images = parts["test"].batch(torch.arange(6))
    by_label = dict(zip(parts["test"].labels.tolist(), colours(images), strict=True))
    assert sorted(by_label.values()) == [by_label[label] for label in sorted(by_label)]
    assert load_class_names(tmp_path) == ["red", "green", "blue"]


@pytest.mark.parametrize("opened", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_arrow_files_are_read(tmp_path: Path, opened: Any, compression: str) -> None:
    labels = [number % CLASSES for number in range(20)]
    for name, options in {"plain": {}, "small": {"compression": compression}}.items():
        write_arrow(tmp_path / name, labels, opened=opened, **options)
    plain, small = (load_images(tmp_path / name, "test") for name in ("plain", "small"))
    assert plain.labels.tolist() == small.labels.tolist()
    every = torch.arange(len(plain))
    assert torch.equal(plain.batch(every), small.batch(every))


def test_many_encoded_pictures_are_read_through_a_memory_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [number % CLASSES for number in range(40)]
    write_parquet(tmp_path / "train-0.parquet", labels, ["a", "b", "c"])
    write_parquet(tmp_path / "test-0.parquet", labels[:4], ["a", "b", "c"])
    expected = load_images(tmp_path, "train")
    monkeypatch.setattr("ghn_fast.data.load.MEMORY", 64)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = load_images(tmp_path, "train")
    assert isinstance(images, EncodedImages)
    assert isinstance(images.items, MappedItems)
    assert torch.equal(images.labels, expected.labels)
    chosen = torch.tensor([5, 0, 30])
    assert torch.equal(images.batch(chosen), expected.batch(chosen))
    few = images.select(chosen).first(2)
    assert torch.equal(few.batch(torch.arange(2)), images.batch(chosen[:2]))
    written = set((tmp_path / "cache").rglob("*.arrow"))
    load_images(tmp_path, "train")
    assert set((tmp_path / "cache").rglob("*.arrow")) == written


def test_a_damaged_arrow_file_is_named(tmp_path: Path) -> None:
    write_arrow(tmp_path, [0, 1, 2] * 4)
    path = tmp_path / "data-00000-of-00002.arrow"
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"data-00000-of-00002\.arrow is truncated or damaged"):
        load_images(tmp_path, "train")


def test_images_can_be_normalised_otherwise(class_folders: Path) -> None:
    images = load_images(class_folders, "train")
    other = normalised_by(images, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    pixels = other.batch(torch.arange(3))
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert {round(255 * value) for value in colours(pixels)} <= {20, 80, 140}
