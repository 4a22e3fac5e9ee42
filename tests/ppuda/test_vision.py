from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghn_fast.data import DataError, load_cifar10, normalise
from ghn_fast.ppuda.vision.loader import image_loader

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
LABELS = [0, 1] * 10


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        content = {"data": PIXELS.reshape(20, -1), "labels": LABELS}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def test_test_images(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, evaluation, classes = image_loader("cifar10", data_dir, test_batch_size=8)
    assert train is None
    assert classes == 10
    assert "20 for evaluation" in capsys.readouterr().out
    images, labels = (torch.cat(parts) for parts in zip(*evaluation, strict=True))
    assert torch.equal(images, normalise(torch.from_numpy(PIXELS)))
    assert labels.tolist() == LABELS
    assert evaluation.batch_size == 8
    assert torch.equal(evaluation.dataset[3][0], images[3])


def test_training_images(data_dir: Path) -> None:
    train, evaluation, _ = image_loader(
        "CIFAR10", data_dir, test=False, batch_size=30, verbose=False
    )
    assert train is not None
    held_out = load_cifar10(data_dir, "val")
    assert (len(train.dataset), len(evaluation.dataset)) == (90, 10)  # type: ignore[arg-type]
    assert torch.equal(next(iter(evaluation))[0], normalise(held_out.images))
    torch.manual_seed(0)
    batches = list(train)
    assert [images.shape for images, _ in batches] == [(30, 3, 32, 32)] * 3
    assert len({int(labels[:10].dot(2 ** torch.arange(10))) for _, labels in batches}) > 1


def test_few_training_images(data_dir: Path) -> None:
    train, evaluation, _ = image_loader(
        "cifar10", data_dir, load_train_anyway=True, n_shots=3, verbose=False
    )
    assert train is not None
    labels = torch.cat([labels for _, labels in train])
    assert labels.bincount().tolist() == [3, 3]
    assert len(evaluation.dataset) == 20  # type: ignore[arg-type]


def test_noise(data_dir: Path) -> None:
    torch.manual_seed(0)
    _, evaluation, _ = image_loader("cifar10", data_dir, noise=True, verbose=False)
    mid = (PIXELS > 80) & (PIXELS < 175)  # where nothing is cut off
    clean = normalise(torch.from_numpy(PIXELS))
    noise = (next(iter(evaluation))[0] - clean)[torch.from_numpy(mid)]
    assert noise.std().item() == pytest.approx(0.08 / 0.25, rel=0.05)


def test_imagenet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="imagenet"):
        image_loader("imagenet", tmp_path)
    for number, name in enumerate(("n01", "n02", "n03")):
        folder = tmp_path / "imagenet" / "val" / name
        folder.mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(folder / f"{image}.png")
    orders = []
    for _ in range(2):
        _, evaluation, classes = image_loader("imagenet", tmp_path, test_batch_size=6, noise=True)
        images, labels = next(iter(evaluation))
        orders.append(labels.tolist())
        assert images.shape == (6, 3, 224, 224)
    assert classes == 3
    assert orders[0] == orders[1] != sorted(orders[0])


@pytest.mark.parametrize(
    "arguments", [{"dataset": "cifar100"}, {"dataset": "cifar10", "im_size": 224}, {"test": False}]
)
def test_what_is_not_offered(arguments: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        image_loader(data_dir=tmp_path, **arguments)  # type: ignore[arg-type]
