"""Values for parameters that a GHN has no say about.

The published definition of the graph has no node for class tokens, tables of relative positions,
layer scales, learned temperatures, recurrent weights and the like, so nothing of them reaches a
GHN. Here each gets the value that such a tensor normally starts training with, by what the tracer
says it is: one table, :data:`RULES`. What is drawn at random is drawn from a generator of its own,
seeded by the parameter's name, so that a model gets the same values every time and the global
random state is left alone.

Before the table, four properties of the tensor itself decide (:func:`rule_of`):

- ``empty``: it has no elements.
- ``weight_norm``: it is the magnitude of a weight that is kept as direction and magnitude.
- ``constant``: its elements are all the same and finite. A random initialisation does not do
  that: the constant is part of the architecture (1e-6 for a layer scale, zeros for a gate that
  starts closed, log(1 / 0.07) for a temperature) and is kept.
- ``ordered``: its values rise or fall steadily, as tables of decays and frequencies do. These too
  are part of the architecture and are kept.
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
"""Of a layer scale whose own constant is not known: that of CaiT's smaller networks
(arXiv 2103.17239, table 1)."""

_SHORTEST_ORDERED = 8
_HOST = torch.device("cpu")
"""Where values are made: those drawn at random are the same whatever the default device is."""


class Loose(NamedTuple):
    """A parameter without a node.

    Attributes:
        name: qualified, in the model.
        tensor: the parameter.
        module: its owner.
    """

    name: str
    tensor: Tensor
    module: nn.Module


Maker = Callable[[Loose], Tensor]
"""Makes a parameter's new value, of its shape, in single precision on the CPU."""


def small_normal(loose: Loose) -> Tensor:
    """Normal with a standard deviation of 0.02, cut at two standard deviations.

    Tokens and rows of tables must differ from one another from the start, and be small beside
    the features that they are added to.
    """
    value = torch.empty(loose.tensor.shape, device=_HOST)
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
    return torch.full(loose.tensor.shape, LAYER_SCALE, device=_HOST)


def ones(loose: Loose) -> Tensor:
    """A factor that changes nothing."""
    return torch.ones(loose.tensor.shape, device=_HOST)


def zeros(loose: Loose) -> Tensor:
    """A summand that changes nothing."""
    return torch.zeros(loose.tensor.shape, device=_HOST)


def fan_in_normal(loose: Loose) -> Tensor:
    """Matrices and kernels: variance 1 / fan-in, which keeps that of their input.

    A vector of unknown use is more often added (a token, a bias of attention) than multiplied, and
    is drawn as a token.
    """
    shape = loose.tensor.shape
    if len(shape) < 2:
        return small_normal(loose)
    value = torch.empty(shape, device=_HOST).normal_(generator=_generator(loose))
    return value / math.sqrt(math.prod(shape[1:]))


