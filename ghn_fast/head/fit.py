"""Runs the pictures, solves, and writes what was solved to the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast._system.batches import rows_of
from ghn_fast._system.restored import restored
from ghn_fast.head.layers import Head, output_layers
from ghn_fast.head.ridge import Choice, Features, HeldOut, Moments, fit_ridge

HELD_OUT = 0.2
"""Share of the pictures by which the ridge and the scale are chosen."""


@dataclass(frozen=True)
class HeadReport:
    """What :func:`fit_head_` did.

    Attributes:
        layer: the output layer's name.
        classes, features: its outputs and inputs.
        pictures: how many it was fitted to; ``held_out`` of them were left out of the fit that
            chose ``ridge`` and ``scale`` and that the figures below are of, and are in the final.
        ridge: of the final fit, as ``alpha`` of scikit-learn's ``Ridge``.
        scale: by which its weight and bias were multiplied, so that a softmax is calibrated.
        accuracy: top-1 on the held-out pictures, percent; NaN without any.
        chance: what always naming their commonest class has right, percent.
        balanced_accuracy: the mean of the classes' accuracies, percent.
        loss: cross-entropy of the held-out pictures, all classes weighing alike unless asked.
        absent: classes that the pictures do not have; their logits are 10 below the others' mean
            (without a bias those of a mean picture), so that they are not predicted.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> report = ghn_fast.fit_head_(model, loader)
        >>> report.layer, report.classes, report.features
        ('fc', 10, 512)
    """

    layer: str
    classes: int
    features: int
    pictures: int
    held_out: int
    ridge: float
    scale: float
    accuracy: float = float("nan")
    chance: float = float("nan")
    balanced_accuracy: float = float("nan")
    loss: float = float("nan")
    absent: tuple[int, ...] = ()

    def __str__(self) -> str:
        fitted = (
            f"{self.layer or 'the layer'} ({self.features} features, {self.classes} classes) "
            f"fitted to {self.pictures:,} pictures"
        )
        if not self.held_out:
            return fitted
        return (
            f"{fitted}: {self.accuracy:.1f} % of {self.held_out:,} held-out ones "
            f"(chance is {self.chance:.1f} %)"
        )


@torch.no_grad()
def fit_head_(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    ridge: float | None = None,
    held_out: float = HELD_OUT,
    balance: bool = True,
    layer: str | None = None,
) -> HeadReport:
    """Fits a classifier's output layer to pictures and labels in one pass, in place.

    The layer's weight W and bias b minimise ``|F W + b - Y|^2 + ridge |W|^2``, with the features F
    that the layer is fed in evaluation mode and one-hot labels Y. Only sums over the pictures are
    kept, in float64, and a bounded number of held-out ones: memory does not grow with theirs. Both
    are then multiplied by the number that gives the softmax of held-out pictures the smallest
    cross-entropy (Guo et al., arXiv 1706.04599).

    The rest of the model is untouched. Give a model with batch norm its statistics before
    (:func:`ghn_fast.calibrate_`): features of a network that was only predicted are far off.

    Args:
        model: a classifier that ends in a linear layer or a 1x1 convolution, of any number of
            outputs.
        loader: of (inputs, labels) with labels (B,) from 0; or of dictionaries of the model's
            arguments with ``labels`` (or ``label``, ``targets``, ``target``, ``y``), whose one
            tensor beside them may have any name.
        ridge: as ``alpha`` of scikit-learn's ``Ridge``; by default the best for held-out pictures.
        held_out: share of each class that the choice is made by; the fit that is kept is to all.
            0 needs ``ridge``.
        balance: every class weighs alike, however many pictures it has: the means of all classes
            count the same, and the scatter within classes is pooled. With as many pictures of
            each class this is plain ridge regression, which ``balance=False`` always is.
        layer: name of the output layer; by default the one that nothing with parameters follows
            in the model's graph (:func:`output_layers`). Of several whose mean the model returns,
            as it does where one is for distillation, the first is fitted, and the others become
            zero.

    Returns:
        A :class:`HeadReport`.

    Raises:
        ValueError: no single output layer, or one whose weight is computed from others; labels
            that are not its classes; features that are not finite; too few pictures; a ridge that
            is too small for them. The model is as it was then.
        TypeError: a data set instead of a loader of batches, or batches of other than tensors,
            of a dtype that the model does not compute with, or with names that it does not take.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> model = ghn_fast.calibrate_(model, loader)
        >>> print(ghn_fast.fit_head_(model, loader))
        fc (512 features, 10 classes) fitted to 64 pictures: ...
    """
    if not 0 <= held_out < 1 or (ridge is not None and not 0 <= ridge < math.inf):
        raise ValueError("held_out must be from 0 to below 1, and ridge finite and not negative")
    if held_out == 0 and ridge is None:
        raise ValueError("held_out=0 leaves nothing to choose the ridge by: pass ridge= too")
    with restored(model):
        model.eval()
        head, features, inputs = _collect(model, loader, held_out, layer)
        has_bias = head.module.bias is not None
        weight, bias, choice = fit_ridge(features, ridge, balance, has_bias)
        kept = [value.clone() for value in head.values()]
        try:
            head.write(weight, bias)
            head.make_up(model, inputs)
            _check(model, head, inputs)
        except BaseException:
            head.restore(kept)
            raise
    return _report(head, features, choice)


def chance(labels: Tensor) -> float:
    """What always naming the commonest class has right, percent; NaN without labels (B,)."""
    return 100 * float(labels.bincount().max()) / len(labels) if len(labels) else math.nan


def _collect(
    model: nn.Module, loader: Iterable[Any], share: float, layer: str | None
) -> tuple[Head, Features, Any]:
    """Runs all pictures once; also gives the last batch's inputs."""
    head = moments = held = inputs = None
    for inputs, labels in rows_of(loader, model):
        if head is None:
            names = [layer] if layer is not None else output_layers(model, _few(inputs))
            head = Head(model, *names)
        head.run(model, inputs)
        features = head.features
        if moments is None or held is None:
            moments = Moments.zeros(head.classes, head.width, features.device)
            held = HeldOut(head.classes, head.width, share, moments.sums.device)
        features = features.to(moments.sums.device)
        labels = _checked(labels, features, head)
        moments.add(features, labels)
        held.add(features, labels)
    assert head is not None
    assert moments is not None
    assert held is not None
    present = moments.counts.nonzero().flatten().tolist()
    if len(present) == 1 < head.classes:
        raise ValueError(
            f"all pictures are of class {present[0]}, and nothing tells it from others: give "
            "pictures of two or more classes"
        )
    return head, Features(moments, held.taken()), inputs


