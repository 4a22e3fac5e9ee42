"""From decoded blocks to parameters: tile, cut and normalise (arXiv 2110.13100, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast.ops.tile.reference import normalised, repeated

# The standard deviation of rows of a position table that stand for no position.
EXTRA_ROW_STD = 0.02
# Of the largest maps that classification layers are trained on.
CLASSIFIED_POSITIONS = 64


def repeat(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeats blocks (n, *block) along every dimension and cuts them to (n, *shape)."""
    return repeated(blocks, (len(blocks), *shape))


def position_rows(blocks: Tensor, rows: int) -> Tensor:
    """Blocks (n, 1, channels, s, s) of a grid of positions to tables (n, 1, rows, channels).

    Rows beyond the s * s positions come first: they are those of class tokens, which the
    published GHNs were not trained on. They are normal with ``EXTRA_ROW_STD``, as ViTs
    initialise them, and the same every time.
    """
    table = blocks.flatten(3).transpose(2, 3)
    extra = rows - table.shape[2]
    if extra <= 0:
        return table
    generator = torch.Generator().manual_seed(0)
    drawn = EXTRA_ROW_STD * torch.randn(extra, table.shape[3], generator=generator, device="cpu")
    return torch.cat((drawn.to(table).expand(*table.shape[:2], -1, -1), table), dim=2)


def along_channels(vectors: Tensor, shape: Sequence[int]) -> Tensor:
    """Vectors (n, channels) to (n, *shape), the same at all positions of the other dimensions.

    The channels are the first dimension that is larger than one, as in the weight of a layer norm
    over (channels, height, width) and in a bias (1, channels, 1, 1).
    """
    axis = channel_axis(shape)
    singles = (*(1,) * axis, vectors.shape[1], *(1,) * (len(shape) - axis - 1))
    return vectors.view(-1, *singles).expand(-1, *shape)


def channel_axis(shape: Sequence[int]) -> int:
    """The first dimension that is larger than one, or the first."""
    return next((axis for axis, size in enumerate(shape) if size > 1), 0)


def over_time(kernels: Tensor, times: int) -> Tensor:
    """Image kernels (n, out, in, h, w) to video kernels (n, out, in, t, h, w)."""
    return (kernels / times).unsqueeze(3).expand(*kernels.shape[:3], times, *kernels.shape[3:])


def normalisation(
    rule: str, shape: Sequence[int], fan_in: float | None = None
) -> tuple[str, float]:
    """The rule and the scale of :mod:`ghn_fast.ops.tile` for parameters of a shape.

    Weights are scaled to the variance of fan-in initialisation, sqrt(beta / fan_in), with beta 2
    where a ReLU is assumed to follow and 1 elsewhere (depthwise kernels and the first of a pair of
    one-dimensional ones). Weights of normalisation layers are 2 sigmoid(p/2), in (0, 2); biases
    are tanh(p/5), in (-1, 1).

    A classification layer over a map is the same at each position. Over one of more than
    ``CLASSIFIED_POSITIONS`` it gives what it would for the averages of so many parts of the map.

    Args:
        rule: of decoding, see :class:`ghn_fast.ghn.place.plan.Group`.
        fan_in: of weights, where it is not the product of all dimensions but the first.
    """
    if rule == "norm_weight":
        return "norm_weight", 1.0
    if rule in ("bias", "norm_bias", "class_bias"):
        return "bias", 1.0
    if rule == "class_weight":
        averaged = max(1.0, math.prod(shape[2:]) / CLASSIFIED_POSITIONS)
        fan_in = averaged * (fan_in or math.prod(shape[1:]))
    return "scale", weight_scale(shape, fan_in)


def normalise(values: Tensor, rule: str, fan_in: float | None = None) -> Tensor:
    """Parameters (n, *shape) by :func:`normalisation`."""
    return normalised(values, *normalisation(rule, values.shape[1:], fan_in))


def weight_scale(shape: Sequence[int], fan_in: float | None = None) -> float:
    """sqrt(beta / fan_in) of a weight of this shape."""
    no_relu = len(shape) > 2 and (shape[1] == 1 or (len(shape) > 3 and shape[2] < shape[3]))
    return math.sqrt((1.0 if no_relu else 2.0) / (fan_in or math.prod(shape[1:])))
