"""Tensors that a model writes to while it runs for real, and how they get their values back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Values(TorchDispatchMode):
    """The values that tensors have before a model runs under this mode.

    Parameters are copied when they are first written to: they may be large, and hardly any model
    writes to them. The others are copied at once, as fused operations such as batch norm write to
    them without saying so.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        parameters = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
        others = [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._flags = [(p, p.requires_grad, p.grad) for p in parameters]
        self._places = [(tensor, tensor.detach()) for tensor in tensors]
        self._copies = [(tensor.detach(), tensor.detach().clone()) for tensor in others]
        self._uncopied = defaultdict[int, list[Tensor]](list)
        for tensor in (*parameters, *gradients):
            self._uncopied[memory_of(tensor)].append(tensor.detach())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in _written(func, args, kwargs or {}):
            places = self._uncopied.pop(memory_of(tensor), ())
            self._copies += [(place, place.clone()) for place in places]
        return func(*args, **(kwargs or {}))

    def restore(self) -> None:
        """Gives the tensors their memory, their values and their gradients back."""
        with torch.inference_mode():  # where also tensors that were made in it may be written to
            for tensor, place in self._places:
                if memory_of(tensor) != memory_of(place) or tensor.shape != place.shape:
                    tensor.data = place
            for place, value in self._copies:
                place.copy_(value)
        for parameter, trained, gradient in self._flags:
            if parameter.requires_grad != trained:
                parameter.requires_grad_(trained)
            if parameter.grad is not gradient:
                parameter.grad = gradient


def memory_of(tensor: Tensor) -> int:
    """A number that tensors share that lie in the same memory."""
    # Sparse tensors, for one, have no memory of their own.
    return tensor.untyped_storage()._cdata if torch._C._has_storage(tensor) else id(tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation says that it writes to."""
    for position, name in _arguments_written(func):
        value = args[position] if position < len(args) else kwargs.get(name)
        yield from (
            v for v in (value if isinstance(value, (list, tuple)) else [value]) if v is not None
        )


@lru_cache(maxsize=4096)
def _arguments_written(func: Any) -> list[tuple[int, str]]:
    """Their positions and names."""
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema is not None and schema.is_mutable else ()
    return [
        (position, argument.name)
        for position, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