def _few(inputs: Any) -> Any:
    """Two of a batch: tracing needs no more."""
    if isinstance(inputs, Mapping):
        return {key: v[:2] if isinstance(v, Tensor) else v for key, v in inputs.items()}
    return inputs[:2]


def _checked(labels: Tensor | None, features: Tensor, head: Head) -> Tensor:
    if labels is None:
        raise ValueError("the loader gives no labels: it has to give (inputs, labels)")
    labels = torch.as_tensor(labels, device=features.device)
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be whole numbers of shape ({len(features)},), one for each input, not "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(
            f"labels go from {low} to {high}, and the first class is 0: leave pictures out whose "
            "label says to ignore them, as -1 may"
        )
    if high >= head.classes:
        # Which of the two it is a batch need not show: it may have none of the first class.
        counted = "subtract 1 from labels that are counted from 1, or "
        raise ValueError(
            f"labels go from {low} to {high}, and the output layer {head.name!r} has "
            f"{head.classes} classes, the first of which is 0: "
            f"{counted if low > 0 and high == head.classes else ''}build the model with "
            f"num_classes={high + 1} or more"
        )
    if not features.isfinite().all():
        raise ValueError(
            f"what the output layer {head.name!r} is fed is not finite: the inputs or the "
            "parameters before it are not finite, or batch norm has no statistics of them yet "
            "(ghn_fast.calibrate_(model, loader))"
        )
    return labels.long()


def _report(head: Head, features: Features, choice: Choice) -> HeadReport:
    moments, (_, held_out) = features.moments, features.held
    return HeadReport(
        layer=head.name,
        classes=head.classes,
        features=head.width,
        pictures=moments.pictures,
        held_out=len(held_out),
        chance=chance(held_out),
        absent=tuple((moments.counts == 0).nonzero().flatten().tolist()),
        **asdict(choice),
    )


def _check(model: nn.Module, head: Head, inputs: Any) -> None:
    """That the model's classes are those of its output layer, whatever comes after it.

    SqueezeNet cuts off what is below 0 at every position and averages then. One number more for
    all classes changes no softmax, and keeps the cut from taking anything.
    """
    if _agrees(model, head, inputs):
        return
    if isinstance(head.module, nn.Conv2d) and head.module.bias is not None:
        head.module.bias.sub_(2 * head.logits.min().clamp(max=0))
        if _agrees(model, head, inputs):
            return
    raise ValueError(
        f"what the model does after its layer {head.name!r} changes which class is largest: a "
        "closed form for that layer does not fit; pass layer=, or train it. The model's classes "
        "are taken to be its first output, or the one that is called logits"
    )


def _agrees(model: nn.Module, head: Head, inputs: Any) -> bool:
    logits = head.run(model, inputs)
    own = head.logits.flatten(2).mean(2) if head.logits.dim() == 4 else head.logits
    if logits.shape != own.reshape(len(own), -1).shape:
        return False
    return float((logits.argmax(1) == own.reshape(len(own), -1).argmax(1)).float().mean()) > 0.98
