"""One step of training: a GHN over several networks, or a network alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.ppuda.utils.metrics import AvgrageMeter, CrossEntropyLabelSmooth, accuracy


class Trainer:
    """Updates what the optimiser has, and averages loss and accuracy since `reset`.

    Args:
        optimizer: of the GHN's parameters, or of the network's.
        num_classes: of the labels.
        is_imagenet: smooth the labels by 0.1.
        n_batches: in an epoch, for what `log` prints.
        grad_clip: the largest norm of the gradient.
        auxiliary, auxiliary_weight: add the loss of the networks' second output, so weighted.
        device: where images and graphs go. A list of devices is refused.
        log_interval: `log` prints each time so many steps are done.
        amp: run the networks in half precision on a CUDA device.

    Attributes:
        metrics: the averages "loss", "top1" and "top5".

    Raises:
        NotImplementedError: several devices.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        num_classes: int,
        is_imagenet: bool,
        n_batches: int,
        grad_clip: float = 5,
        auxiliary: bool = False,
        auxiliary_weight: float = 0.4,
        device: Any = "cuda",
        log_interval: int = 100,
        amp: bool = False,
    ) -> None:
        if isinstance(device, list | tuple):
            raise NotImplementedError(f"training on several devices is not offered: {device}")
        self.optimizer = optimizer
        smooth = CrossEntropyLabelSmooth(num_classes, 0.1)
        self.criterion: nn.Module = smooth if is_imagenet else nn.CrossEntropyLoss()
        self.n_batches = n_batches
        self.grad_clip = grad_clip
        self.auxiliary_weight = auxiliary_weight if auxiliary else 0.0
        self.device = torch.device(device)
        self.log_interval = log_interval
        self.amp = amp
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp)
        self.reset()

    def reset(self) -> None:
        self.start = time.perf_counter()
        self.step = 0
        self.metrics = {name: AvgrageMeter() for name in ("loss", "top1", "top5")}

    def update(
        self,
        models: nn.Module | Sequence[nn.Module],
        images: Tensor,
        targets: Tensor,
        ghn: nn.Module | None = None,
        graphs: Any = None,
    ) -> Tensor:
        """One step on a batch of images.

        Args:
            models: networks whose parameters the GHN predicts, or the network that is trained.
            images: (B, 3, H, W).
            targets: (B,) int64.
            ghn: in training mode; None to train the network itself.
            graphs: a `GraphBatch` of the networks.

        Returns:
            The mean loss over the networks.

        Raises:
            RuntimeError: the loss is not a number.
        """
        self.optimizer.zero_grad()
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, enabled=self.amp):
            if ghn is not None:
                models = ghn(models, None if graphs is None else graphs.to_device(self.device))
            networks = [models] if isinstance(models, nn.Module) else list(models)
            results = [self._loss(network, images, targets) for network in networks]
            loss = torch.stack([loss for loss, _ in results]).mean()
        if torch.isnan(loss):
            raise RuntimeError(
                "the loss is not a number; go on from the last checkpoint, perhaps with a lower "
                "learning rate"
            )
        self._descend(loss)
        self._count(loss, torch.cat([logits for _, logits in results]), targets, len(networks))
        return loss

    def _loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        output = network(images)
        logits = output[0] if isinstance(output, tuple) else output
        loss = self.criterion(logits, targets)
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * self.criterion(output[1], targets)
        return loss, logits.detach()

    def _descend(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _count(self, loss: Tensor, logits: Tensor, targets: Tensor, networks: int) -> None:
        best = accuracy(logits, targets.repeat(networks), topk=(1, min(5, logits.shape[1])))
        for name, value in zip(self.metrics, (loss.detach(), *best), strict=True):
            self.metrics[name].update(value.item(), len(logits))
        self.step += 1

    def log(self, step: int | None = None) -> None:
        """Prints the averages and the speed at every `log_interval`-th step and the last."""
        step = self.step if step is None else step
        if step % self.log_interval and step < self.n_batches - 1:
            return
        speed = (time.perf_counter() - self.start) / max(step, 1)
        values = " ".join(f"{name}={meter.avg:.2f}" for name, meter in self.metrics.items())
        left = speed * (self.n_batches - step) / 60
        print(
            f"batch {step} of {self.n_batches}: {values}, {speed:.2f} s each, {left:.1f} min left",
            flush=True,
        )
