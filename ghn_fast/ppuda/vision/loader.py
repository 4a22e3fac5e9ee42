"""``ppuda.vision.loader``: CIFAR-10 and ImageNet as batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ghn_fast.data import DataError, Images, augment, load_cifar10
from ghn_fast.data.cifar10 import CLASSES, find_cifar10
from ghn_fast.data.images import IMAGENET_MEAN, IMAGENET_STD, standardise

__all__ = ["image_loader"]

_CIFAR10_NOISE = 0.08
_IMAGENET_NOISE = 0.18


def image_loader(
    dataset: str = "imagenet",
    data_dir: str | Path = "./data/",
    test: bool = True,
    im_size: int = 32,
    batch_size: int = 64,
    test_batch_size: int = 64,
    num_workers: int = 0,
    noise: bool = False,
    seed: int = 1111,
    load_train_anyway: bool = False,
    n_shots: int | None = None,
    verbose: bool = True,
) -> tuple[DataLoader[Any] | None, DataLoader[Any], int]:
    """Batches of normalised images and their labels.

    Args:
        dataset: "cifar10", or "imagenet" for its validation images only.
        data_dir: the folder of CIFAR-10, in one of the layouts that
            :func:`ghn_fast.data.load_cifar10` reads, or the one that has `imagenet/val` with a
            folder for each class. CIFAR-10 is also found where `load_cifar10` looks by itself, and
            downloaded to `data_dir` where it is not found at all.
        test: the test images; else 5,000 training images are held out for evaluation.
        im_size: of CIFAR-10; only 32.
        batch_size, test_batch_size: images in a batch of training and of evaluation.
        num_workers: processes that read ImageNet.
        noise: add Gaussian noise to the images of evaluation.
        seed: of the order of ImageNet's images; CIFAR-10 is in the order of its file.
        load_train_anyway: training images with `test=True` too.
        n_shots: the first so many training images of each class.
        verbose: print how many images there are.

    Returns:
        The training loader or None, the evaluation loader and the number of classes.

    Raises:
        DataError: no images are found; says where they were looked for.
        NotImplementedError: another data set, image size, or training images of ImageNet.
    """
    name = dataset.lower()
    if name == "imagenet":
        if not test or load_train_anyway:
            raise NotImplementedError("of ImageNet only the validation images can be loaded")
        evaluation = _imagenet(Path(data_dir), test_batch_size, num_workers, noise, seed)
        classes = len(evaluation.dataset.classes)  # type: ignore[attr-defined]
        _say(verbose, name, None, evaluation)
        return None, evaluation, classes
    if name != "cifar10" or im_size != 32:
        raise NotImplementedError(
            f"{dataset} at {im_size} x {im_size}: there are cifar10 at 32 x 32 and imagenet; for "
            "other images pass any DataLoader of (images, labels) to infer"
        )
    train = None
    if not test or load_train_anyway:
        # With the test images nothing is held out.
        images = _cifar10(data_dir, *(("train",) if not test else ("train", "val")))
        chosen = images if n_shots is None else _few(images, n_shots)
        train = _batches(_Cifar10(chosen, augmented=True), batch_size, shuffle=True)
    held_out = _cifar10(data_dir, "test" if test else "val")
    evaluation = _batches(_Cifar10(held_out, noise=noise), test_batch_size, shuffle=False)
    _say(verbose, name, train, evaluation)
    return train, evaluation, len(CLASSES)


class _Cifar10(Dataset[tuple[Tensor, Tensor]]):
    """Images that are prepared a batch at a time."""

    def __init__(self, images: Images, augmented: bool = False, noise: bool = False) -> None:
        self.images = images
        self.augmented = augmented
        self.noise = noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = self.images.select(torch.as_tensor(indices))
        pixels = chosen.images
        if self.augmented:
            pixels = augment(pixels, torch.default_generator)
        if self.noise:
            noisy = pixels / 255.0 + _CIFAR10_NOISE * torch.randn(pixels.shape)
            pixels = noisy.clamp(0.0, 1.0) * 255.0
        return standardise(pixels), chosen.labels


def _batches(images: _Cifar10, size: int, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(images, batch_size=size, shuffle=shuffle, collate_fn=_unchanged)


def _unchanged(batch: Any) -> Any:
    return batch


def _cifar10(data_dir: str | Path, *splits: str) -> Images:
    here = find_cifar10(data_dir) is not None
    elsewhere = not here and find_cifar10() is not None
    root = None if elsewhere else data_dir
    parts = [load_cifar10(root, split, download=not (here or elsewhere)) for split in splits]
    return Images(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )


def _few(images: Images, shots: int) -> Images:
    places = [(images.labels == label).nonzero().flatten()[:shots] for label in range(len(CLASSES))]
    return images.select(torch.cat(places).sort().values)


def _imagenet(
    data_dir: Path, batch_size: int, num_workers: int, noise: bool, seed: int
) -> DataLoader[Any]:
    from torchvision import datasets, transforms

    folder = data_dir / "imagenet" / "val"
    if not folder.is_dir():
        raise DataError(f"there is no {folder}; it must have a folder of images for each class")
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    if noise:
        steps.append(transforms.Lambda(_with_noise))
    steps.append(transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    # In the order of the folders each batch would be of one class, and so its statistics.
    return DataLoader(
        datasets.ImageFolder(str(folder), transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )


def _with_noise(image: Tensor) -> Tensor:
    return (image + _IMAGENET_NOISE * torch.randn(image.shape)).clamp(0.0, 1.0)


def _say(
    verbose: bool, name: str, train: DataLoader[Any] | None, evaluation: DataLoader[Any]
) -> None:
    if verbose:
        training = 0 if train is None else len(train.dataset)  # type: ignore[arg-type]
        images = len(evaluation.dataset)  # type: ignore[arg-type]
        print(f"{name}: {training} training images, {images} for evaluation")
