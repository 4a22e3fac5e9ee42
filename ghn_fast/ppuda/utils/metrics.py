"""How well networks classify."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class CrossEntropyLabelSmooth(nn.CrossEntropyLoss):
    """Cross-entropy with smoothed labels; all classes share `epsilon`."""

    def __init__(self, num_classes: int, epsilon: float) -> None:
        super().__init__(label_smoothing=epsilon)
        self.num_classes = num_classes
        self.epsilon = epsilon


class AvgrageMeter:
    """A running average, and its dispersion if it is asked for. The name is the published one.

    Args:
        dispersion_measure: "std", the standard deviation; "se", the standard error; None.

    Attributes:
        avg, sum, cnt: the average, sum and number of values.
        dispersion: as asked for.
    """

    def __init__(self, dispersion_measure: str | None = None) -> None:
        if dispersion_measure not in (None, "std", "se"):
            raise ValueError(f"dispersion_measure is None, 'std' or 'se', not {dispersion_measure}")
        self.dispersion_measure = dispersion_measure
        self.reset()

    def reset(self) -> None:
        self.avg: float = 0.0
        self.sum: float = 0.0
        self.cnt = 0
        self.dispersion: float = 0.0
        self._squares = 0.0

    def update(self, val: float, n: int = 1) -> None:
        """Counts `n` values of which `val` is the mean."""
        self.sum += val * n
        self._squares += val * val * n
        self.cnt += n
        self.avg = self.sum / self.cnt
        if self.dispersion_measure is not None:
            deviation = float(np.sqrt(max(self._squares / self.cnt - self.avg**2, 0.0)))
            share = 1.0 if self.dispersion_measure == "std" else 1 / float(np.sqrt(self.cnt))
            self.dispersion = deviation * share


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """The percentage of rows whose target is among the k largest outputs, for each k."""
    order = output.topk(max(topk), dim=1).indices
    hits = order == target.view(-1, 1)
    return [hits[:, :k].any(dim=1).float().mean() * 100 for k in topk]


@torch.no_grad()
def infer(
    model: nn.Module, val_queue: Iterable[Any], verbose: bool = False, n_batches: int = -1
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent.

    Args:
        model: is used in the mode it is in.
        val_queue: pairs of images and labels.
        verbose: print the result.
        n_batches: stop after so many; -1 for all.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    top1, top5 = AvgrageMeter(), AvgrageMeter()
    for batch, (images, targets) in enumerate(val_queue):
        if batch == n_batches:
            break
        output = model(images.to(device, non_blocking=True))
        logits = output[0] if isinstance(output, tuple) else output
        best = accuracy(logits, targets.to(device), topk=(1, min(5, logits.shape[1])))
        top1.update(best[0].item(), len(images))
        top5.update(best[1].item(), len(images))
    if verbose:
        seconds = time.perf_counter() - start
        print(f"top1={top1.avg:.2f} top5={top5.avg:.2f}, {top1.cnt} images in {seconds:.2f} s")
    return top1.avg, top5.avg
