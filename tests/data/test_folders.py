from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from ghn_fast.data import DataError, load_class_names, load_images
from ghn_fast.data.encoded import FORMATS
from ghn_fast.data.folders import extensions, pictures_by_class

NAMES = ["c0", "c1", "c2"]


def write_classes(root: Path, count: int = 12, suffix: str = "png") -> Path:
    for name in NAMES:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name / f"{number}.{suffix}")
    return root


def counts(root: Path) -> list[int]:
    """Pictures of each class, in all parts together, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        parts = [load_images(root, split) for split in ("train", "val", "test")]
    assert load_class_names(root) == NAMES
    labels = [label for part in parts for label in part.labels.tolist()]
    return [labels.count(label) for label in range(parts[0].num_classes)]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
@pytest.mark.parametrize("is_empty", [True, False])
def test_hidden_folders_are_no_classes_and_hold_no_pictures(
    tmp_path: Path, name: str, is_empty: bool
) -> None:
    write_classes(tmp_path)
    for place in (tmp_path, tmp_path / "c0", tmp_path / "c1"):
        (place / name).mkdir()
        if not is_empty:
            shutil.copy(tmp_path / "c0" / "1.png", place / name / "1-checkpoint.png")
    assert counts(tmp_path) == [12, 12, 12]


def test_a_part_with_hidden_folders_alone_is_none(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir(parents=True)
    assert counts(tmp_path) == [12, 12, 12]


def test_files_that_systems_add_are_left_out_without_a_word(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for name in ("._1.png", "Thumbs.db", "desktop.ini", ".DS_Store", "boxes.txt"):
        (tmp_path / "c1" / name).write_bytes(b"no picture")
    assert counts(tmp_path) == [12, 12, 12]


def test_a_hidden_folder_above_hides_nothing(tmp_path: Path) -> None:
    assert counts(write_classes(tmp_path / ".cache" / "pictures")) == [12, 12, 12]


@pytest.mark.parametrize("suffix", ["gif", "GIF", "jfif", "webp", "bmp", "tif", "ppm"])
def test_pictures_of_all_formats_that_are_decoded_are_found(tmp_path: Path, suffix: str) -> None:
    assert counts(write_classes(tmp_path, 4, suffix)) == [4, 4, 4]


def test_one_picture_is_no_data_set(tmp_path: Path) -> None:
    file = write_classes(tmp_path) / "c0" / "0.png"
    for read in (load_images, load_class_names):
        with pytest.raises(DataError, match=r"0\.png is one picture: pass the folder that has a f"):
            read(file)


def test_every_format_has_an_extension() -> None:
    kinds = Image.registered_extensions()
    assert {kinds[end] for end in extensions()} == set(FORMATS)


def test_files_that_end_like_no_picture_are_told_of(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for name in ("c0/a.heic", "c2/b.heic"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"left out: 2, such as .*c0/a\.heic \(read are JPEG"):
        assert len(load_images(tmp_path, "train")) == 27


@pytest.mark.parametrize("target", ["..", ".", "../..", "/"])
def test_links_to_folders_above_add_nothing(tmp_path: Path, target: str) -> None:
    root = write_classes(tmp_path / "inner")
    (root / "c0" / "deeper").mkdir()
    os.symlink(target, root / "c0" / "link")
    os.symlink(f"../{target}" if target != "/" else target, root / "c0" / "deeper" / "link")
    assert counts(root) == [12, 12, 12]


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    root, elsewhere = write_classes(tmp_path / "data"), tmp_path / "elsewhere"
    shutil.move(root / "c0", elsewhere / "c0")
    os.symlink(elsewhere / "c0", root / "c0")
    write_classes(elsewhere / "more", 3)
    os.symlink(elsewhere / "more" / "c1", root / "c1" / "more")
    assert counts(root) == [12, 15, 12]
    # Above the folder that is linked, and above the link.
    os.symlink(elsewhere, elsewhere / "c0" / "up")
    os.symlink(root, elsewhere / "c0" / "root")
    assert counts(root) == [12, 15, 12]


def test_a_picture_that_is_linked_to_counts_once_in_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "c0" / "deeper").mkdir()
    os.symlink("../1.png", tmp_path / "c0" / "deeper" / "again.png")
    os.symlink("1.png", tmp_path / "c0" / "0-again.png")
    os.symlink("deeper", tmp_path / "c0" / "same")
    assert counts(tmp_path) == [12, 12, 12]


def test_pictures_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    """The order decides which are held out."""
    for name in ("b", "a", "a-b"):
        for deeper in ("", "a", "a-b", "a/x", "B"):
            (tmp_path / name / deeper).mkdir(parents=True, exist_ok=True)
            for file in ("10.png", "2.JPG", "1.png"):
                (tmp_path / name / deeper / file).touch()
    found = pictures_by_class(tmp_path)
    own = [(str(path), label) for label, paths in enumerate(found.values()) for path in paths]
    assert own == ImageFolder(str(tmp_path)).samples


@pytest.mark.parametrize("file", [None, "1.heic"])
@pytest.mark.filterwarnings("ignore:files in the class folders")
def test_a_class_without_pictures_is_named(tmp_path: Path, file: str | None) -> None:
    (write_classes(tmp_path) / "c9").mkdir()
    if file is not None:
        (tmp_path / "c9" / file).touch()
    with pytest.raises(DataError, match=f"{tmp_path} has no pictures in its folder c9: put some"):
        load_images(tmp_path)


@pytest.mark.parametrize("place", ["", "train"])
def test_one_class_is_too_few(tmp_path: Path, place: str) -> None:
    root = write_classes(tmp_path / place)
    for name in NAMES[1:]:
        shutil.rmtree(root / name)
    with pytest.raises(
        DataError, match=f"{root} has one folder of pictures, c0: .*needs two classes"
    ):
        load_images(tmp_path)
    with pytest.raises(DataError, match="one folder of pictures"):
        load_class_names(tmp_path)


@pytest.mark.parametrize("parts", [("train", "test"), ("Train", "val"), ("train",)])
def test_parts_without_folders_for_classes_are_no_classes(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    for part in parts:
        (tmp_path / part).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / part / "1.png")
    with pytest.raises(DataError, match=f"pictures in {', '.join(sorted(parts))} without a folder"):
        load_images(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_called_as_a_part(tmp_path: Path, name: str) -> None:
    (write_classes(tmp_path) / "c0").rename(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert [len(load_images(tmp_path, part)) for part in ("train", "val", "test")] == [27, 2, 7]
    assert load_class_names(tmp_path) == ["c1", "c2", name]


@pytest.mark.parametrize(("part", "folder"), [("test", "test"), ("val", "dev")])
def test_pictures_of_a_part_without_classes_are_told_of(
    tmp_path: Path, part: str, folder: str
) -> None:
    write_classes(tmp_path / "train")
    (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / folder / "1.png")
    message = rf"pictures in .*/{folder} are not .*/CLASS/1\.jpg.* out, and '{part}' is a share"
    with pytest.warns(UserWarning, match=message) as caught:
        parts = [load_images(tmp_path, split) for split in ("train", "val", "test")]
    assert (len(caught), sum(map(len, parts))) == (1, 36)


def test_pictures_to_train_with_need_folders_of_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "test")
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "1.png")
    message = r"no labelled images for 'train': the pictures in .*/train are not .* train/CLASS/1"
    with pytest.raises(DataError, match=message):
        load_images(tmp_path)
