"""Values for parameters that a GHN does not decode and that have no value worth keeping.

A model that was materialised without initialisation, and networks in training that exist on the
meta device only, need some. Here each parameter gets the value that such a tensor normally starts
training with, by what the tracer says it is: one table, :data:`RULES`. What is drawn at random is
drawn from a generator of its own, seeded by the parameter's name, so that a model gets the same
values every time and the global random state is left alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

TABLE_STD = 0.02
"""Of tokens and tables, as in ViT (arXiv 2010.11929), BERT (1810.04805) and Swin (2103.14030)."""

LAYER_SCALE = 0.1
"""Of a layer scale whose own constant is not known, or too small for predicted weights: that of
CaiT's smaller networks (arXiv 2103.17239, table 1)."""

_HOST = torch.device("cpu")
"""Where values are made: those drawn at random are the same whatever the default device is."""


class Loose(NamedTuple):
    """A parameter that is not decoded.

    Attributes:
        name: qualified, in the model.
        shape: its own.
        module: its owner.
        fan_in: of a stack of matrices whose use is known.
    """

    name: str
    shape: torch.Size
    module: nn.Module
    fan_in: int | None = None


Maker = Callable[[Loose], Tensor]
"""Makes a parameter's new value, of its shape, in single precision on the CPU."""


def small_normal(loose: Loose) -> Tensor:
    """Normal with a standard deviation of 0.02, cut at two standard deviations.

    Tokens and rows of tables must differ from one another from the start, and be small beside
    the features that they are added to.
    """
    value = torch.empty(loose.shape, device=_HOST)
    return nn.init.trunc_normal_(
        value, std=TABLE_STD, a=-2 * TABLE_STD, b=2 * TABLE_STD, generator=_generator(loose)
    )


def embedding(loose: Loose) -> Tensor:
    """As :func:`small_normal`, zeros for the token that fills sequences up."""
    value = small_normal(loose)
    padding = getattr(loose.module, "padding_idx", None)
    if padding is not None:
        value[padding] = 0
    return value


def layer_scale(loose: Loose) -> Tensor:
    """0.1: branches enter small, as they do where layer scales are used."""
    return torch.full(loose.shape, LAYER_SCALE, device=_HOST)


def ones(loose: Loose) -> Tensor:
    """A factor that changes nothing."""
    return torch.ones(loose.shape, device=_HOST)


def zeros(loose: Loose) -> Tensor:
    """A summand that changes nothing."""
    return torch.zeros(loose.shape, device=_HOST)


def slope(loose: Loose) -> Tensor:
    """Of a PReLU (arXiv 1502.01852, section 3)."""
    return torch.full(loose.shape, 0.25, device=_HOST)


def matrix(loose: Loose) -> Tensor:
    """Normal, of a variance that keeps that of the input.

    Of a matrix (out, in) that is 1 / in. What has more dimensions and is no kernel is a stack of
    matrices; where nothing tells whether they are stored (out, in) or (in, out), the variance is
    2 / (in + out) (Glorot and Bengio 2010, equation 12). A vector of unknown use is more often
    added than multiplied, and is drawn as a token.
    """
    if len(loose.shape) < 2:
        return small_normal(loose)
    *stack, rows, columns = loose.shape
    value = torch.empty(loose.shape, device=_HOST).normal_(generator=_generator(loose))
    if loose.fan_in is not None:
        return value / math.sqrt(loose.fan_in)
    return value * math.sqrt(2 / (rows + columns) if stack else 1 / columns)


def kernel(loose: Loose) -> Tensor:
    """Of a convolution (out, in, ...) or a linear layer: normal, of variance 1 / fan-in."""
    value = torch.empty(loose.shape, device=_HOST).normal_(generator=_generator(loose))
    return value / math.sqrt(math.prod(loose.shape[1:]))


def recurrent_weight(loose: Loose) -> Tensor:
    """Hidden to hidden: orthogonal for each gate, so that states neither fade nor explode
    (arXiv 1312.6120); input to hidden: uniform with variance 1 / fan-in."""
    rows, columns = loose.shape[0], math.prod(loose.shape[1:])
    generator = _generator(loose)
    if "hh" in _last(loose.name) and rows % columns == 0:
        gates = [torch.empty(columns, columns, device=_HOST) for _ in range(rows // columns)]
        for gate in gates:
            nn.init.orthogonal_(gate, generator=generator)
        return torch.cat(gates)
    bound = math.sqrt(3 / columns)
    value = torch.empty(loose.shape, device=_HOST)
    return value.uniform_(-bound, bound, generator=generator)


RULES: Mapping[str, tuple[str, Maker]] = {
    # what it is: (the rule's name in reports, how its value is made)
    "class_token": ("token", small_normal),
    "token": ("token", small_normal),
    "table": ("embedding", small_normal),
    "embedding": ("embedding", embedding),
    "relative_position_bias": ("relative_position_bias", small_normal),
    "layer_scale": ("layer_scale", layer_scale),
    "scale": ("gain", ones),
    "weight_gain": ("gain", ones),
    "scalar": ("gain", ones),
    "slope": ("slope", slope),
    "bias": ("zero_bias", zeros),
    "norm_offset": ("zero_bias", zeros),
    "norm_bias": ("zero_bias", zeros),
    "recurrent_weight": ("recurrent_weight", recurrent_weight),
    "recurrent_bias": ("zero_bias", zeros),
    "weight": ("fan_in", kernel),
    "unknown": ("fan_in", matrix),
}
"""Kinds of parameters and what they get. Other kinds are treated as unknown."""


def rule_of(loose: Loose, kind: str | None = None) -> tuple[str, Maker]:
    """The name of the rule that a parameter falls under, and what makes its value.

    Args:
        kind: as the tracer says (``Graph.other``); None for what was not reached or not decoded.
    """
    if isinstance(loose.module, (nn.RNNBase, nn.RNNCellBase)):
        kind = "recurrent_weight" if len(loose.shape) > 1 else "recurrent_bias"
    elif loose.fan_in is not None:
        kind = "unknown"
    elif kind is None:
        kind = _kind_by_owner(loose)
    elif kind == "weight_gain" and sum(size > 1 for size in loose.shape) > 1:
        # A factor of a product of matrices, not a gain per channel.
        kind = "unknown"
    if kind in ("unknown", "gate") and loose.shape.numel() == 1:
        # One changes nothing in a product and little in a sum.
        kind = "scalar"
    return RULES.get(kind, RULES["unknown"])


def _kind_by_owner(loose: Loose) -> str:
    if isinstance(loose.module, nn.Embedding):
        return "embedding"
    if "bias" in _last(loose.name):
        return "bias"
    if len(loose.shape) > 1 and _last(loose.name) == "weight":
        return "weight"
    return "scale" if "norm" in type(loose.module).__name__.lower() else "unknown"


def value_of(loose: Loose, kind: str | None = None) -> tuple[str, Tensor]:
    """The rule's name and a parameter's value, in single precision on the CPU."""
    name, make = rule_of(loose, kind)
    return name, make(loose)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _generator(loose: Loose) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(loose.name.encode()))
