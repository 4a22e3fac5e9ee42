"""Making predicted parameters a better start for fine-tuning (arXiv 2207.10049).

A GHN decodes blocks of limited size and tiles them, so that the channels of a wide layer repeat
each other and get equal gradients. Noise breaks the symmetry; orthogonal weights do not repeat.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from ghn_fast._system.writable import check_writable

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def refine_(
    model: Model,
    orth: bool = True,
    noise: float = 0.0,
    first_layer: int = 0,
    min_channels: int = 0,
    generator: torch.Generator | None = None,
) -> Model:
    """Adds noise to a model's weights and makes them orthogonal, in place, as GHN-orth does.

    All weights of two or more dimensions but the last, the classification layer's, count: of
    linear layers, convolutions and embeddings, in the order of ``model.modules()``, a weight that
    several modules share once, as the last if one of them is. First come
    the noise, then the nearest rows or columns in the sense of a QR decomposition, with signs that
    keep their directions. What the noise is scaled by is the deviation of the correlations
    between a weight's rows: where rows repeat each other it is large.

    With ``orth=False`` and a small ``noise`` this is what the public GHN-3 code does after
    predicting; ``orth=True`` alone is GHN-orth.

    Args:
        model: with predicted parameters.
        orth: make the weights orthogonal; their scale is lost, each weight gets singular values
            of 1.
        noise: the deviation of the noise as a multiple of that of the correlations (``beta``).
        first_layer: leave the weights before this one, counted from 1, as they are.
        min_channels: leave weights with no more channels than this on both sides as they are, and
            add noise only beyond so many channels: what a block of that size was tiled to.
        generator: of the noise, on any device: there it is drawn.

    Returns:
        The same model.

    Raises:
        ValueError: a negative number, a weight that is computed from other parameters, or a
            parameter on the meta device, not yet initialised or made in inference mode.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> generator = torch.Generator().manual_seed(0)
        >>> model is ghn_fast.refine_(model, first_layer=14, generator=generator)
        True
    """
    if noise < 0 or first_layer < 0 or min_channels < 0:
        raise ValueError("noise, first_layer and min_channels must not be negative")
    check_writable(model.named_parameters())
    for number, weight in enumerate(_weights(model)[:-1], start=1):
        if number < first_layer or max(weight.shape[:2]) <= min_channels:
            continue
        if noise > 0:
            _add_noise(weight, noise, min_channels, generator)
        if orth:
            weight.copy_(orthogonal(weight))
    return model


def refine_last_third_(model: Model, generator: torch.Generator | None = None) -> Model:
    """:func:`refine_` with the noise and the share of layers that ``ghn-fast fit --refine`` takes.

    Args:
        model: with its parameters predicted.
        generator: of the noise; None for PyTorch's default one.

    Returns:
        The same model.

    Raises:
        ValueError: see :func:`refine_`.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> model is refine_last_third_(model)
        True
    """
    first = 1 + round(2 / 3 * count_layers(model))
    return refine_(model, noise=3e-5, first_layer=first, generator=generator)


def count_layers(model: nn.Module) -> int:
    """How many weights :func:`refine_` counts, the classification layer's among them."""
    return len(_weights(model))


def orthogonal(weight: Tensor) -> Tensor:
    """The weight with orthonormal rows or columns, whichever are fewer.

    Rows are output channels; all other dimensions make the columns.
    """
    matrix = weight.flatten(1)
    is_wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if is_wide else matrix
    # QR is not there in half precision.
    q, r = torch.linalg.qr(tall.float())
    # A weight that was tiled may lack rank: a zero on the diagonal must not remove its direction.
    q = torch.where(r.diagonal() < 0, -q, q)
    return (q.T if is_wide else q).reshape(weight.shape).to(weight.dtype)


def _weights(model: nn.Module) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or "weight" in module._buffers:
            continue
        if "weight" not in module._parameters:
            raise ValueError(
                f"{name}.weight is computed from other parameters (weight or spectral "
                "normalisation, for example); refine the model before it is parametrised so"
            )
        # A shared weight takes the place of its last use: a tied one is the classifier's.
        found.pop(id(weight), None)
        found[id(weight)] = weight.data
    return list(found.values())


def _add_noise(
    weight: Tensor, noise: float, min_channels: int, generator: torch.Generator | None
) -> None:
    part = weight[min_channels:, min_channels:]
    device = weight.device if generator is None else generator.device
    values = torch.randn(part.shape, generator=generator, dtype=weight.dtype, device=device)
    part.add_(values.to(weight.device), alpha=noise * _correlation_deviation(weight))


def _correlation_deviation(weight: Tensor) -> float:
    """The standard deviation of all correlations between rows of the tall matrix.

    There are as many as the square of its rows, 629 million for VGG's first linear layer, so none
    is computed: with rows z of length 1 and mean 0, the sum of all products of two is the square
    of the rows' sum, and that of their squares the square of the norm of the columns' products.
    """
    matrix = weight.flatten(1).float()
    tall = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    centred = tall - tall.mean(1, keepdim=True)
    deviation = centred.norm(dim=1, keepdim=True)
    # Rows of one value, which the mean may miss by its rounding, have no correlations.
    varies = deviation > 4 * torch.finfo(torch.float32).eps * tall.norm(dim=1, keepdim=True)
    rows = torch.where(varies, centred / deviation, 0.0)
    count = len(rows) ** 2
    total = rows.sum(0, dtype=torch.float64).square().sum().item()
    squares = torch.linalg.vector_norm(rows.T @ rows, dtype=torch.float64).square().item()
    return math.sqrt(max(squares - total**2 / count, 0.0) / (count - 1)) if count > 1 else 0.0
