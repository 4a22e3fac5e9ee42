"""Predicted parameters that are leaves, and the way back from their gradients to the GHN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ghn_fast.ghn.place.decoded import Decoded
from ghn_fast.ghn.place.plan import keep_copies
from ghn_fast.ops.tile import tile_, tile_backward

AnyTensor = TypeVar("AnyTensor", Tensor, Tensor | None)

_ALIGNMENT = 16
"""elements; every parameter starts at a cache line"""


class Leaves:
    """Predicted parameters without autograd's records of each of them.

    A step predicts about a thousand small parameters. They are written into one piece of memory,
    and their gradients are summed to those of the blocks in one call.

    Args:
        decoded: with its way back to the GHN.
        num_models: in the batch.

    Attributes:
        targets: where each predicted parameter belongs.
        device: of all tensors.
        tensors: of the targets; they require gradients.
        by_model: the tensors of each model.
    """

    def __init__(self, decoded: Decoded, num_models: int) -> None:
        self._blocks = decoded.blocks
        self._tiles = decoded.table.tiles
        self._direct = decoded.direct_tensors()
        self.targets = decoded.targets
        self.device = decoded.device
        self.tensors = self._tiled() + [tensor.detach() for tensor in self._direct]
        self.by_model: list[list[Tensor]] = [[] for _ in range(num_models)]
        for target, tensor in zip(self.targets, self.tensors, strict=True):
            self.by_model[target.graph].append(tensor.requires_grad_())

    @torch.no_grad()
    def _tiled(self) -> list[Tensor]:
        if not self._blocks:
            return []
        pairs = zip(self.targets, self._tiles.tiles, strict=False)
        shapes = [torch.Size(t.storage.shape if t.storage else tile.shape) for t, tile in pairs]
        sizes = [-(-shape.numel() // _ALIGNMENT) * _ALIGNMENT for shape in shapes]
        whole = self._blocks[0].new_empty(sum(sizes))
        parts = zip(whole.split(sizes), shapes, strict=True)
        parameters = [part[: shape.numel()].view(shape) for part, shape in parts]
        views = self._as_decoded(parameters)
        tile_(self._blocks, self._tiles, views)
        keep_copies(self.targets[: len(views)], views, parameters)
        return parameters

    def _as_decoded(self, tensors: Sequence[AnyTensor]) -> list[AnyTensor]:
        """Parameters that are tiled, or their gradients, in the shapes of the tiles."""
        return [
            tensor if tensor is None else target.view(tensor)
            for target, tensor in zip(self.targets, tensors, strict=False)
        ]

    def backward(self) -> None:
        """Adds to the GHN's gradients what follows from the ``grad`` of the tensors (None: zero).

        Can be called once, as :meth:`torch.Tensor.backward`.
        """
        grads = [tensor.grad for tensor in self.tensors]
        tiled = self._as_decoded(grads[: len(self._tiles)])
        direct = grads[len(self._tiles) :]
        pairs = list(
            zip(self._blocks, tile_backward(self._blocks, self._tiles, tiled), strict=True)
        )
        others = zip(self._direct, direct, strict=True)
        pairs += [(tensor, grad) for tensor, grad in others if grad is not None]
        differentiable = [pair for pair in pairs if pair[0].requires_grad]
        torch.autograd.backward(
            [tensor for tensor, _ in differentiable], [grad for _, grad in differentiable]
        )
