"""Makes an output layer less sure, so that the first steps of a training keep what is before it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ghn_fast._system.restored import restored
from ghn_fast.head.layers import Head, output_layers


@torch.no_grad()
def soften_(model: nn.Module, inputs: Any) -> float:
    """Scales an output layer down to weights as large as those of a fresh one, in place.

    Features of an untrained network tell pictures apart by little, and an output layer in closed
    form (:func:`fit_head_`) makes up for it with weights many times as large as PyTorch
    initialises them. So are the gradients of all that is before it: the first steps of a usual
    learning rate undo the features. Weight and bias are multiplied by the same number, which
    changes no class that the model tells, only how sure it is.

    PyTorch draws the weights of C outputs and D features evenly from within 1 / sqrt(D) of 0: their
    norm is sqrt(C / 3), whatever D.

    Args:
        model: a classifier that ends in a linear layer or a 1x1 convolution.
        inputs: two or more that the model takes.

    Returns:
        What the layer was multiplied by, at most 1.

    Raises:
        ValueError: no single output layer, or one that is frozen, or whose weight is computed from
            others or shared.
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
    layers = (head.module, *head.others)
    norm = math.sqrt(sum(float(layer.weight.float().square().sum()) for layer in layers))
    scale = min(1.0, math.sqrt(head.classes / 3) / norm) if norm > 0 else 1.0
    if scale < 1:
        for value in head.values():
            value.mul_(scale)
    return scale
