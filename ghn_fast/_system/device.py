"""What a device is fed: where tensors are moved to, in which layout and precision networks run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def on_cpu() -> Iterator[None]:
    """What is made meanwhile lies on the CPU, whatever the default device is."""
    with torch.device("cpu"):
        yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, or itself if it is there.

    To a CUDA device it is copied through pinned memory, so that the host waits neither for the
    copy nor for what the device still has to do; the copy is in the order of the current stream.
    """
    pins = device.type == "cuda" and tensor.device.type == "cpu"
    if pins and not torch.compiler.is_compiling() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def images_to_device(images: Tensor, device: torch.device) -> Tensor:
    """Images (B, C, H, W) on a device, in the memory format in which networks run fast there.

    On a CPU channels last, as they are made. On a GPU contiguous: for channels last PyTorch gives
    all depthwise convolutions, of which DeepNets-1M is full, to cuDNN, which has to prepare every
    new shape; a network takes seven times as long for the first time (docs/training.md).
    """
    moved = to_device(images, device)
    return moved.contiguous() if device.type == "cuda" else moved


def place(model: nn.Module, device: torch.device) -> None:
    """Moves a network, its weights in the memory format that is fastest there: that of images.

    But on a GPU cuDNN prepares each shape of a depthwise convolution that is channels last.
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
    is_slow = device.type == "cuda" and depthwise
    form = torch.contiguous_format if is_slow else torch.channels_last
    model.to(device).to(memory_format=form)


def bfloat16_is_faster(model: nn.Module, device: torch.device) -> bool:
    """Whether a network trains faster with its layers in bfloat16 than in float32.

    On a GPU it does. On a CPU only with products of bfloat16 (AVX512-BF16, which those with AMX
    have too), and not with depthwise convolutions larger than 3x3, which oneDNN runs up to several
    times slower then (docs/training.md).
    """
    if device.type != "cpu":
        return device.type == "cuda"
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    large = any(m.groups == m.in_channels > 1 and max(m.kernel_size) > 3 for m in convolutions)
    return torch.cpu._is_avx512_bf16_supported() and not large
