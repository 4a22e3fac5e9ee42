"""1x1 convolutions as matrix products, for networks that run once.

cuDNN prepares every shape that it meets for the first time, in each process and thread anew, for
longer than a small network takes; cuBLAS does not. Networks in training meet new shapes all the
time, and most of their convolutions have 1x1 kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_products(model: nn.Module) -> nn.Module:
    """The model with its 1x1 convolutions computed as matrix products; in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_pointwise(module):
            module.forward = partial(_convolve, module)  # type: ignore[method-assign]
    return model


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid", "same")
    )


def _convolve(module: nn.Conv2d, x: Tensor) -> Tensor:
    rows, columns = module.stride
    x = x[..., ::rows, ::columns]
    out: Tensor = _Product.apply(x.flatten(2), module.weight.flatten(1))
    out = out.unflatten(2, x.shape[2:])
    return out if module.bias is None else out + module.bias.view(-1, 1, 1)


class _Product(torch.autograd.Function):
    """(B, C, N) and (O, C) to (B, O, N)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(weight.expand(len(x), *weight.shape), x)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        transposed = weight.T.expand(len(x), *weight.T.shape)
        of_x = torch.bmm(transposed, gradient) if needs_x else None
        return of_x, _of_weight(x, gradient) if needs_weight else None


def _of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """Sums over images of gradient @ x^T, the way that moves fewer bytes."""
    batch, channels, pixels = x.shape
    outputs = gradient.shape[1]
    if outputs * channels < pixels * (outputs + channels):
        return torch.bmm(gradient, x.transpose(1, 2)).sum(dim=0)
    wide = gradient.transpose(0, 1).reshape(outputs, batch * pixels)
    return wide @ x.transpose(0, 1).reshape(channels, batch * pixels).T
