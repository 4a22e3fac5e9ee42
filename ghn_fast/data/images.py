"""Labelled images in memory, and how batches of them are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn_fast._system.device import on_cpu, to_device
from ghn_fast._system.random import permutation, seed_of_32_bits
from ghn_fast.data.errors import DataError

CIFAR10_MEAN = (0.49139968, 0.48215827, 0.44653124)
CIFAR10_STD = (0.24703233, 0.24348505, 0.26158768)
"""Channel statistics that the published CIFAR-10 checkpoints were trained with."""


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Those of torchvision's models and of the published ImageNet checkpoints."""
LARGEST_SMALL_SIZE = 32
"""Networks of DeepNets-1M for larger images have the stems and strides of ImageNet's."""
VALIDATION_IMAGES = 5_000
"""Training images that are held out for every choice (arXiv 2110.13100, section 5)."""
HOLD_OUT_SEED = 0
PADDING = 4
"""Pixels added on each side before a random crop (arXiv 1512.03385, section 4.2)."""


@runtime_checkable
class ImageSource(Protocol):
    """Labelled images, in memory (:class:`Images`) or decoded when asked for.

    Attributes:
        labels: (N,) int64.
        num_classes: of the data set.
        is_large: whether they are for networks with the stems of ImageNet's.
        mean, std: of the channels, that normalise them.
    """

    @property
    def labels(self) -> Tensor: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def is_large(self) -> bool: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    def __len__(self) -> int: ...

    def first(self, count: int | None) -> ImageSource:
        """The first ``count`` images, all where it is None."""

    def select(self, indices: Tensor) -> ImageSource:
        """The images at these positions."""

    def batch(self, indices: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32, normalised."""

    def training_batch(
        self, indices: Tensor, generator: torch.Generator, crop: bool = True
    ) -> Tensor:
        """The same, half of them mirrored and, with ``crop``, cropped, as the generator decides."""


@dataclass(frozen=True, repr=False)
class Images:
    """Labelled images in memory.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        num_classes: of the data set.
        mean, std: of the channels, that normalise them.
        repeats_edges: see :func:`augment`.
    """

    images: Tensor
    labels: Tensor
    num_classes: int = 10
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    repeats_edges: bool = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), not {self.images.dtype} "
                f"{tuple(self.images.shape)}; those from 0 to 1, not normalised, are made so by "
                "images.mul(255).round().to(torch.uint8)"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{len(self.images)} images need labels of shape ({len(self.images)},), "
                f"not {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.images.shape[2:]
        mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (self.mean, self.std))
        return (
            f"Images({len(self):,} of {height} x {width}, {self.num_classes} classes, "
            f"mean {mean}, std {std})"
        )

    def select(self, indices: Tensor) -> Images:
        """The images at these positions."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def first(self, count: int | None) -> Images:
        """The first ``count`` images, all where it is None."""
        if count is None:
            return self
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def to(self, device: torch.device | str) -> Images:
        """The same on a device, where batches of them are made then."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @property
    def is_large(self) -> bool:
        return self.images.shape[-1] > LARGEST_SMALL_SIZE

    def batch(self, indices: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32, normalised."""
        return normalise(self.images[indices], self.mean, self.std)

    def training_batch(
        self, indices: Tensor, generator: torch.Generator, crop: bool = True
    ) -> Tensor:
        """The same, after :func:`augment`; without ``crop`` half of them are mirrored only."""
        padding = PADDING if crop else 0
        images = augment(self.images[indices], generator, padding, self.repeats_edges)
        return normalise(images, self.mean, self.std)


def normalise(
    images: Tensor,
    mean: tuple[float, ...] = CIFAR10_MEAN,
    std: tuple[float, ...] = CIFAR10_STD,
) -> Tensor:
    """Images (N, 3, H, W) to normalised float32, channels last in memory.

    Convolutions on a CPU are about twice as fast in this memory format.

    Raises:
        ValueError: images of another type. Those of floats from 0 to 1 would come out black.
    """
    if images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 from 0 to 255, not {images.dtype}; those from 0 to 1 are made "
            "so by images.mul(255).round().to(torch.uint8)"
        )
    return standardise(images, mean, std)


def standardise(
    pixels: Tensor,
    mean: tuple[float, ...] = CIFAR10_MEAN,
    std: tuple[float, ...] = CIFAR10_STD,
) -> Tensor:
    """:func:`normalise` for pixels of any type, from 0 to 255."""
    scale = torch.tensor(std, device=pixels.device).mul(255.0).reciprocal().view(1, -1, 1, 1)
    shift = torch.tensor(mean, device=pixels.device).view(1, -1, 1, 1) * 255.0
    return ((pixels.float() - shift) * scale).contiguous(memory_format=torch.channels_last)


