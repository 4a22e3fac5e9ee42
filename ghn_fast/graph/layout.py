"""How the dimensions of a stored weight serve its layer: as outputs, inputs and a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """From a tensor as it is stored to the same elements as (out, in, \\*kernel), and back.

    A linear layer over flattened maps of 512 x 7 x 7 is stored (out, 512 * 7 * 7) and computes
    what a convolution (out, 512, 7, 7) does::

        over_map = Layout(((-1,), (-1, 7, 7)), ((0,), (1,), (2,), (3,)))
        over_map.view(linear.weight)  # (out, 512, 7, 7), the same memory

    Attributes:
        sizes: for each stored dimension the sizes that it is split into, one of them -1.
        order: for each dimension of the use the dimensions, counted after splitting, that it is
            made of.
        stack: those over which there is a matrix or kernel of its own for each index, as in the
            weights (experts, out, in) of a mixture. Such a weight has no single view.
    """

    sizes: tuple[tuple[int, ...], ...]
    order: tuple[tuple[int, ...], ...]
    stack: tuple[int, ...] = ()

    def shape(self, stored: Sequence[int]) -> tuple[int, ...]:
        """(out, in, \\*kernel) of a weight, or each of a stack, that is stored in this shape.

        Raises:
            ValueError: a dimension cannot be split so.
        """
        split = self.split(stored)
        return tuple(math.prod(split[dim] for dim in dims) for dims in self.order)

    def view(self, stored: Tensor) -> Tensor:
        """The stored tensor's elements as (out, in, \\*kernel): the same memory, or a copy where
        dimensions are merged that do not lie side by side."""
        split = stored.view(self.split(stored.shape))
        return split.permute(*chain(*self.order)).reshape(self.shape(stored.shape))

    def stored(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values (out, in, \\*kernel) in the order and the shape in which they are stored."""
        split, flat = self.split(shape), list(chain(*self.order))
        places = [flat.index(dim) for dim in range(len(flat))]
        return values.reshape([split[dim] for dim in flat]).permute(places).reshape(tuple(shape))

    def split(self, stored: Sequence[int]) -> list[int]:
        """The sizes of a stored shape after splitting."""
        if len(stored) != len(self.sizes):
            raise ValueError(f"a weight of {len(self.sizes)} dimensions is stored {tuple(stored)}")
        return [size for pair in zip(stored, self.sizes, strict=True) for size in _parts(*pair)]


def _parts(size: int, parts: Sequence[int]) -> list[int]:
    known = math.prod(part for part in parts if part != -1)
    if size % known or (-1 not in parts and size != known):
        raise ValueError(f"{size} elements cannot be split into {tuple(parts)}")
    return [size // known if part == -1 else part for part in parts]


@dataclass(frozen=True)
class Origins:
    """The index that each channel of a weight had in the layer that made it.

    Behind a channel shuffle a layer finds channels in other places than the one before left them
    in. Decoded by their origins, each of its weights is that of the channel that it multiplies::

        Origins(1, (0, 2, 1, 3)).stored(values, shape)  # values[:, [0, 2, 1, 3]]

    Attributes:
        dim: of (out, in, ...): 1 for layers that read all channels, 0 for vectors and
            depthwise kernels.
        channels: for each place along that dimension the channel's origin. Places may share one.
    """

    dim: int
    channels: tuple[int, ...]

    def shape(self, stored: Sequence[int]) -> tuple[int, ...]:
        """The same.

        Raises:
            ValueError: a weight of another width.
        """
        if stored[self.dim] != len(self.channels):
            raise ValueError(
                f"the graph knows where each of {len(self.channels)} channels comes from, and the "
                f"weight has {stored[self.dim]}: make the graph from the model of this width"
            )
        return tuple(stored)

    def view(self, stored: Tensor) -> Tensor:
        """A copy, to be written to: several places may take one value."""
        return stored.clone()

    def stored(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values by origin, in the places of the channels."""
        places = torch.tensor(self.channels, device=values.device)
        return values.index_select(self.dim, places)


@dataclass(frozen=True)
class Storage:
    """Where a weight's elements lie: its stored shape, and the layouts that lead to its use.

    Attributes:
        shape: as stored.
        layouts: applied one after the other.
    """

    shape: tuple[int, ...]
    layouts: tuple[Layout | Origins, ...]

    @property
    def is_stack(self) -> bool:
        """Whether it holds a stack of weights."""
        return any(isinstance(layout, Layout) and layout.stack for layout in self.layouts)

    def used_shape(self) -> tuple[int, ...]:
        """(out, in, \\*kernel)"""
        shape = self.shape
        for layout in self.layouts:
            shape = layout.shape(shape)
        return shape

    def view(self, stored: Tensor) -> Tensor:
        """The stored tensor's elements as (out, in, \\*kernel), see :meth:`Layout.view`."""
        for layout in self.layouts:
            stored = layout.view(stored)
        return stored

    def stored(self, values: Tensor) -> Tensor:
        """Values (out, in, \\*kernel) as they are stored; differentiable."""
        shapes = accumulate(self.layouts, lambda s, layout: layout.shape(s), initial=self.shape)
        for layout, shape in reversed(list(zip(self.layouts, shapes, strict=False))):
            values = layout.stored(values, shape)
        return values
