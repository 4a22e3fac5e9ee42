"""In which precision layers are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghn_fast._system.device import bfloat16_where_faster

CPU = torch.device("cpu")


class Convolutions(TorchDispatchMode):
    """Records the precision that convolutions are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU has products of bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("options", "is_slow"),
    [
        ({"kernel_size": 3}, False),
        ({"kernel_size": 7, "stride": 2}, False),
        ({"kernel_size": 5, "groups": 2}, False),
        ({"kernel_size": 3, "groups": 4}, False),
        ({"kernel_size": 1, "groups": 4}, True),
        ({"kernel_size": 3, "groups": 4, "stride": 2}, True),
        ({"kernel_size": 3, "groups": 4, "dilation": 2}, True),
        ({"kernel_size": (1, 5), "groups": 4, "padding": "same"}, True),
        ({"kernel_size": 5, "groups": 4, "padding_mode": "circular", "padding": 2}, True),
    ],
)
def test_all_but_slow_depthwise_convolutions_are_in_bfloat16(
    options: dict[str, Any], is_slow: bool, has_bfloat16: bool
) -> None:
    layer = nn.Conv2d(4, 8, **options)
    images = torch.randn(2, 4, 9, 9)
    expected = layer(images)
    with Convolutions() as seen, bfloat16_where_faster(CPU):
        got = layer(images)
    is_bfloat16 = has_bfloat16 and not is_slow
    assert seen.dtypes == [torch.bfloat16 if is_bfloat16 else torch.float32]
    assert got.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)


def test_gradients_are_those_of_float32(has_bfloat16: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5, 2, 2, groups=8), nn.Conv2d(8, 4, 1))
    images = torch.randn(4, 3, 12, 12)
    own = _gradients(net, images)
    with bfloat16_where_faster(CPU):
        mixed = _gradients(net, images)
    for gradient, like in zip(mixed, own, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - like).norm() <= 0.02 * like.norm()


def _gradients(net: nn.Module, images: Tensor) -> list[Tensor]:
    loss = net(images).float().square().mean()
    return list(torch.autograd.grad(loss, list(net.parameters())))


def test_arguments_by_name_are_those_of_conv2d(has_bfloat16: bool) -> None:
    images, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    named = {"stride": 2, "padding": 1, "groups": 4}
    with bfloat16_where_faster(CPU):
        by_name = F.conv2d(images, weight=weight, **named)
        of_one = F.conv2d(images[0], weight, None, 2, 1, 1, 4)
    expected = F.conv2d(images, weight, **named)
    torch.testing.assert_close(by_name.float(), expected, rtol=0.01, atol=0.02)
    torch.testing.assert_close(of_one, by_name[0])
    with pytest.raises(RuntimeError, match="groups"), bfloat16_where_faster(CPU):
        F.conv2d(images, weight, groups=3)
