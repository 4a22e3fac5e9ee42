"""Takes strides away from a network's first layers, so that small images leave a map behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

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


def lower_strides(model: nn.Module, image_size: int, smallest_map: int = SMALLEST_MAP) -> bool:
    """Lowers the downsampling of a network's first layers, in place.

    All layers that shrink maps of the largest size lose their stride together, a block's shortcut
    with its branch, then those of the next size, until the last map has ``smallest_map`` pixels.
    The network runs for its shapes alone, on the meta device.

    Returns:
        Whether images of that size now leave such a map. If they do not, because the network
        cannot run on them or shrinks its maps in other ways, it is as it was.

    Examples:
        >>> model = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(5)))
        >>> lower_strides(model, image_size=32), [layer.stride[0] for layer in model]
        (True, [1, 1, 2, 2, 2])
    """
    shrinking = _shrinkings(model, image_size)
    changed: list[tuple[Any, dict[str, Any]]] = []
    for together in _by_size(shrinking or ()):
        if _last_map(shrinking, image_size) >= smallest_map:
            break
        changed += [(one.layer, _without_stride(one.layer)) for one in together]
        shrinking = _shrinkings(model, image_size)
    if _last_map(shrinking, image_size) >= smallest_map:
        return True
    for layer, before in reversed(changed):
        vars(layer).update(before)
    return False


def _by_size(shrinking: Iterable[_Shrinking]) -> list[list[_Shrinking]]:
    """Those with a stride, together where they take maps of one size, the largest first."""
    sizes = sorted({one.before for one in shrinking if one.by_stride}, reverse=True)
    return [[one for one in shrinking if one.before == size and one.by_stride] for size in sizes]


def _last_map(shrinking: Iterable[_Shrinking] | None, image_size: int) -> int:
    """Its pixels; none if the network does not run."""
    return 0 if shrinking is None else min((one.after for one in shrinking), default=image_size)


def _without_stride(layer: Any) -> dict[str, Any]:
    """Sets the stride to 1; the settings there were."""
    names = ("stride", "kernel_size", "padding")
    before = {name: vars(layer)[name] for name in names}
    if isinstance(layer, nn.Conv2d):
        layer.stride = (1, 1)
        return before
    layer.stride = 1
    if layer.padding in (0, (0, 0)):  # what it pooled was for its stride alone
        layer.kernel_size = 1
    return before


def _shrinkings(model: nn.Module, image_size: int) -> list[_Shrinking] | None:
    """The layers that shrink maps in the order in which they run; None if they do not run."""
    found: list[_Shrinking] = []

    def note(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        before, after = inputs[0].shape[-1], output.shape[-1]
        if after < before:
            found.append(_Shrinking(layer, before, after))

    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with _in_evaluation(model), torch.no_grad():
            tensors = {name: tensor.to("meta") for name, tensor in _tensors(model)}
            images = torch.empty(1, 3, image_size, image_size, device="meta")
            torch.func.functional_call(model, tensors, (images,))
    except Exception:  # whatever a model says of images of another size
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
