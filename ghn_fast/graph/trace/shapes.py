"""Output shapes of the operations that dominate a network, worked out without running them.

PyTorch's own shape functions on the meta device are Python and take up to a millisecond each;
these take a microsecond. Everything that is not here goes through PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Shape = tuple[int, ...]
IntOrSeq = int | Sequence[int]


class Misfit(ValueError):
    """A size that does not match, with what came and what was wanted."""

    def __init__(self, message: str, got: int, wanted: int) -> None:
        super().__init__(message)
        self.got, self.wanted = got, wanted


def as_tuple(value: IntOrSeq, length: int) -> Shape:
    """``length`` values; a single one is repeated."""
    if type(value) is tuple and len(value) == length:
        return value
    if isinstance(value, int):
        return (value,) * length
    values = tuple(map(int, value))
    return values * length if len(values) == 1 else values


def broadcast(a: Sequence[int], b: Sequence[int]) -> Shape:
    """The common shape of two tensors.

    Raises:
        Misfit: they do not match.
    """
    if a == b:
        return tuple(a)
    dims = max(len(a), len(b))
    left = (1,) * (dims - len(a)) + tuple(a)
    right = (1,) * (dims - len(b)) + tuple(b)
    result = []
    for m, n in zip(left, right, strict=True):
        if m != n and m != 1 and n != 1:
            raise Misfit(f"shapes {tuple(a)} and {tuple(b)} do not broadcast", m, n)
        result.append(n if m == 1 else m)
    return tuple(result)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSeq = 1,
    padding: IntOrSeq | str = 0,
    dilation: IntOrSeq = 1,
    groups: int = 1,
) -> Shape:
    """Of ``torch.conv1d``, ``conv2d`` and ``conv3d``, with or without a batch dimension."""
    sizes, (out_channels, in_channels, *kernel) = tuple(x.shape), tuple(weight.shape)
    n = len(kernel)
    spatial = sizes[-n:]
    if padding == "same":
        out = spatial
    else:
        pads = (0,) * n if isinstance(padding, str) else as_tuple(padding, n)
        steps, gaps = as_tuple(stride, n), as_tuple(dilation, n)
        windows = zip(spatial, kernel, steps, pads, gaps, strict=True)
        out = tuple([(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in windows])
    if min(out) < 1:
        raise ValueError(f"a kernel of {tuple(kernel)} does not fit into {spatial}")
    if sizes[-n - 1] != in_channels * groups:
        raise ValueError(f"a convolution over {in_channels * groups} channels got {sizes[-n - 1]}")
    return (*sizes[: -n - 1], out_channels, *out)


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSeq = 1,
    padding: IntOrSeq = 0,
    output_padding: IntOrSeq = 0,
    groups: int = 1,
    dilation: IntOrSeq = 1,
) -> Shape:
    """Of ``torch.conv_transpose1d``, ``2d`` and ``3d``."""
    kernel = weight.shape[2:]
    n = len(kernel)
    out = tuple(
        (size - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for size, k, s, p, d, extra in zip(
            x.shape[-n:],
            kernel,
            as_tuple(stride, n),
            as_tuple(padding, n),
            as_tuple(dilation, n),
            as_tuple(output_padding, n),
            strict=True,
        )
    )
    return (*x.shape[: -n - 1], weight.shape[1] * groups, *out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape:
    """Of ``torch.nn.functional.linear``."""
    if x.shape[-1] != weight.shape[-1]:
        message = f"a linear layer of {weight.shape[-1]} inputs got {x.shape[-1]}"
        raise Misfit(message, x.shape[-1], weight.shape[-1])
    return (*x.shape[:-1], *weight.shape[:-1])


def pooling(
    x: Tensor,
    kernel_size: IntOrSeq,
    stride: IntOrSeq | None = None,
    padding: IntOrSeq = 0,
    dilation: IntOrSeq = 1,
    ceil_mode: bool = False,
    dims: int = 2,
) -> Shape:
    """Of maximum and average pooling over the last ``dims`` dimensions."""
    kernel = as_tuple(kernel_size, dims)
    steps = kernel if stride is None or stride == () or stride == [] else as_tuple(stride, dims)
    pads, gaps = as_tuple(padding, dims), as_tuple(dilation, dims)
    out = []
    for size, k, s, p, d in zip(x.shape[-dims:], kernel, steps, pads, gaps, strict=True):
        span = size + 2 * p - d * (k - 1) - 1
        length = (math.ceil(span / s) if ceil_mode else span // s) + 1
        # A window that would start in the right padding is dropped.
        if ceil_mode and (length - 1) * s >= size + p:
            length -= 1
        if length < 1:
            raise ValueError(f"a pooling window of {k} does not fit into {size}")
        out.append(length)
    return (*x.shape[:-dims], *out)


def adaptive_pooling(x: Tensor, output_size: IntOrSeq | Sequence[int | None], dims: int) -> Shape:
    """Of adaptive pooling; None keeps a dimension."""
    sizes: Sequence[int | None] = (
        (output_size,) * dims if isinstance(output_size, int) else tuple(output_size)
    )
    if len(sizes) == 1:
        sizes = tuple(sizes) * dims
    kept = zip(sizes, x.shape[-dims:], strict=True)
    return (*x.shape[:-dims], *(old if size is None else int(size) for size, old in kept))


def matmul(a: Tensor, b: Tensor) -> Shape:
    """Of ``torch.matmul`` for all numbers of dimensions."""
    left, right = tuple(a.shape), tuple(b.shape)
    if len(left) == 1 and len(right) == 1:
        return ()
    if len(left) == 1:
        return (*right[:-2], right[-1])
    if len(right) == 1:
        return left[:-1]
    if left[-1] != right[-2]:
        raise ValueError(f"a product of {left} and {right}")
    return (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])


def concatenation(tensors: Sequence[Tensor], dim: int = 0) -> Shape:
    """Of ``torch.cat``; one-dimensional empty tensors are ignored, as there."""
    shapes = [t.shape for t in tensors if not (t.dim() == 1 and t.shape[0] == 0)]
    if not shapes:
        return (0,)
    first = tuple(shapes[0])
    axis = dim % len(first)
    before, after = first[:axis], first[axis + 1 :]
    for shape in shapes[1:]:
        if shape[:axis] != before or shape[axis + 1 :] != after:
            raise ValueError(f"shapes {[tuple(s) for s in shapes]} do not concatenate")
    return (*before, sum(shape[axis] for shape in shapes), *after)


def reduction(x: Tensor, dim: IntOrSeq | None, keepdim: bool) -> Shape:
    """Of a sum or mean over ``dim`` (None or empty: all)."""
    n = x.dim()
    dims = range(n) if dim is None or dim == () or dim == [] else as_tuple(dim, 1)
    reduced = {d % n for d in dims} if n else set()
    if keepdim:
        return tuple(1 if i in reduced else s for i, s in enumerate(x.shape))
    return tuple(s for i, s in enumerate(x.shape) if i not in reduced)


def attention(query: Tensor, value: Tensor) -> Shape:
    """Of ``torch.nn.functional.scaled_dot_product_attention``; of heads there may be fewer keys."""
    batch = broadcast(query.shape[:-3], value.shape[:-3])
    heads = max(query.shape[-3:-2], value.shape[-3:-2])
    return (*batch, *heads, query.shape[-2], value.shape[-1])