def check_source(data: object) -> None:
    """That what was passed are pictures, and not a loader or a data set of PyTorch.

    Raises:
        TypeError: they are not.
        ValueError: there are none.
    """
    if not isinstance(data, ImageSource):
        raise TypeError(
            f"{type(data).__name__} is no source of labelled images: pass ghn_fast.data.Images("
            "pixels, labels, num_classes), with pixels (N, 3, H, W) in uint8, or what "
            "ghn_fast.data.load_images gives"
        )
    if len(data) == 0:
        raise ValueError("there are no images: at least one is needed")


def normalised_by(
    source: ImageSource, mean: tuple[float, ...], std: tuple[float, ...]
) -> ImageSource:
    """The same images, normalised by other means and deviations of the channels.

    Args:
        source: labelled images, as :func:`load_images` gives them.
        mean: of each channel, for values from 0 to 1.
        std: alike.

    Examples:
        >>> ghn = ghn_fast.from_pretrained()
        >>> like_the_ghns_own = ghn_fast.data.normalised_by(images, ghn.config.mean, ghn.config.std)
    """
    return replace(source, mean=mean, std=std)  # type: ignore[type-var]


def edges_repeated(source: ImageSource) -> ImageSource:
    """The same images, whose crops have no black borders; those of encoded ones never have any."""
    return replace(source, repeats_edges=True) if isinstance(source, Images) else source


@on_cpu()
def augment(
    images: Tensor,
    generator: torch.Generator,
    padding: int = PADDING,
    repeats_edges: bool = False,
) -> Tensor:
    """Random crops of the padded images, half of them mirrored, for the whole batch at once.

    Args:
        images: (N, 3, H, W) of any dtype.
        generator: decides everything, on the CPU, whatever device the images are on.
        padding: pixels on each side.
        repeats_edges: what is padded are the outermost pixels, and not zeros.
    """
    count, channels, height, width = images.shape
    top = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    straight = torch.arange(width)
    columns = left + torch.where(mirrored, straight.flip(0), straight)
    if repeats_edges:
        padded = images
        rows = (rows - padding).clamp(0, height - 1)
        columns = (columns - padding).clamp(0, width - 1)
    else:
        padded = F.pad(images, (padding,) * 4)
    positions = (
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    return padded[tuple(to_device(position, images.device) for position in positions)]


def held_out(count: int, split: str) -> Tensor:
    """Which of ``count`` training images are for ``"train"`` and which for ``"val"``.

    5,000, or a tenth where there are fewer than 50,000, but at least one, are held out, the same
    ones always.
    """
    number = min(VALIDATION_IMAGES, max(count // 10, 1))
    order = permutation(count, HOLD_OUT_SEED)
    chosen = order[-number:] if split == "val" else order[: count - number]
    return chosen.sort().values


class ImageStream:
    """Training batches without end: batch ``i`` is a pure function of ``(seed, i)``.

    Every epoch takes all images once in a new order (the last incomplete batch is left out).

    Args:
        data: what to draw from.
        batch_size: images in a batch, at most ``len(data)``.
        seed: of the order and of the augmentation.
    """

    def __init__(self, data: ImageSource, batch_size: int, seed: int) -> None:
        if len(data) == 0:
            raise DataError("there are no images to draw batches from")
        if not 1 <= batch_size <= len(data):
            raise DataError(f"batch_size must be from 1 to {len(data)}, not {batch_size}")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = len(data) // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64, device="cpu")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32, normalised and augmented, and labels (B,)."""
        return self.batch(index)

    def batch(
        self, index: int, crop: bool = True, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, or of the first ``count`` images only.

        Those have crops and mirrorings of their own, not those they have in the whole batch.
        Without ``crop`` the images are whole, as in evaluation, and mirrored only.
        """
        chosen = self.chosen(index, count)
        images = self.data.training_batch(chosen, self.generator(index), crop)
        return images, self.data.labels[chosen]

    def chosen(self, index: int, count: int | None = None) -> Tensor:
        """Positions (B,) of a batch's images, on the device of the labels."""
        epoch, batch = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._order = permutation(len(self.data), self._seed(0, epoch))
            self._epoch = epoch
        chosen = self._order[batch * self.batch_size : (batch + 1) * self.batch_size][:count]
        return to_device(chosen, self.data.labels.device)

    def generator(self, index: int) -> torch.Generator:
        """What decides a batch's augmentation."""
        return torch.Generator().manual_seed(self._seed(1, index))

    def _seed(self, purpose: int, index: int) -> int:
        """Generators of different purposes or indices must not share their streams."""
        seed = seed_of_32_bits(self.seed)
        return (seed * 0x9E3779B97F4A7C15 + 2 * index + purpose) % 2**32
