"""Starts that cost no training of their own, to compare prediction with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast._system.batches import run
from ghn_fast._system.device import on_cpu
from ghn_fast._system.restored import restored
from ghn_fast._system.writable import check_writable

Model = TypeVar("Model", bound=nn.Module)

TOLERANCE, MOST_STEPS = 0.1, 10
"""Of a layer's variance about 1, and divisions of a layer (arXiv 1511.06422, algorithm 1)."""
QUERY_KEY, VALUE_PROJECTION = (0.7, 0.7), (0.4, 0.4)
"""Shares of noise and of the identity in vision transformers (arXiv 2305.09828, section 4)."""
WAVELENGTHS = 10_000.0
"""The longest of a table of positions, over 2 pi (arXiv 1706.03762, section 3.5)."""


@torch.no_grad()
def lsuv_(
    model: Model, inputs: Any, *, orth: bool = True, generator: torch.Generator | None = None
) -> Model:
    """Layer-sequential unit variance (arXiv 1511.06422): scales random weights by data, in place.

    Linear layers and convolutions get orthonormal weights, and one after the other, as the model
    runs them, are divided by the deviation of what they give, until its variance is 1 within 0.1.
    All of it takes one forward pass: a layer is run again alone, and what comes after it is fed
    its final outputs. Batch norm normalises by the inputs' own statistics meanwhile and keeps none.

    A weight that several layers share is scaled where it is used first. Layers that the model does
    not call, as the output projection of ``nn.MultiheadAttention``, those whose weight is computed
    from other parameters and those that share it with another kind of module, as an output layer
    with an embedding, keep theirs.

    Args:
        model: with its parameters at random.
        inputs: one batch, as the model takes it: a tensor or a dictionary of arguments.
        orth: begin with orthonormal weights; otherwise with those that the model has.
        generator: of the orthonormal weights, on the model's device.

    Returns:
        The same model.

    Raises:
        ValueError: what a layer gives is not finite, or a parameter is on the meta device, not yet
            initialised or made in inference mode. The model is as it was then.

    Examples:
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> inputs, _ = next(iter(loader))
        >>> model is ghn_fast.lsuv_(model, inputs)
        True
        >>> bool(0.9 < model.conv1(inputs).var() < 1.1)
        True
    """
    check_writable(model.named_parameters())
    layers = {layer: (name, layer.weight.clone()) for name, layer in _scaled(model)}
    done: set[int] = set()
    try:
        with restored(model), ExitStack() as stack:
            use_batch_statistics(model.eval())
            for layer, (name, _) in layers.items():
                before = partial(_orthogonalise, done, generator) if orth else _nothing
                stack.enter_context(layer.register_forward_pre_hook(before))
                after = partial(_scale, done, name)
                stack.enter_context(layer.register_forward_hook(after, with_kwargs=True))
            run(model, inputs)
    except BaseException:
        for layer, (_, weight) in layers.items():
            layer.weight.copy_(weight)
        raise
    return model


def _scaled(model: nn.Module) -> list[tuple[str, Any]]:
    """Linear layers and convolutions, by name, whose weights are theirs and no other kind's."""
    kinds = nn.Linear, _ConvNd
    others = [module for module in model.modules() if not isinstance(module, kinds)]
    shared = {id(value) for module in others for value in module._parameters.values()}
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
        and "weight" in layer._parameters
        and id(layer.weight) not in shared
    ]


