"""Builds modules whose parameters are shapes without memory or initialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = {torch.Tensor.normal_, torch.Tensor.uniform_}


class Ghosts(TorchFunctionMode):
    """Layers' parameters, which are made by ``torch.empty``, are on the meta device meanwhile.

    What an architecture computes for itself (zeros of a class token, a layer scale's constant,
    tables of positions) keeps its values. Random ones of these are a function of the seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif isinstance(target, torch.Tensor):
            if target.is_meta and _is_in_place(func):
                return target
            if func in _DRAWN:
                kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def _is_in_place(func: Callable[..., Any]) -> bool:
    name = func.__name__
    return name.endswith("_") and not name.endswith("__")
