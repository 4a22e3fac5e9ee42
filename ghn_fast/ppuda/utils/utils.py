"""Small helpers."""

from __future__ import annotations

import random
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from ghn_fast.nets import adjust_net as fit_to_small_images

_FAMILIES = (
    *("ResNet", "DenseNet", "MobileNetV2", "MobileNetV3", "VGG", "AlexNet", "MNASNet"),
    *("ShuffleNetV2", "GoogLeNet", "ConvNeXt"),
)
"""Of torchvision, which the public code fits to small images."""


def capacity(model: nn.Module, is_grad: bool = True) -> tuple[int, int]:
    """The number of parameter tensors and of their elements.

    Args:
        is_grad: count those only that require gradients.
    """
    sizes = [p.numel() for p in model.parameters() if p.requires_grad or not is_grad]
    return len(sizes), sum(sizes)


def adjust_net(net: nn.Module, large_input: bool = False) -> nn.Module:
    """Fits a torchvision classifier to 32 x 32 images, in place, where the public code does.

    :func:`ghn_fast.adjust_net` knows more families; a network of one of these is left as it is
    here, with a warning, so that its graph is that of the public code.
    """
    if large_input or any(kind.__name__ in _FAMILIES for kind in type(net).__mro__):
        return fit_to_small_images(net, large_input)
    warnings.warn(
        f"{type(net).__name__} is not fitted to small images, as in ppuda; ghn_fast.adjust_net "
        "may know it",
        stacklevel=2,
    )
    net.expected_input_sz = 32  # type: ignore[assignment]
    return net


def default_device() -> str:
    """Where to compute: "cuda" if there is such a device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_seed(seed: int, only_torch: bool = False) -> None:
    """Seeds PyTorch's generators and, unless `only_torch`, Python's and NumPy's."""
    torch.manual_seed(seed)
    if not only_torch:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what programs that call this use


def rand_choice(x: Tensor, n: int | None = None) -> Tensor:
    """One of the first `n` entries of a tensor, of all where it is None, as a tensor of one."""
    return x[torch.randint(len(x) if n is None else min(n, len(x)), size=(1,))]
