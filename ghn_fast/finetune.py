"""Training one network on labelled images, from whatever parameters it has."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast._system.batches import device_of, logits_of, run
from ghn_fast._system.device import bfloat16_where_faster, to_device
from ghn_fast._system.errors import FileError
from ghn_fast._system.restored import restored
from ghn_fast.checkpoint.training import fitted, load_optimizer, write_state
from ghn_fast.data import ImageSource, ImageStream
from ghn_fast.data.images import check_source, edges_repeated
from ghn_fast.evaluation import batches_in_order, calibrate, top1
from ghn_fast.graph import TraceError
from ghn_fast.head import soften_

WEIGHT_DECAY, GRAD_CLIP = 0.05, 5.0
RECIPE = f"AdamW, weight decay {WEIGHT_DECAY}, clipped at {GRAD_CLIP:g}, softened output layer"
"""In words; trainings with others do not compare."""
STATE_VERSION = 5


@dataclass(frozen=True)
class FinetuneConfig:
    """How :func:`finetune_` trains.

    Attributes:
        epochs: over the training images, in whole batches; what is left over of the images, in
            another order each time, has no step.
        lr: of AdamW with weight decay 0.05. It rises over the first epoch, while a cosine over all
            epochs brings it to 0: of 10 epochs the largest is 0.98 of it, of one 0.3.
        batch_size: images in a step, at most all there are.
        seed: of the order, the crops and the mirroring of the images.
        name: of the run, in words; another's state file is refused.
        measured: epochs after which accuracies are measured, beside the start and the last one;
            all where there are none.

    Examples:
        >>> config = ghn_fast.FinetuneConfig(epochs=10, lr=0.0003, measured=(1, 3))
        >>> [epoch for epoch in range(11) if config.measures(epoch)]
        [0, 1, 3, 10]
    """

    epochs: int = 10
    lr: float = 0.001
    batch_size: int = 64
    seed: int = 0
    name: str = ""
    measured: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not 0 < self.lr < math.inf:
            raise ValueError(
                f"epochs must not be negative, batch_size and lr be positive, not {self.epochs}, "
                f"{self.batch_size} and {self.lr}"
            )

    def measures(self, epoch: int) -> bool:
        """Whether accuracies are measured after an epoch."""
        return not self.measured or epoch in (0, *self.measured, self.epochs)


@dataclass
class History:
    """Accuracies after each epoch, from epoch 0, the start; NaN where they were not measured.

    Attributes:
        validation: top-1 in percent of the images that the best epoch is chosen by.
        test: of those that are only looked at.
        loss: the mean of each epoch's training losses, from epoch 1.
    """

    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The epoch of the best validation accuracy, the first of several."""
        measured = [n for n, value in enumerate(self.validation) if not math.isnan(value)]
        return max(measured, key=self.validation.__getitem__)


class StateError(FileError):
    """A state file is damaged, or of another training."""