def _nothing(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
    pass


def _orthogonalise(
    done: set[int], generator: torch.Generator | None, layer: Any, _: tuple[Any, ...]
) -> None:
    if id(layer.weight) not in done:
        # Any memory format, and precisions that have no QR decomposition.
        plain = torch.empty(layer.weight.shape, device=layer.weight.device)
        layer.weight.copy_(nn.init.orthogonal_(plain, generator=generator))


def _scale(
    done: set[int],
    name: str,
    layer: Any,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    output: Tensor,
) -> Tensor:
    if id(layer.weight) in done:
        return output
    done.add(id(layer.weight))
    for _ in range(MOST_STEPS):
        variance = float(output.float().var())
        if not math.isfinite(variance):
            raise ValueError(f"what layer {name!r} gives is not finite, or is a single number")
        if variance == 0 or abs(variance - 1) < TOLERANCE:
            break
        layer.weight.div_(math.sqrt(variance))
        output = layer.forward(*arguments, **keywords)
    return output


@torch.no_grad()
def mimetic_(
    model: Model, *, positions: bool = True, generator: torch.Generator | None = None
) -> Model:
    """Mimetic initialisation of a vision transformer's attention (arXiv 2305.09828), in place.

    The products of weights that attention sees become those of pre-trained transformers: of each
    head's query and key ``0.7 Z + 0.7 I``, cut to the head's rank, and of value and output
    projection ``0.4 Z - 0.4 I``, with Z of independent normal numbers of variance 1/D. Both factors
    of a product get the root of its singular values. Biases of these layers become 0.

    Learned tables of positions of a square grid become sines and cosines of rows and columns, each
    with a quarter of the D channels (arXiv 2205.01580); tokens before the grid keep theirs.

    Known are ``nn.MultiheadAttention`` and modules with one linear layer for query, key and value,
    all of one width, and one for the output, as timm's (``qkv``, ``proj``) and those of
    DeepNets-1M's networks. Others, as with fewer keys than queries, keep their values.

    Args:
        model: with its parameters at random.
        positions: also the tables of positions.
        generator: of Z, on the CPU.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no such attention, or a
            parameter is on the meta device, not yet initialised or made in inference mode.

    Examples:
        >>> model = torchvision.models.VisionTransformer(32, 4, 2, 3, 96, 192, num_classes=10)
        >>> model is ghn_fast.mimetic_(model, generator=torch.Generator().manual_seed(0))
        True
    """
    check_writable(model.named_parameters())
    found = [one for module in model.modules() if (one := _Attention.of(module)) is not None]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention that mimetic initialisation knows: "
            "nn.MultiheadAttention, or a module with num_heads and linear layers qkv, which gives "
            "queries, keys and values of one width, and proj"
        )
    for attention in found:
        attention.initialise(generator)
    for name, table in model.named_parameters() if positions else ():
        if "pos_embed" in name.rpartition(".")[2] and table.dim() == 3:
            _initialise_positions(table)
    return model


@torch.no_grad()
def select_weights_(model: Model, larger: nn.Module) -> Model:
    """Weight selection (arXiv 2311.18823): a trained model's weights, thinned out, in place.

    A parameter or buffer gets the values of the larger model's of the same name: in each
    dimension, evenly spaced ones, so that the channels chosen of one layer are those that the next
    layer reads. As libraries number blocks in their order, the first blocks of each stage are
    chosen. What is missing in the larger model, has other dimensions or is larger than there keeps
    its value, and so do integers, such as indices, of another shape. An output layer for other
    classes gets values of theirs: fit it (:func:`ghn_fast.fit_head_`) or train it.

    Args:
        model: of the same family as the larger one, as ``vit_tiny`` and ``vit_small`` of timm.
        larger: with trained parameters; is not changed.

    Returns:
        The same model.

    Raises:
        ValueError: the larger model has no value that fits, or a
            parameter is on the meta device, not yet initialised or made in inference mode.

    Examples:
        >>> model, larger = torchvision.models.resnet18(), torchvision.models.resnet34()
        >>> model is ghn_fast.select_weights_(model, larger)
        True
        >>> bool(torch.equal(model.layer2[1].conv1.weight, larger.layer2[1].conv1.weight))
        True
    """
    check_writable(model.named_parameters())
    if any(parameter.is_meta for parameter in larger.parameters()):
        raise ValueError("the larger model is on the meta device: load its trained weights first")
    given = larger.state_dict()
    fitting = [
        (value, given[name])
        for name, value in model.state_dict().items()
        if name in given and _fits(value, given[name])
    ]
    if not fitting:
        raise ValueError(
            f"{type(larger).__name__} has no parameter of a name of {type(model).__name__}'s that "
            "is as large: weight selection needs a larger model of the same family"
        )
    for value, source in fitting:
        for axis, (count, whole) in enumerate(zip(value.shape, source.shape, strict=True)):
            chosen = torch.arange(count, device=source.device) * whole // max(count, 1)
            source = source.index_select(axis, chosen)
        value.copy_(source)
    return model


