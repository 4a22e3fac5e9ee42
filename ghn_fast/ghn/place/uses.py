"""How a model uses its parameters, where the shapes of its graph's nodes do not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd


@dataclass
class Uses:
    """How a model uses its parameters, where the shape of a node does not tell.

    Two models of equal graphs and equal uses have the same plan.

    Attributes:
        parameters: all of them, a tied one under each of its names.
        owners: for each name the module and the parameter's name in it.
        fan_in: of weights that are decoded (in, out, ...): those of transposed convolutions.
        complex: {parameter name: dtype} of those that are.
        kept: {parameter name: why it keeps its value}, whatever the GHN could decode
            (:mod:`ghn_fast.ghn.place.keep`).
        initializer_range: the standard deviation of weights that a transformers ``config`` asks
            for; 0.02, as there, without one.
        packed: modules whose quantised weights are no parameters.
        empty: names of parameters whose memory has no values yet, kept or not.
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    owners: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    fan_in: dict[str, float] = field(default_factory=dict)
    complex: dict[str, torch.dtype] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    initializer_range: float = 0.02
    packed: list[str] = field(default_factory=list)
    empty: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, empty: frozenset[str] = frozenset()) -> Uses:
        config = getattr(model, "config", None)
        deviation = float(getattr(config, "initializer_range", 0.02) or 0.02)
        uses = cls(initializer_range=deviation, empty=empty)
        for path, module in model.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    uses.parameters[prefix + name] = parameter
                    uses.owners[prefix + name] = module, name
                    if parameter.is_complex():
                        uses.complex[prefix + name] = parameter.dtype
            fan_in = _stored_fan_in(module)
            if fan_in is not None:
                uses.fan_in.update({prefix + name: fan_in for name in _WEIGHTS})
            elif _is_packed(module.__class__):
                uses.packed.append(path)
        return uses

    @cached_property
    def names(self) -> dict[int, list[str]]:
        """{identity of a parameter: its names}."""
        found: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            found.setdefault(id(parameter), []).append(name)
        return found

    def places(self, name: str) -> list[tuple[nn.Module, str]]:
        """Where a parameter is: its modules and its names in them; several if it is tied."""
        return [self.owners[other] for other in self.names[id(self.parameters[name])]]

    def keeping(self, reasons: Mapping[str, str]) -> Uses:
        """The same with more parameters that keep their values, under all of their names."""
        if not reasons:
            return self
        kept = dict(self.kept)
        for name, reason in reasons.items():
            for other in self.names[id(self.parameters[name])]:
                kept.setdefault(other, reason)
        return replace(self, kept=kept)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a parameter, if the model is known."""
        return self.parameters[name].shape if name in self.parameters else None

    def key(self) -> tuple[object, ...]:
        """All that a plan depends on."""
        shapes = tuple((name, parameter.shape) for name, parameter in self.parameters.items())
        others = (tuple(d.items()) for d in (self.fan_in, self.complex, self.kept))
        return shapes, self.initializer_range, *others


# A weight, and what it is made from where it is normalised (torch.nn.utils.parametrizations).
_WEIGHTS = (
    *("weight", "weight_v", "weight_orig"),
    *("parametrizations.weight.original", "parametrizations.weight.original1"),
)


def _stored_fan_in(module: Any) -> float | None:
    """How many inputs reach one output of a transposed convolution."""
    if isinstance(module, _ConvTransposeNd):
        # Time is left out, see the rule "video_weight".
        taps = math.prod(module.kernel_size[-2:]) / math.prod(module.stride[-2:])
        return max(1.0, module.in_channels // module.groups * taps)
    return None


_PACKED = (
    *("WeightedQuantizedModule", "LinearPackedParams", "EmbeddingPackedParams"),
    "PackedParameter",
)


@lru_cache(maxsize=4096)
def _is_packed(module_class: type) -> bool:
    """Of ``torch.ao``: quantised layers that hold their weights in the backend's own form."""
    return any(
        base.__module__.startswith("torch.ao.nn") and base.__name__ in _PACKED
        for base in module_class.__mro__
    )
