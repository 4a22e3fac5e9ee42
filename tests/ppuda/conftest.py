"""A small GHN and where programs written for ppuda look for its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast.ppuda.ghn.nn import GHN

CONFIG: dict[str, Any] = {
    "max_shape": (16, 16, 5, 5),
    "num_classes": 6,
    "hypernet": "gatedgnn",
    "decoder": "conv",
    "weight_norm": True,
    "ve": True,
    "layernorm": True,
    "hid": 8,
}


@pytest.fixture
def ghn() -> GHN:
    torch.manual_seed(0)
    return GHN(**CONFIG).eval()


def write_published(ghn: GHN, path: Path) -> Path:
    """Writes a checkpoint as the public trainer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": ghn.state_dict(), "config": CONFIG, "epoch": 3}, path)
    return path


@pytest.fixture
def make_net() -> Callable[..., nn.Module]:
    """Makes small classifiers for 32 x 32 images."""

    def make(num_classes: int = 6) -> nn.Module:
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 8, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )
        net.expected_input_sz = 32  # type: ignore[assignment]
        return net

    return make
