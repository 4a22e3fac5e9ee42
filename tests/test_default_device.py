"""A default device is for what users make: the meta device stands for a GPU, as in
``torch.set_default_device("cuda")``; what is made there by mistake has no values here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.data import Images, ImageStream, load_cifar10, load_images
from ghn_fast.data.encoded import EncodedImages
from ghn_fast.evaluation.accuracy import batches_in_order
from ghn_fast.evaluation.labels import with_noise
from ghn_fast.evaluation.results import images_digest
from ghn_fast.ghn import ghn2
from ghn_fast.start import start_
from ghn_fast.train import Teacher
from ghn_fast.train.teacher import TaughtStream
from tests.data import test_cifar10, test_load
from tests.graphs import SmallClassifier
from tests.train.test_trainer import make_images


class OnCpu(Images):
    """A GPU's indices cannot choose of what is on the CPU, as those without values can."""

    def batch(self, indices: Tensor) -> Tensor:
        assert indices.is_cpu
        return super().batch(indices)


IMAGES, FEW = OnCpu(**vars(make_images(40))), torch.arange(4)
GHN = ghn2(num_classes=10, hid=8, max_shape=(8, 8, 3, 3)).eval()
INPUTS, LABELS = torch.randn(40, 3, 8, 8), torch.arange(40) % 10
CLASSIFIER = SmallClassifier().state_dict()
LAYER = nn.TransformerEncoderLayer(16, 2, 32).state_dict()


def classifier() -> nn.Module:
    with torch.device("cpu"):
        model = SmallClassifier()
    model.load_state_dict(CLASSIFIER)
    return model


def cifar10(folder: Path) -> Any:
    pictures = [test_cifar10.encoded(pixels) for pixels in test_cifar10.PIXELS]
    for split in ("train", "test"):
        test_cifar10.write_parquet(folder / f"{split}.parquet", pictures, test_cifar10.LABELS)
    parts = [load_cifar10(folder, split) for split in ("train", "val", "test")]
    return [(part.labels.tolist(), part.images.tolist()) for part in parts]


def folders(folder: Path) -> Any:
    for number in range(20):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        test_load.picture(number % 2).save(path)
    parts = [load_images(folder, split, image_size=8) for split in ("train", "val", "test")]
    return [(part.labels.tolist(), part.batch(FEW[:1]).tolist()) for part in parts]


def encoded(folder: Path) -> Any:
    items = [test_load.encoded(label) for label in range(4)]
    images = EncodedImages(items, FEW, num_classes=4, size=8)
    drawn = images.training_batch(FEW, torch.Generator().manual_seed(0))
    return drawn.tolist(), images.in_memory().images.tolist()


def stream(folder: Path) -> Any:
    return [part.tolist() for part in ImageStream(IMAGES, 8, seed=0)[1]]


def taught(folder: Path) -> Any:
    teacher = Teacher(classifier())
    teacher.check(IMAGES)
    logits = teacher.logits(IMAGES)
    drawn = TaughtStream(ImageStream(IMAGES, 8, seed=0), logits, 0.5, 1.0).batch(1)
    return [part.tolist() for part in drawn]


def evaluated(folder: Path) -> Any:
    noisy = with_noise(IMAGES, 0.1)
    return images_digest(noisy), [labels.tolist() for _, labels in batches_in_order(noisy, 8)]


def calibrated(folder: Path) -> Any:
    model = ghn_fast.calibrate_(classifier(), [INPUTS[:20], INPUTS[20:]])
    return model.bn.running_mean.tolist(), model.bn.running_var.tolist()


def fitted(folder: Path) -> Any:
    model = classifier()
    ghn_fast.fit_head_(model, [(INPUTS, LABELS)])
    return model.fc.weight.tolist()


def started(folder: Path) -> Any:
    model = classifier()
    return start_(model, IMAGES, GHN), model.fc.weight.tolist()


def mimetic(folder: Path) -> Any:
    with torch.device("cpu"):
        layer = nn.TransformerEncoderLayer(16, 2, 32)
    layer.load_state_dict(LAYER)
    ghn_fast.mimetic_(layer, generator=torch.Generator().manual_seed(0))
    return layer.self_attn.in_proj_weight.tolist()


CASES = (
    *(cifar10, folders, encoded, stream, taught, evaluated),
    *(calibrated, fitted, started, mimetic),
)


@pytest.mark.parametrize("run", CASES)
def test_default_device_makes_no_difference(run: Callable[[Path], Any], tmp_path: Path) -> None:
    expected = run(tmp_path)
    with torch.device("meta"):
        assert run(tmp_path) == expected
