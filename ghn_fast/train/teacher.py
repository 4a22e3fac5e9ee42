"""A trained classifier to learn from: what it says of the training images, beside their labels."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast._system.batches import logits_of, run
from ghn_fast._system.device import to_device
from ghn_fast._system.digests import state_digest, tensor_digest
from ghn_fast._system.files import replace
from ghn_fast._system.processes import ALONE, Processes
from ghn_fast._system.restored import restored
from ghn_fast.data import ImageSource, ImageStream, normalised_by
from ghn_fast.evaluation.results import images_digest
from ghn_fast.train.config import ConfigError

BATCH_SIZE = 256
MIRRORED = 1
"""Place of an image's mirrored logits in (N, 2, C), after those of it as it is."""


@dataclass(frozen=True)
class Teacher:
    """A trained classifier of the classes that a GHN is trained for.

    Attributes:
        model: gives logits (B, C), or an output whose first tensor they are.
        mean, std: of the channels, by which the images that it takes are normalised; None for
            images as the networks in training get them.

    Examples:
        >>> teacher = ghn_fast.train.Teacher(torchvision.models.resnet18(num_classes=10))
        >>> teacher.mean is None
        True
    """

    model: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def digest(self) -> str:
        """Of its parameters and statistics and of what it takes."""
        text = f"{state_digest(self.model)} {self.mean} {self.std}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check(self, images: ImageSource) -> None:
        """Raises a ConfigError unless it gives logits of the images' classes."""
        try:
            with restored(self.model):
                first = self._taken(images).batch(torch.arange(1, device="cpu"))
                shape = tuple(self._of(first).shape)
        except Exception as error:
            raise ConfigError(f"the teacher cannot take the training images: {error}") from error
        if shape != (1, images.num_classes):
            raise ConfigError(
                f"the teacher gives {' x '.join(map(str, shape[1:]))} numbers of an image, but the "
                f"images have {images.num_classes} classes"
            )

    def logits(self, images: ImageSource) -> Tensor:
        """Of all images (N, 2, C) float16, on the CPU: as they are, and mirrored.

        Raises:
            ConfigError: some are not finite, or too large for half precision.
        """
        taken = self._taken(images)
        parts = []
        with restored(self.model):
            for chosen in torch.arange(len(images), device="cpu").split(BATCH_SIZE):
                pixels = taken.batch(to_device(chosen, images.labels.device))
                parts.append(torch.stack([self._of(pixels), self._of(pixels.flip(-1))], dim=1))
        logits = torch.cat(parts)
        if not logits.isfinite().all():
            raise ConfigError("the teacher's logits are not finite in half precision")
        return logits

    def _taken(self, images: ImageSource) -> ImageSource:
        if self.mean is None or self.std is None:
            return images
        return normalised_by(images, self.mean, self.std)

    @torch.no_grad()
    def _of(self, pixels: Tensor) -> Tensor:
        return logits_of(run(self.model.eval(), pixels)).half().cpu()


def kept_logits(
    teacher: Teacher, images: ImageSource, path: Path, processes: Processes = ALONE
) -> Tensor:
    """The teacher's logits, from a file where it has those of this teacher and these images.

    Otherwise the first process computes and writes them, and the others read what it wrote.
    """
    if not processes.is_first:
        processes.gather(None)
        return _logits(teacher, images, path, is_kept=False)
    try:
        return _logits(teacher, images, path, is_kept=True)
    finally:
        processes.gather(None)  # whatever became of it, the others wait


def _logits(teacher: Teacher, images: ImageSource, path: Path, is_kept: bool) -> Tensor:
    of = f"{teacher.digest()} {images_digest(images)}"
    logits = _read(path, of)
    if logits is None:
        logits = teacher.logits(images)
        if is_kept:
            _write_if_possible(path, logits, of)
    return logits


def _read(path: Path, of: str) -> Tensor | None:
    """None where there are none, damaged ones, or those of something else."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["of"] != of:
                return None
            logits: Tensor = file.get_tensor("logits")
    except Exception:
        return None
    return logits if metadata["sha256"] == tensor_digest(logits) else None


def _write_if_possible(path: Path, logits: Tensor, of: str) -> None:
    """A full disk need not end a run, which can compute them again."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"of": of, "sha256": tensor_digest(logits)}
    try:
        replace(path, lambda aside: save_file({"logits": logits}, aside, metadata))
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the teacher's logits are not kept in {path}: {error}", stacklevel=2)


def mixed_targets(logits: Tensor, labels: Tensor, share: float, temperature: float) -> Tensor:
    """(B, C) float32: the labels' classes, and as the ``share`` of it what the teacher says.

    What it says is softmax(logits / temperature), the soft targets of Hinton et al. (arXiv
    1503.02531, equation 1). The cross-entropy with the mixture is that of both objectives of their
    section 2, but that the networks in training have a temperature of 1.

    Args:
        logits: (B, C) of any dtype.
        labels: (B,) int64.
        share: from 0, the labels alone, to 1, the teacher alone.
        temperature: the higher, the softer.

    Examples:
        >>> from ghn_fast.train.teacher import mixed_targets
        >>> mixed_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), 0.5, 2.0)
        tensor([[0.2500, 0.7500]])
    """
    said = (logits.float() / temperature).softmax(1)
    return torch.lerp(F.one_hot(labels, logits.shape[1]).to(said), said, share)


class TaughtStream:
    """The batches of an :class:`ImageStream`, whole images half of them mirrored, with targets.

    As of the stream, batch ``i`` is a pure function of ``i``; which images are mirrored is decided
    here, as the teacher's logits of mirrored images are others.

    Args:
        stream: whose images are taken.
        logits: (N, 2, C) of its images, as :meth:`Teacher.logits` gives them.
        share, temperature: of :func:`mixed_targets`.
    """

    def __init__(
        self, stream: ImageStream, logits: Tensor, share: float, temperature: float
    ) -> None:
        self.stream = stream
        self.logits = to_device(logits, stream.data.labels.device)
        self.share, self.temperature = share, temperature

    def batch(
        self, index: int, crop: bool = False, count: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W), labels (B,) and targets (B, C), float32.

        Raises:
            ValueError: ``crop``; there are logits of whole images only.
        """
        if crop:
            raise ValueError("a teacher's logits are those of whole images: crop=False")
        chosen = self.stream.chosen(index, count)
        images, labels = self.stream.data.batch(chosen), self.stream.data.labels[chosen]
        generator = self.stream.generator(index)
        draws = torch.rand(len(chosen), generator=generator, device="cpu")
        mirrored = to_device(draws < 0.5, chosen.device)
        images[mirrored] = images[mirrored].flip(-1)
        said = self.logits[chosen, mirrored.long() * MIRRORED]
        return images, labels, mixed_targets(said, labels, self.share, self.temperature)
