"""Takes strides away from a network's first layers, so that small images leave a map behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ghn_fast._system.batches import fed
from ghn_fast.graph.trace.preserve import preserved

SMALLEST_MAP = 3
"""Pixels of the last feature map: 4 of a ResNet for CIFAR-10, 3 of a ConvNeXt without padding."""

_LAYERS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class _Shrinking(NamedTuple):
    """A layer that gives a smaller map than it takes."""

    layer: Any
    before: int
    after: int

    @property
    def by_stride(self) -> bool:
        return max(_pair(self.layer.stride)) > 1


class _Run(NamedTuple):
    """What is seen of a network that runs on images: its output's shape, None if it fails."""

    shrinking: list[_Shrinking]
    output: tuple[int, ...] | None

    def leaves(self, size: int) -> bool:
        """Whether no map is smaller than that."""
        return self.output is not None and all(one.after >= size for one in self.shrinking)


def lower_strides(model: nn.Module, image_size: int, smallest_map: int = SMALLEST_MAP) -> bool:
    """Lowers the downsampling of a network's first layers, in place.

    All layers that shrink maps of the largest size lose their stride together, a block's shortcut
    with its branch, then those of the next size, until the last map has ``smallest_map`` pixels.
    The network runs for its shapes alone, on the meta device.

    Returns:
        Whether images of that size now leave such a map, as far as convolutions and pools tell. If
        they do not, because the network cannot run on them, its output would be another or it
        shrinks its maps in other ways, it is as it was.

    Examples:
        >>> model = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(5)))
        >>> lower_strides(model, image_size=32), [layer.stride[0] for layer in model]
        (True, [1, 1, 2, 2, 2])
    """
    changed: list[tuple[Any, dict[str, Any]]] = []
    first = last = _run(model, image_size)
    while not last.leaves(smallest_map):
        strided = [one for one in last.shrinking if one.by_stride]
        if not strided:
            break
        size = max(one.before for one in strided)
        changed += [
            (one.layer, _without_stride(one.layer)) for one in strided if one.before == size
        ]
        last = _run(model, image_size)
    if last.leaves(smallest_map) and _same_vector(first.output, last.output):
        return True
    for layer, before in reversed(changed):
        vars(layer).update(before)
    return False


def remove_strides(modules: Iterable[nn.Module]) -> None:
    """Takes the strides of all convolutions away."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)


def _same_vector(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> bool:
    """Whether what is no map, such as logits, has the size that it had."""
    return before is None or len(before) > 2 or before == after


def _without_stride(layer: Any) -> dict[str, Any]:
    """Sets the stride to 1; the settings there were."""
    before = {name: vars(layer)[name] for name in ("stride", "kernel_size")}
    layer.stride = (1, 1)
    if not isinstance(layer, nn.Conv2d) and _pair(layer.padding) == (0, 0):
        layer.kernel_size = (1, 1)  # what it pooled was for its stride alone
    return before


def _run(model: nn.Module, image_size: int) -> _Run:
    found: list[_Shrinking] = []

    def note(layer: Any, arguments: Any, named: Any, output: Any) -> None:
        before, after = fed(arguments, named).shape[-1], _first(output).shape[-1]
        # A pool over a whole map is no map's end.
        whole = not isinstance(layer, nn.Conv2d) and min(_pair(layer.kernel_size)) >= before
        if after < before and not whole:
            found.append(_Shrinking(layer, before, after))

    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    images = torch.empty(1, 3, image_size, image_size, device="meta", dtype=dtype)
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    try:
        with preserved(model, list(model.modules())), torch.no_grad():
            for layer in layers:
                layer.register_forward_hook(note, with_kwargs=True)
            tensors = {name: tensor.to("meta") for name, tensor in _tensors(model)}
            output = torch.func.functional_call(model.eval(), tensors, (images,))
        return _Run(found, tuple(_first(output).shape))
    except Exception:  # whatever a model says of images of another size
        return _Run(found, None)


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
