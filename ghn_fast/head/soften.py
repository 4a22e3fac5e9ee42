"""Makes an output layer less sure before a training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast._system.restored import restored
from ghn_fast.head.layers import Head, output_layers

_EXACT = 0.02
"""Of the largest logit: what bfloat16 leaves of a factor."""


@torch.no_grad()
def soften_(model: nn.Module, inputs: Any) -> float:
    """Scales an output layer down to weights as large as those of a fresh one, in place.

    Features of an untrained network tell pictures apart by little, and an output layer in closed
    form (:func:`fit_head_`) makes up for it with weights many times as large as PyTorch
    initialises them: whatever a step of training changes in the features changes the logits as many
    times as much. Weight and bias are multiplied by the same number, which changes no class that
    the model tells, only how sure it is.

    PyTorch draws the weights of C outputs and D features evenly from within 1 / sqrt(D) of 0: their
    norm is sqrt(C / 3), whatever D.

    Args:
        model: a classifier that ends in a linear layer or a 1x1 convolution.
        inputs: two or more that the model takes.

    Returns:
        What the layer was multiplied by, at most 1; 1 where nothing before it is trained.

    Raises:
        ValueError: no single output layer, or one that is frozen, that has a weight which is not
            finite, is computed from others or shared, or whose outputs the model changes so that
            its classes would be others. The model is as it was.
        TraceError: the model cannot be traced.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> model = ghn_fast.calibrate_(model, loader)
        >>> report = ghn_fast.fit_head_(model, loader)
        >>> ghn_fast.head.soften_(model, torch.zeros(2, 3, 32, 32)) < 1
        True
    """
    with restored(model):
        head = Head(model, *output_layers(model.eval(), inputs))
        scale = _scale(model, head)
        if scale < 1:
            _multiply(model, head, scale, inputs)
    return scale


def _scale(model: nn.Module, head: Head) -> float:
    own = {id(value) for value in head.values()}
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    if not own <= trained:
        raise ValueError(f"{head.name!r}, the output layer, has a frozen weight or bias")
    if own == trained:
        return 1.0
    weights = [layer.weight.double() for layer in (head.module, *head.others)]
    norm = math.sqrt(sum(float(weight.square().sum()) for weight in weights))
    if not math.isfinite(norm):
        raise ValueError(f"the weight of {head.name!r}, the output layer, is not finite")
    fresh = math.sqrt(len(weights) * head.classes / 3)
    return min(1.0, fresh / norm) if norm > 0 else 1.0


def _multiply(model: nn.Module, head: Head, scale: float, inputs: Any) -> None:
    kept, before = [value.clone() for value in head.values()], _logits(model, head, inputs)
    for value in head.values():
        value.mul_(scale)
    difference = _logits(model, head, inputs) - scale * before
    if not difference.abs().max() <= _EXACT * scale * before.abs().max():
        head.restore(kept)
        raise ValueError(
            f"what the model does after its layer {head.name!r} depends on how large its outputs "
            "are: made smaller, the model would tell other classes"
        )


def _logits(model: nn.Module, head: Head, inputs: Any) -> Tensor:
    """(B, C), less their mean: one number more for all classes changes none."""
    logits = head.run(model, inputs).double().flatten(1)
    return logits - logits.mean(1, keepdim=True)
