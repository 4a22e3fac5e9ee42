from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ghn_fast.data import DataError, find_cifar10, load_cifar10
from ghn_fast.data.encoded import Row

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = list(range(10)) * 4


def encoded(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    return content.getvalue()


def write_parquet(path: Path, images: list[bytes], labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image, "path": None} for image in images]
    pyarrow.parquet.write_table(pyarrow.table({"img": rows, "label": labels}), path)


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    images = [encoded(pixels) for pixels in PIXELS]
    for split in ("train", "test"):
        write_parquet(tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet", images, LABELS)
    return tmp_path


@pytest.fixture
def whole_files_folder(tmp_path: Path) -> Path:
    images = [encoded(pixels) for pixels in PIXELS]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", images, LABELS)
    return tmp_path


def write_batch(path: Path, rows: slice) -> None:
    data = PIXELS[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
    path.write_bytes(pickle.dumps({"data": data, "labels": LABELS[rows]}, protocol=2))


@pytest.fixture
def torchvision_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(5):
        write_batch(folder / f"data_batch_{number + 1}", slice(8 * number, 8 * number + 8))
    write_batch(folder / "test_batch", slice(0, 40))
    return tmp_path


@pytest.mark.parametrize("layout", ["parquet_folder", "whole_files_folder", "torchvision_folder"])
def test_all_layouts_hold_the_same(layout: str, request: pytest.FixtureRequest) -> None:
    images = load_cifar10(request.getfixturevalue(layout), "test")
    assert torch.equal(images.images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert images.labels.tolist() == LABELS


def test_validation_images_are_held_out(parquet_folder: Path) -> None:
    parts = [load_cifar10(parquet_folder, split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [36, 4]
    whole = {pixels.tobytes() for pixels in PIXELS.transpose(0, 3, 1, 2)}
    found = [image.numpy().tobytes() for part in parts for image in part.images]
    assert len(found) == 40
    assert set(found) == whole


def test_only_the_images_of_the_split_are_decoded(
    parquet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(item: Row) -> np.ndarray:
        decoded.append(item.row)
        return PIXELS[item.row]

    monkeypatch.setattr("ghn_fast.data.cifar10._decode", decode)
    validation = load_cifar10(parquet_folder, "val")
    assert torch.equal(validation.images, torch.from_numpy(PIXELS[decoded]).permute(0, 3, 1, 2))
    assert validation.labels.tolist() == [LABELS[row] for row in decoded]
    assert len(decoded) == 4
    load_cifar10(parquet_folder, "train")
    assert sorted(decoded) == list(range(40))


def test_real_images(shared: Path) -> None:
    images = load_cifar10(shared / "data" / "cifar10", "test")
    assert images.images.shape == (5000, 3, 32, 32)
    assert images.labels.bincount().tolist() == pytest.approx([500] * 10, abs=60)
    assert 90 < images.images.float().mean() < 140


def test_the_folder_is_found(parquet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHN_FAST_DATA", str(parquet_folder))
    assert find_cifar10() == parquet_folder
    monkeypatch.delenv("GHN_FAST_DATA")
    (parquet_folder / "data").mkdir()
    os.symlink(parquet_folder, parquet_folder / "data" / "cifar10")
    monkeypatch.chdir(parquet_folder)
    assert find_cifar10() == Path("data/cifar10")


def test_a_missing_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    message = rf"(?s){tmp_path}.*parquet.*batches-py.*GHN_FAST_DATA.*, --download on the command"
    with pytest.raises(DataError, match=message):
        load_cifar10(tmp_path, "test")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; there are train, val, test"):
        load_cifar10(tmp_path, "dev")


def test_a_missing_parquet_file(parquet_folder: Path) -> None:
    next(parquet_folder.glob("*/train-*")).unlink()
    with pytest.raises(DataError, match=r"no train-\*.parquet"):
        load_cifar10(parquet_folder, "train")


def test_a_truncated_parquet_file(parquet_folder: Path) -> None:
    path = next(parquet_folder.glob("*/test-*"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{path} is truncated or damaged .*Parquet"):
        load_cifar10(parquet_folder, "test")


@pytest.mark.parametrize("content", [b"no picture", encoded(np.zeros((31, 32, 3), np.uint8))])
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    images = [encoded(PIXELS[0]), content]
    write_parquet(tmp_path / "test-0.parquet", images, [1, 2])
    with pytest.raises(DataError, match=r"image 1: it is not a (32 x 32 )?picture"):
        load_cifar10(tmp_path, "test")


def test_other_columns_and_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "test-0.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": ["x"], "fine_label": [1]}), path)
    with pytest.raises(DataError, match="has the columns fine_label, image"):
        load_cifar10(tmp_path, "test")
    write_parquet(path, [encoded(PIXELS[0])], [10])
    with pytest.raises(DataError, match="labels from 10 to 10, not 0 to 9"):
        load_cifar10(tmp_path, "test")


def test_a_missing_or_truncated_batch_file(torchvision_folder: Path) -> None:
    path = torchvision_folder / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="test_batch is truncated or damaged"):
        load_cifar10(torchvision_folder, "test")
    path.unlink()
    with pytest.raises(DataError, match="test_batch is missing"):
        load_cifar10(torchvision_folder, "test")


class _Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_malicious_batch_file_runs_nothing(torchvision_folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = torchvision_folder / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": _Harmful(mark), "labels": [1]}))
    with pytest.raises(DataError, match="it asks for"):
        load_cifar10(torchvision_folder, "test")
    assert not mark.exists()
