"""Products of rows with corners of one weight, and their gradients without whole copies of it.

Blocks smaller than a GHN's largest need only a corner of its last layer. By PyTorch's own slices,
the gradient of every corner would be a weight of full size, most of it zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Corner = tuple[int, ...]
"""(out, in)"""


def corner_products(
    features: Tensor, weight: Tensor, bias: Tensor, corners: Sequence[Corner], rows: Sequence[int]
) -> list[Tensor]:
    """Rows of features times corners of a weight.

    Args:
        features: (sum of rows, d).
        weight: (O, I, d).
        bias: (O, I).
        corners: at most (O, I) each; equal ones next to each other share one product.
        rows: how many of the features each corner is for, in order.

    Returns:
        For each corner (rows, out, in), with any strides. Differentiable once.
    """
    together = [
        (corner, [count for _, count in group])
        for corner, group in itertools.groupby(
            zip(corners, rows, strict=True), lambda pair: pair[0]
        )
    ]
    distinct = [corner for corner, _ in together]
    sums = [sum(counts) for _, counts in together]
    if torch.is_grad_enabled():
        products = _CornerProducts.apply(features, weight, bias, distinct, sums)
    else:
        products = tuple(map(partial(_product, weight, bias), features.split(sums), distinct))
    return [
        part
        for product, (_, counts) in zip(products, together, strict=True)
        for part in product.split(counts)
    ]


def corner_products_reference(
    features: Tensor, weight: Tensor, bias: Tensor, corners: Sequence[Corner], rows: Sequence[int]
) -> list[Tensor]:
    """:func:`corner_products` by slices alone."""
    return [
        F.linear(part, weight[:out, :into].flatten(0, 1), bias[:out, :into].flatten()).unflatten(
            1, (out, into)
        )
        for part, (out, into) in zip(features.split(list(rows)), corners, strict=True)
    ]


COPY_COST = 30
"""As many multiply-adds take as long as copying one value of the weight (measured on a CPU)."""


def _product(weight: Tensor, bias: Tensor, features: Tensor, corner: Corner) -> Tensor:
    """(rows, out, in), with any strides.

    A corner of all input channels lies in one piece. To cut one of fewer out takes a copy, so that
    for few rows it is cheaper to compute all of them and leave some aside.
    """
    out, into = corner
    width = weight.shape[1]
    if len(features) * (width - into) < COPY_COST * into:
        product = F.linear(features, weight[:out].flatten(0, 1), bias[:out].flatten())
        return product.view(-1, out, width)[:, :, :into]
    product = F.linear(features, weight[:out, :into].flatten(0, 1), bias[:out, :into].flatten())
    return product.view(-1, out, into)


class _CornerProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        corners: list[Corner],
        rows: list[int],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(features, weight)
        ctx.corners, ctx.rows = corners, rows
        return tuple(corner_products_reference(features, weight, bias, corners, rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        grad_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = torch.zeros_like(weight), weight.new_zeros(weight.shape[:2])
        start = 0
        for values, (out, into), count in zip(grads, ctx.corners, ctx.rows, strict=True):
            grad = values.flatten(1)
            part = slice(start, start + count)
            start += count
            corner = weight[:out, :into].flatten(0, 1)
            if grad_features is not None:
                torch.mm(grad, corner, out=grad_features[part])
            grad_weight[:out, :into] += (grad.t() @ features[part]).view(out, into, -1)
            grad_bias[:out, :into] += grad.sum(dim=0).view(out, into)
        return grad_features, grad_weight, grad_bias, None, None
