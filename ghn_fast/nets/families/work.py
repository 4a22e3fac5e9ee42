"""How much work a network is, by the shapes that its modules put out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from ghn_fast.nets.families.attention import Attend, Product
from ghn_fast.nets.measure.work import VALUE_COST

_SOFTMAX_PASSES = 2


class Work:
    """Of one image.

    Attributes:
        multiply_adds: of layers and of the two products of attention.
        values: put out by modules.
    """

    def __init__(self) -> None:
        self.multiply_adds = 0
        self.values = 0

    @property
    def total(self) -> int:
        """In multiply-adds, ``VALUE_COST`` for every value."""
        return self.multiply_adds + VALUE_COST * self.values

    def add(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook."""
        out: Tensor = output[0] if isinstance(output, tuple) else output
        values = math.prod(out.shape[1:])
        if isinstance(module, nn.MultiheadAttention):
            tokens, width = out.shape[1], out.shape[2]
            self._attention(tokens, tokens, width, module.num_heads)
        elif isinstance(module, ShiftedWindowAttention):
            sides = zip(out.shape[1:3], module.window_size, strict=True)
            padded = math.prod(-(-side // window) * window for side, window in sides)
            seen = math.prod(module.window_size)
            self._attention(padded, seen, out.shape[-1], module.num_heads)
        else:
            weight = module._parameters.get("weight")
            if isinstance(module, Attend):
                query, key, value = inputs[:3]
                pairs = math.prod(query.shape[1:3]) * key.shape[2]
                self.multiply_adds += pairs * (query.shape[3] + value.shape[3])
                self.values += _SOFTMAX_PASSES * pairs
            elif isinstance(module, Product):
                self.multiply_adds += values * inputs[0].shape[-1]
            elif weight is not None and weight.dim() > 1 and not isinstance(module, nn.Embedding):
                self.multiply_adds += values * math.prod(weight.shape[1:])
            self.values += values

    def _attention(self, tokens: int, seen: int, width: int, heads: int) -> None:
        self.multiply_adds += tokens * (4 * width**2 + 2 * seen * width)
        self.values += tokens * (4 * width + _SOFTMAX_PASSES * heads * seen)


@contextmanager
def counted(model: nn.Module) -> Iterator[Work]:
    """Counts the work of what the model is called with meanwhile."""
    work = Work()
    hooks = [
        module.register_forward_hook(work.add)
        for module in model.modules()
        if not module._modules or isinstance(module, nn.MultiheadAttention | ShiftedWindowAttention)
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()