def _fits(value: Any, source: Any) -> bool:
    """Whether values can be chosen of a source; a module's extra state may be anything."""
    if not (isinstance(value, Tensor) and isinstance(source, Tensor)):
        return False
    if not all(one.is_floating_point() or one.is_complex() for one in (value, source)):
        return value.shape == source.shape  # of indices, some alone point to nothing
    pairs = zip(value.shape, source.shape, strict=False)
    return value.dim() == source.dim() and all(size <= whole for size, whole in pairs)


@dataclass
class _Attention:
    """The parameters of an attention layer.

    Attributes:
        joint: weight of query, key and value (3 A, D), one after the other.
        projection: weight of the output (D, A).
        heads: by which A is divided.
        biases: of both.
    """

    joint: Tensor
    projection: Tensor
    heads: int
    biases: Sequence[Tensor]

    @classmethod
    def of(cls, module: Any) -> _Attention | None:
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            biases = [module.in_proj_bias, module.out_proj.bias]
            parts = module.in_proj_weight, module.out_proj.weight, module.num_heads
            return cls(*parts, [bias for bias in biases if bias is not None])
        joint, output, heads = (_first(module, names) for names in _NAMES)
        if isinstance(output, nn.Sequential):
            output = next((layer for layer in output if isinstance(layer, nn.Linear)), None)
        if not (isinstance(joint, nn.Linear) and isinstance(output, nn.Linear)):
            return None
        width, inner = output.weight.shape
        fits = joint.weight.shape == (3 * inner, width)
        if not (fits and isinstance(heads, int) and heads > 0 and inner % heads == 0):
            return None
        biases = [layer.bias for layer in (joint, output) if layer.bias is not None]
        return cls(joint.weight, output.weight, heads, biases)

    def initialise(self, generator: torch.Generator | None) -> None:
        query, key, value = self.joint.chunk(3)
        for rows in zip(query.chunk(self.heads), key.chunk(self.heads), strict=True):
            self._factorise(*rows, QUERY_KEY, 1.0, generator)
        self._factorise(value, self.projection.T, VALUE_PROJECTION, -1.0, generator)
        for bias in self.biases:
            bias.zero_()

    @on_cpu()
    def _factorise(
        self,
        left: Tensor,
        right: Tensor,
        shares: tuple[float, float],
        sign: float,
        generator: torch.Generator | None,
    ) -> None:
        """Writes ``left`` and ``right`` (K, D): ``left.T @ right`` is near noise +- identity."""
        rank, width = left.shape
        # On the CPU: the same numbers for every device, and small decompositions are fast there.
        noise = torch.randn(width, width, generator=generator) / math.sqrt(width)
        u, s, v = torch.linalg.svd(shares[0] * noise + sign * shares[1] * torch.eye(width))
        root = s[:rank].sqrt().unsqueeze(1)
        factors = root * u.T[:rank], root * v[:rank]
        if rank > width:
            # The product needs D rows; what is zero in both factors would never get a gradient.
            spread = nn.init.orthogonal_(torch.empty(rank, width), generator=generator)
            factors = spread @ factors[0], spread @ factors[1]
        left.copy_(factors[0])
        right.copy_(factors[1])


_NAMES = ("qkv", "to_qkv"), ("proj", "to_out"), ("num_heads", "heads")
"""What the joint layer, the output layer and the number of heads are called."""


def _first(module: nn.Module, names: tuple[str, ...]) -> Any:
    return next((value for n in names if (value := getattr(module, n, None)) is not None), None)


@on_cpu()
def _initialise_positions(table: Tensor) -> None:
    """Of a table (1, N, D) whose last tokens are a square grid; others stay as they are."""
    count, width = table.shape[1:]
    side = math.isqrt(count)
    if count - side**2 > 1 or width % 4:
        return
    waves = WAVELENGTHS ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side)[:, None] * waves
    waving = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waving[:, None].expand(side, side, -1)
    grid = torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)
    table[0, count - side**2 :].copy_(grid)
