"""What follows from a predicted weight, so that its layer computes with what was predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from ghn_fast.ghn.place.fill import LAYER_SCALE
from ghn_fast.ghn.place.uses import Uses

_DIRECTIONS = {"weight_g": "weight_v", "original0": "original1"}
_SPECTRAL = ("_orig", "original")
_POWER_ITERATIONS = 15
"""As many as PyTorch does for a weight that is drawn at random."""


def magnitudes(uses: Uses, names: Iterable[str], decoded: Sequence[str]) -> dict[str, Tensor]:
    """Norms of weights that are kept as direction and magnitude (arXiv 1602.07868).

    Args:
        uses: of the model, which has its predicted tensors already.
        names: of parameters that are not decoded and may change.
        decoded: names of those that are.

    Returns:
        {parameter name: the norm of the direction that was predicted}; differentiable.
    """
    owners = (uses.owners[name] for name in decoded)
    predicted = {id(module._parameters[own]) for module, own in owners}
    found = {}
    for name in names:
        for module, own in uses.places(name):
            direction = module._parameters.get(_DIRECTIONS.get(own, ""))
            if direction is None or id(direction) not in predicted:
                continue
            value = _norm(direction, uses.parameters[name].shape)
            if value is not None:
                found[name] = value
    return found


def has_small_scale(scale: Tensor) -> bool:
    """Whether a layer scale is a constant between 0 and 0.1, as an author sets it.

    The constant (1e-6 in ConvNeXt, 1e-5 in deep CaiTs) lets each block start as the identity while
    its weights are random; so small a factor silences predicted weights as well. What training has
    made of a layer scale is no constant.
    """
    if sum(size > 1 for size in scale.shape) != 1 or scale.is_complex():
        return False
    values = scale.detach().flatten()
    return bool((values == values[0]).all() & (values[0] > 0) & (values[0] < LAYER_SCALE))


def _norm(direction: Tensor, shape: torch.Size) -> Tensor | None:
    """Of a direction, over the dimensions that a magnitude of this shape does not have."""
    if direction.shape == shape or len(shape) not in (0, direction.dim()):
        return None
    if any(size not in (1, other) for size, other in zip(shape, direction.shape, strict=False)):
        return None
    values = direction.float()
    if not shape:
        return values.norm()
    shared = [dim for dim, size in enumerate(shape) if size == 1]
    return torch.linalg.vector_norm(values, dim=shared, keepdim=True)


@torch.no_grad()
def settle_spectral_norms(uses: Uses, decoded: Iterable[str]) -> None:
    """Power iterations for the vectors that estimate predicted weights' norms (arXiv 1802.05957).

    Args:
        uses: of the model.
        decoded: names of the parameters that were predicted.
    """
    for name in decoded:
        for module, own in uses.places(name):
            if not own.endswith(_SPECTRAL):
                continue
            for weight, u, v, eps in _spectral(module, own, uses.parameters[name]):
                for _ in range(_POWER_ITERATIONS):
                    nn.functional.normalize(weight @ v, dim=0, eps=eps, out=u)
                    nn.functional.normalize(weight.mT @ u, dim=0, eps=eps, out=v)


def _spectral(
    module: Any, name: str, weight: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """The weight as a matrix, its two vectors and their epsilon, in both forms of PyTorch."""
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        for norm in module:
            # A vector is divided by its length, which needs no estimate.
            if isinstance(norm, _SpectralNorm) and weight.dim() > 1:
                yield norm._reshape_weight_to_matrix(weight), norm._u, norm._v, norm.eps
        return
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm) and name == f"{hook.name}_orig":
            vectors = (getattr(module, f"{hook.name}_{letter}") for letter in "uv")
            yield hook.reshape_weight_to_matrix(weight), *vectors, hook.eps