class DivergedError(FloatingPointError):
    """A training whose numbers are no longer finite; ``history`` is what came before."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def finetune_(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource,
    test: ImageSource,
    config: FinetuneConfig | None = None,
    *,
    state_file: str | Path | None = None,
    on_step: Callable[[int, int], object] | None = None,
    on_epoch: Callable[[int, History], object] | None = None,
    on_resume: Callable[[int], object] | None = None,
) -> History:
    """Trains a classifier and leaves it as it was after the epoch that validates best, in place.

    Random crops, padded with the outermost pixels, and mirrored images, gradients clipped to a
    norm of 5. After each epoch batch norm gets the statistics of training images
    (:func:`ghn_fast.calibrate_`); epoch 0 is the model with those that it has, or with such if it
    was built without any. Layers are trained in bfloat16 where that is faster: on a GPU, and most
    of them on a CPU with AVX512-BF16.

    An output layer that was fitted to features that differ by little has large weights, and
    whatever changes in the features changes its outputs by as much: where they are larger than
    those of a fresh layer, they are scaled down to these before the first step, if the layer can be
    told and its classes stay (:func:`ghn_fast.head.soften_`).

    Args:
        model: on any device; in evaluation mode afterwards.
        train: labelled images to train with.
        validation: those that the best epoch is chosen by.
        test: those that decide nothing.
        config: see :class:`FinetuneConfig`.
        state_file: where to keep what is needed to go on after an interruption: with the same
            configuration and images the result is the same as without one. Where it cannot be
            written, as the disk is full, there is a warning, and the training goes on.
        on_step: called with the number of steps done and of all.
        on_epoch: called with the epoch and the history so far.
        on_resume: called with the last epoch of the state file, once that is found to fit.

    Raises:
        TypeError: a loader, or something else that is no source of images, is among these, or the
            model takes no images of float32.
        ValueError: one of them is empty, no parameter requires gradients, the model gives no logits
            of shape (B, C), or labels are none of its C classes; the model is as it was.
        StateError: the state file is of another configuration or model, or damaged; the model is
            as it was. It is a ValueError.
        DivergedError: losses or activations are no longer finite; the model has its best
            parameters.

    Examples:
        >>> model = ghn_fast.adjust_net(torchvision.models.resnet18(num_classes=10))
        >>> report = ghn_fast.start_(model, images)
        >>> config = ghn_fast.FinetuneConfig(epochs=1, batch_size=32)
        >>> history = ghn_fast.finetune_(model, images, images.first(8), images.first(8), config)
        >>> len(history.validation), len(history.loss), history.best in (0, 1)
        (2, 1, True)
    """
    for images in (train, validation, test):
        check_source(images)
    config = config or FinetuneConfig()
    _check_model(model, train, config)
    tuning = _Tuning(model, train, config, None if state_file is None else Path(state_file))
    history = tuning.history
    if history.validation and on_resume is not None:
        on_resume(len(history.loss))
    for epoch in range(len(history.validation), config.epochs + 1):
        if epoch > 0:
            history.loss.append(tuning.run_epoch(epoch, on_step))
        tuning.measure(epoch, validation, test)
        tuning.keep(epoch)
        if on_epoch is not None:
            on_epoch(epoch, history)
    tuning.take_best()
    return history


@torch.no_grad()
def _check_model(model: nn.Module, train: ImageSource, config: FinetuneConfig) -> None:
    if config.epochs and not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model requires gradients: there is nothing to train")
    with restored(model):
        some, _ = next(batches_in_order(train.first(2)))
        shape = tuple(logits_of(run(model.eval(), some)).shape)
    if len(shape) != 2 or shape[0] != len(some):
        raise ValueError(
            f"the model makes {shape} of {len(some)} images, where a classifier of C classes makes "
            f"({len(some)}, C)"
        )
    if (lowest := int(train.labels.min())) < 0:
        raise ValueError(f"labels count from 0, and there is {lowest} among them")
    outputs = shape[1]
    if (highest := int(train.labels.max())) >= outputs:
        raise ValueError(
            f"labels go up to {highest}, and the model has {outputs} outputs: build it with "
            f"num_classes={train.num_classes}"
        )


class _Tuning:
    """A model in training and what has to be kept of it."""

    def __init__(
        self, model: nn.Module, train: ImageSource, config: FinetuneConfig, path: Path | None
    ) -> None:
        self.model, self.config, self.path = model, config, path
        # An output layer that was fitted to whole images may make nothing of black borders.
        data = edges_repeated(train)
        self.stream = ImageStream(data, min(config.batch_size, len(train)), config.seed)
        self.steps = config.epochs * self.stream.batches_per_epoch
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        can_fuse = all(parameter.is_floating_point() for parameter in trained)
        self.optimizer = torch.optim.AdamW(
            trained, config.lr, weight_decay=WEIGHT_DECAY, fused=can_fuse or None
        )
        self.history = History()
        self.best: dict[str, Tensor] = {}
        if any(isinstance(m, _BatchNorm) and m.running_mean is None for m in model.modules()):
            calibrate(model, train)
        if path is not None and path.exists():
            self._load(path)

    def run_epoch(self, epoch: int, on_step: Callable[[int, int], object] | None) -> float:
        """One pass over the images; returns the mean loss."""
        if epoch == 1:
            self._soften()
        count = self.stream.batches_per_epoch
        losses = torch.zeros(count, device=device_of(self.model))
        self.model.train()
        for batch in range(count):
            step = (epoch - 1) * count + batch
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(step)
            losses[batch] = self._step(*self.stream[step])
            if on_step is not None:
                on_step(step + 1, self.steps)
        mean = float(losses.mean())
        if not math.isfinite(mean):
            raise self._diverged(epoch)
        return mean

    def _rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.stream.batches_per_epoch)
        return self.config.lr * rising * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _soften(self) -> None:
        # Of a classifier whose output layer cannot be told there is none to scale.
        with suppress(ValueError, TraceError):
            soften_(self.model, self._few().to(device_of(self.model)))

    def _few(self) -> Tensor:
        return next(batches_in_order(self.stream.data.first(2)))[0]

    def _diverged(self, epoch: int) -> DivergedError:
        self.take_best()
        return DivergedError(
            f"epoch {epoch} ends in numbers that are not finite; a smaller learning rate than "
            f"{self.config.lr:.2g} may help",
            self.history,
        )

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        device = device_of(self.model)
        with bfloat16_where_faster(device):
            logits = logits_of(run(self.model, images)).float()
        return F.cross_entropy(logits, to_device(labels, device).long())

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        return loss.detach()

    def measure(self, epoch: int, validation: ImageSource, test: ImageSource) -> None:
        """With the statistics of training images, at the start with those that the model has."""
        measures = self.config.measures(epoch)
        if epoch > 0:
            self._check_last_step(epoch, measures)
        for accuracies, data in ((self.history.validation, validation), (self.history.test, test)):
            accuracy = top1(self.model, data, batch_statistics=False) if measures else math.nan
            accuracies.append(accuracy)

    @torch.no_grad()
    def _check_last_step(self, epoch: int, measures: bool) -> None:
        """No loss has told of it; gives batch norm its statistics where accuracies are measured."""
        values = (value for value in self.model.parameters() if value.requires_grad)
        if not all(bool(value.isfinite().all()) for value in values):
            raise self._diverged(epoch)
        if not measures:
            return
        try:
            calibrate(self.model, self.stream.data)
        except ValueError as error:
            raise self._diverged(epoch) from error
        if not logits_of(run(self.model.eval(), self._few())).isfinite().all():
            raise self._diverged(epoch)

    def keep(self, epoch: int) -> None:
        state = _tensors(self.model)
        if self.history.best == epoch:
            self.best = {name: value.cpu().clone() for name, value in state.items()}
        if self.path is None:
            return
        content = {
            "version": STATE_VERSION,
            "config": asdict(self.config),
            "history": asdict(self.history),
            "model": state,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "random": _random_states(device_of(self.model)),
        }
        try:
            write_state(content, self.path)
        except OSError as error:  # a full disk need not end a training
            warnings.warn(f"epoch {epoch}: no state was written: {error}", stacklevel=3)

    def _load(self, path: Path) -> None:
        if path.is_dir():
            raise StateError(f"{path} is a folder, and state_file names a file")
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if content["version"] != STATE_VERSION:
                raise FileError("another version of ghn_fast wrote it")
            differences = _differences(content["config"], asdict(self.config))
            if not differences:
                self._go_on(content)
        except Exception as error:
            raise StateError(
                f"{path} is damaged, or of another model ({error}): remove it to start anew, or "
                "choose another place for this one"
            ) from None
        if differences:
            raise StateError(
                f"{path} is of a training with other settings ({differences}): use these, remove "
                "it to start anew, or choose another place for this one"
            )

    def _go_on(self, content: dict[str, Any]) -> None:
        history = _history(content["history"])
        device = device_of(self.model)
        likely = zip(content["random"], _random_states(device), strict=False)
        random = [fitted(value, like, "its random state") for value, like in likely]
        model = fitted(content["model"], _tensors(self.model), "its model")
        self.best = fitted(content["best"], content["model"], "its best model")
        load_optimizer(self.optimizer, content["optimizer"])
        _write(self.model, model)
        _set_random_states(random, device)
        self.history = history

    def take_best(self) -> None:
        _write(self.model, self.best)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Its state dict without what modules keep beside tensors (``get_extra_state``)."""
    state = model.state_dict().items()
    return {name: value for name, value in state if isinstance(value, Tensor)}


@torch.no_grad()
def _write(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """What a state dict had, into a model of the same kind.

    load_state_dict would want the versions that a state dict carries beside its tensors.
    """
    for name, tensor in _tensors(model).items():
        tensor.copy_(state[name])


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Settings that changed; of a name in several parts those that did."""
    return ", ".join(
        f"{name}: {_apart(then[name], value)} -> {_apart(value, then[name])}"
        for name, value in now.items()
        if then[name] != value
    )


def _apart(value: Any, other: Any) -> str:
    parts, others = str(value).split(", "), str(other).split(", ")
    return ", ".join(part for part in parts if part not in others) or str(value)


def _history(values: Any) -> History:
    """What was kept of one after an epoch."""
    history = History(**values)
    lists = (history.validation, history.test, history.loss)
    lengths = [len(numbers) for numbers in lists if type(numbers) is list]
    epochs = len(history.loss)
    numbers = itertools.chain(*lists)
    if lengths != [epochs + 1, epochs + 1, epochs] or any(type(n) is not float for n in numbers):
        raise FileError("its history is none")
    return history


def _random_states(device: torch.device) -> list[Tensor]:
    """Of what dropout draws from: the CPU's, and the GPU's where that is one."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def _set_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
