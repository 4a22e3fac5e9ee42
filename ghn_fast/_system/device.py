"""What a device is fed: where tensors are moved to, in which layout and precision networks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode


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


@contextmanager
def bfloat16_where_faster(device: torch.device) -> Iterator[None]:
    """Layers that run meanwhile are in bfloat16 where they train faster so, backward too.

    That is on a GPU, and on a CPU with products of bfloat16 (AVX512-BF16, which those with AMX have
    too). There depthwise convolutions stay in float32 unless they are plain 3x3 ones: oneDNN takes
    3 to 10 times as long for the gradients of others in bfloat16 (docs/training.md).
    """
    is_cpu = device.type == "cpu"
    is_faster = torch.cpu._is_avx512_bf16_supported() if is_cpu else device.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=is_faster))
        if is_cpu and is_faster:
            stack.enter_context(_SlowInFloat32())
        yield


class _SlowInFloat32(TorchFunctionMode):
    """Runs depthwise convolutions but plain 3x3 ones in float32, whatever autocast says."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return (_conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    others = stride, padding, dilation, groups
    is_depthwise = groups == input.shape[-3] > 1
    is_plain = weight.shape[2:] == (3, 3) and {*_pair(stride), *_pair(dilation)} == {1}
    if not is_depthwise or is_plain:
        return F.conv2d(input, weight, bias, *others)
    with torch.autocast("cpu", enabled=False):
        wide = None if bias is None else bias.float()
        return F.conv2d(input.float(), weight.float(), wide, *others).bfloat16()
