"""What a trained classifier says of the training images, as targets beside their labels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.data import ImageStream, normalised_by
from ghn_fast.graph import GraphBatch
from ghn_fast.train import ConfigError, NetworkStream, Processes, Teacher, Trainer, train_step
from ghn_fast.train.teacher import TaughtStream, kept_logits, mixed_targets
from tests.train.test_step import make_ghn, sgd
from tests.train.test_trainer import (
    TINY,
    assert_same_run,
    fit_until,
    make_images,
    make_teacher,
    make_trainer,
)

TAUGHT = replace(TINY, steps=2, crop_share=0.0, teacher="a file")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_with_the_mixture(
    smoothing: float, generator: torch.Generator
) -> None:
    images = torch.randn(8, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (8,), generator=generator)
    said = 5 * torch.randn(8, 10, generator=generator)
    (network,) = NetworkStream(replace(TINY, meta_batch=1), 10).draw(0)[0]
    seen: list[Tensor] = []
    hook = network.model.register_forward_hook(lambda m, a, logits: seen.append(logits.detach()))
    ghn, graphs = make_ghn(), GraphBatch([network.graph])
    targets = mixed_targets(said, labels, share=0.7, temperature=3.0)
    result = train_step(
        ghn,
        [network.model],
        graphs,
        images,
        labels,
        sgd(ghn),
        targets=targets,
        label_smoothing=smoothing,
    )
    hook.remove()
    by_hand = 0.0
    for logits, label, row in zip(seen[0].double(), labels, said.double(), strict=True):
        soft = (row / 3).exp() / (row / 3).exp().sum()
        wanted = 0.7 * soft
        wanted[label] += 0.3
        wanted = (1 - smoothing) * wanted + smoothing / 10
        by_hand -= float((wanted * (logits - logits.logsumexp(0))).sum()) / 8
    assert result.loss == pytest.approx(by_hand, rel=1e-5)
    assert result.top1 == (seen[0].argmax(1) == labels).double().mean().item()


def test_a_share_of_nothing_is_the_labels(generator: torch.Generator) -> None:
    said, labels = torch.randn(4, 10, generator=generator), torch.tensor([3, 1, 4, 1])
    assert torch.equal(mixed_targets(said, labels, 0.0, 2.0), F.one_hot(labels, 10).float())
    torch.testing.assert_close(mixed_targets(said, labels, 1.0, 1.0), said.softmax(1))


def test_targets_are_those_of_the_images_that_come_with_them() -> None:
    """Whichever order the stream has, and mirrored or not."""
    images, mean = make_images(), (0.3, 0.2, 0.1)
    teacher = Teacher(make_teacher().model, mean, mean)
    stream = ImageStream(images, 16, seed=4)
    taught = TaughtStream(stream, teacher.logits(images), share=1.0, temperature=1.0)
    as_taught = normalised_by(images, mean, mean).batch(torch.arange(len(images)))
    originals, mirrored = images.batch(torch.arange(len(images))), 0
    for index in range(8):  # two epochs
        pixels, labels, targets = taught.batch(index, crop=False, count=12)
        for image, label, target in zip(pixels, labels, targets, strict=True):
            distances = [
                (side - image).flatten(1).norm(dim=1) for side in (originals, originals.flip(-1))
            ]
            is_mirrored = bool(distances[1].min() < distances[0].min())
            place = int(distances[is_mirrored].argmin())
            seen = as_taught[place : place + 1]
            with torch.no_grad():
                said = teacher.model(seen.flip(-1) if is_mirrored else seen).softmax(1)[0]
            torch.testing.assert_close(target, said, rtol=5e-3, atol=1e-4)
            assert label == images.labels[place]
            mirrored += is_mirrored
    assert 30 < mirrored < 66  # of 96


@pytest.mark.parametrize("own_images", [False, True])
def test_a_step_has_targets_for_each_network(tmp_path: Path, own_images: bool) -> None:
    trainer = make_trainer(tmp_path, replace(TAUGHT, own_images=own_images, teacher_share=1.0))
    assert trainer.teacher is not None
    trainer.taught = trainer._teach(trainer.teacher)
    batch = trainer._prepare(0, position=0).batch
    with torch.no_grad():
        said = trainer.teacher.model(batch.images)
    assert len(batch.targets) == (16 if own_images else 8)
    wanted = (said / TAUGHT.teacher_temperature).softmax(1)
    torch.testing.assert_close(batch.targets, wanted, rtol=5e-3, atol=1e-4)


def test_stopped_and_resumed_it_is_the_same(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(whole, TAUGHT).fit()
    fit_until(make_trainer(parts, TAUGHT), 1)
    make_trainer(parts, replace(TAUGHT, teacher="moved")).fit()
    assert_same_run(whole, parts)
    with pytest.raises(ConfigError, match="its teacher is another one"):
        Trainer(TAUGHT, parts, make_images(), teacher=make_teacher(seed=9))


class Counting(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        logits: Tensor = self.model(images)
        return logits


def test_logits_are_computed_once_for_a_teacher_and_images(tmp_path: Path) -> None:
    path, images = tmp_path / "logits", make_images()

    def computed(teacher: Teacher, of: Any = images) -> tuple[Tensor, int]:
        counting = Counting(teacher.model)
        return kept_logits(replace(teacher, model=counting), of, path), counting.images

    first, count = computed(make_teacher())
    assert (first.shape, first.dtype, count) == ((64, 2, 10), torch.float16, 128)
    again, count = computed(make_teacher())
    assert torch.equal(first, again)
    assert count == 0
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again, count = computed(make_teacher())
    assert torch.equal(first, again)
    assert count == 128
    assert computed(make_teacher(seed=8))[1] == 128
    assert computed(make_teacher(), images.select(torch.arange(64).flip(0)))[1] == 128


def test_a_full_disk_does_not_end_a_run(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    images, teacher, path = make_images(), make_teacher(), tmp_path / "logits"
    with full_disk(1000), pytest.warns(UserWarning, match=f"not kept in {path}: .*too large"):
        logits = kept_logits(teacher, images, path)
    assert torch.equal(logits, teacher.logits(images))
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Counted(Processes):
    """Two processes of which only this one is there."""

    gathered: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.gathered.append(value)
        return [value, value]


def test_the_others_do_not_wait_for_a_process_that_failed(tmp_path: Path) -> None:
    first = Counted(0, 2)
    with pytest.raises(ConfigError, match="not finite in half precision"):
        kept_logits(_too_large(), make_images(), tmp_path / "logits", first)
    assert len(first.gathered) == 1


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    images = make_images()
    with pytest.raises(
        ConfigError, match=r"the teacher gives 7 numbers of an image, but .* have 10"
    ):
        Trainer(TAUGHT, tmp_path, images, teacher=make_teacher(7))
    with pytest.raises(ConfigError, match=r"of whole images: set crop_share=0, not 0\.5"):
        Trainer(TINY, tmp_path, images, teacher=make_teacher())
    with pytest.raises(ConfigError, match="set crop_share=0"):
        replace(TAUGHT, crop_share=1.0)
    with pytest.raises(ConfigError, match="give the trainer the teacher a file"):
        Trainer(TAUGHT, tmp_path, images)
    with pytest.raises(ConfigError, match="the teacher cannot take the training images"):
        Trainer(TAUGHT, tmp_path, images, teacher=Teacher(nn.Linear(5, 10)))


def _too_large() -> Teacher:
    teacher = make_teacher()
    assert isinstance(teacher.model.fc, nn.Linear)
    with torch.no_grad():
        teacher.model.fc.weight.mul_(1e6)
    return teacher


def test_logits_that_half_precision_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="not finite in half precision"):
        _too_large().logits(make_images())