def recurrent_weight(loose: Loose) -> Tensor:
    """Hidden to hidden: orthogonal for each gate, so that states neither fade nor explode
    (arXiv 1312.6120); input to hidden: uniform with variance 1 / fan-in."""
    rows, columns = loose.tensor.shape[0], math.prod(loose.tensor.shape[1:])
    generator = _generator(loose)
    if "hh" in _last(loose.name) and rows % columns == 0:
        gates = [torch.empty(columns, columns, device=_HOST) for _ in range(rows // columns)]
        for gate in gates:
            nn.init.orthogonal_(gate, generator=generator)
        return torch.cat(gates)
    bound = math.sqrt(3 / columns)
    value = torch.empty(loose.tensor.shape, device=_HOST)
    return value.uniform_(-bound, bound, generator=generator)


def magnitude(loose: Loose) -> Tensor:
    """The norms of the direction that was predicted, so that the weight is what was predicted."""
    direction = _direction(loose)
    assert direction is not None
    values = direction.detach().float().cpu()
    if loose.tensor.dim() == 0:
        return values.norm()
    shared = [dim for dim, size in enumerate(loose.tensor.shape) if size == 1]
    return torch.linalg.vector_norm(values, dim=shared, keepdim=True)


def keep(loose: Loose) -> Tensor:
    """The value that the architecture gave it."""
    return loose.tensor.detach()


RULES: Mapping[str, tuple[str, Maker]] = {
    # what the tracer says it is: (the rule's name in reports, how its value is made)
    "class_token": ("token", small_normal),
    "token": ("token", small_normal),
    "embedding": ("embedding", embedding),
    "relative_position_bias": ("relative_position_bias", small_normal),
    "layer_scale": ("layer_scale", layer_scale),
    "scale": ("gain", ones),
    "weight_gain": ("gain", ones),
    "scalar": ("constant", keep),
    "bias": ("zero_bias", zeros),
    "norm_bias": ("zero_bias", zeros),
    "recurrent_weight": ("recurrent_weight", recurrent_weight),
    "recurrent_bias": ("zero_bias", zeros),
    "unknown": ("fan_in", fan_in_normal),
}
"""Kinds of parameters without a node, and what they get. Other kinds are treated as unknown."""


def rule_of(loose: Loose, kind: str) -> tuple[str, Maker]:
    """The name of the rule that a parameter falls under, and what makes its value."""
    if loose.tensor.numel() == 0:
        return "empty", keep
    if _direction(loose) is not None:
        return "weight_norm", magnitude
    if _is_constant(loose.tensor):
        return "constant", keep
    if loose.tensor.numel() == 1:
        # Not finite, or it were constant; one changes nothing in a product and little in a sum.
        return "gain", ones
    if _is_ordered(loose.tensor):
        return "ordered", keep
    if isinstance(loose.module, (nn.RNNBase, nn.RNNCellBase)):
        kind = "recurrent_weight" if loose.tensor.dim() > 1 else "recurrent_bias"
    elif kind == "weight_gain" and sum(size > 1 for size in loose.tensor.shape) > 1:
        # A factor of a product of matrices, not a gain per channel.
        kind = "unknown"
    return RULES.get(kind, RULES["unknown"])


@torch.no_grad()
def fill(model: nn.Module, kinds: Mapping[str, str]) -> dict[str, str]:
    """Writes values into parameters that have no node.

    Args:
        model: with its other parameters predicted already.
        kinds: {parameter name: what it is}, as ``Graph.other``.

    Returns:
        {parameter name: the rule it got}.
    """
    applied = {}
    for name, kind in kinds.items():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = module._parameters[last]
        assert tensor is not None
        loose = Loose(name, tensor, module)
        applied[name], make = rule_of(loose, kind)
        if make is not keep:
            tensor.copy_(make(loose))
    return applied


_DIRECTIONS = {"weight_g": "weight_v", "original0": "original1"}


def _direction(loose: Loose) -> Tensor | None:
    """The direction whose magnitude this is (:func:`torch.nn.utils.weight_norm`)."""
    direction = getattr(loose.module, _DIRECTIONS.get(_last(loose.name), ""), None)
    if not isinstance(direction, Tensor) or direction.shape == loose.tensor.shape:
        return None
    matches = loose.tensor.dim() in (0, direction.dim()) and all(
        size in (1, other) for size, other in zip(loose.tensor.shape, direction.shape, strict=False)
    )
    return direction if matches else None


def _is_constant(tensor: Tensor) -> bool:
    first = tensor.detach().flatten()[0]
    return bool(first.isfinite()) and bool((tensor == first).all())


def _is_ordered(tensor: Tensor) -> bool:
    """Whether the values are strictly monotone along a dimension, everywhere.

    Of eight independent numbers only one order in 20,160 is, so that nearly always a look at one
    line is enough.
    """
    values = tensor.detach()
    for dim, size in enumerate(values.shape):
        if size >= _SHORTEST_ORDERED:
            line = values.movedim(dim, -1)[(0,) * (values.dim() - 1)]
            if _is_monotone(line, 0) and _is_monotone(values, dim):
                return True
    return False


def _is_monotone(values: Tensor, dim: int) -> bool:
    before, after = (values.narrow(dim, start, values.shape[dim] - 1) for start in (0, 1))
    return bool((before < after).all()) or bool((before > after).all())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _generator(loose: Loose) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(loose.name.encode()))
