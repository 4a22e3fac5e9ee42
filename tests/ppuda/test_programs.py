"""Programs written for ppuda, with nothing but their import lines changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import ghn_fast
from ghn_fast.ppuda.deepnets1m.genotypes import DARTS, ViT
from ghn_fast.ppuda.deepnets1m.net import Network
from ghn_fast.ppuda.ghn.nn import CHECKPOINTS_VARIABLE, GHN2
from ghn_fast.ppuda.utils import adjust_net, capacity, infer


def torch_model() -> nn.Module:
    return adjust_net(torchvision.models.resnet50(num_classes=10), large_input=False)


def custom_cnn() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=5),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(64, 128, kernel_size=3),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(128, 256, kernel_size=3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    model.expected_input_sz = 32  # type: ignore[assignment]
    return model


def darts() -> nn.Module:
    return Network(
        C=36,
        num_classes=10,
        genotype=DARTS,
        n_cells=20,
        norm="bn-track",
        stem_type=0,
        is_imagenet_input=False,
    )


def vit() -> nn.Module:
    return Network(
        C=128,
        num_classes=10,
        genotype=ViT,
        n_cells=12,
        preproc=False,
        C_mult=1,
        is_imagenet_input=False,
    )


# The numbers of parameters, and the 2-norm of all of them as the public code (4673a42) predicts
# them from the same checkpoint.
@pytest.mark.parametrize(
    ("make", "size", "norm"),
    [
        (torch_model, 23_520_842, 173.35727156),
        (custom_cnn, 376_458, 7.91584263),
        (darts, 3_349_342, 154.23213473),
        (vit, 1_012_234, 71.01466471),
    ],
)
def test_examples(
    make: Callable[[], nn.Module],
    size: int,
    norm: float,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = shared / "conformance" / "checkpoints" / "ghn2_cifar10_random.pt"
    (tmp_path / "ghn2_cifar10.pt").symlink_to(file)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model = GHN2("cifar10").to("cpu")(model)
    assert capacity(model)[1] == size
    squares = [p.detach().double().square().sum() for p in model.parameters()]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(norm, rel=1e-6)
    batch = (torch.randn(2, 3, 32, 32), torch.tensor([3, 4]))
    top1, top5 = infer(model, [batch])
    assert 0 <= top1 <= top5 <= 100


def test_ghn_fast_does_not_know_of_it() -> None:
    package = Path(ghn_fast.__file__).parent
    sources = [path for path in package.rglob("*.py") if "ppuda" not in path.parts]
    assert len(sources) > 20
    for path in sources:
        assert "ghn_fast.ppuda" not in path.read_text(), path
