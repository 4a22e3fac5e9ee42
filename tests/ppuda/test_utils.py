from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghn_fast.ppuda.deepnets1m.graph import Graph, GraphBatch
from ghn_fast.ppuda.ghn.nn import GHN
from ghn_fast.ppuda.utils import (
    AvgrageMeter,
    Trainer,
    accuracy,
    capacity,
    default_device,
    infer,
    rand_choice,
    set_seed,
)

MakeNet = Callable[..., nn.Module]


def test_capacity() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    assert capacity(net) == (3, 24)
    net[0].bias.requires_grad_(False)
    assert capacity(net) == (2, 20)
    assert capacity(net, is_grad=False) == (3, 24)


def test_accuracy() -> None:
    output = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    best, two = accuracy(output, torch.tensor([0, 2, 0, 2]), topk=(1, 2))
    assert (best.item(), two.item()) == (50.0, 75.0)


def test_meter() -> None:
    values = [3.0, 5.0, 10.0, 4.0]
    for measure, expected in (("std", np.std(values)), ("se", np.std(values) / 2)):
        meter = AvgrageMeter(measure)
        for value in values:
            meter.update(value)
        assert meter.avg == pytest.approx(5.5)
        assert meter.dispersion == pytest.approx(expected)
        assert (meter.sum, meter.cnt) == (22.0, 4)
    weighted = AvgrageMeter()
    weighted.update(1.0, 3)
    weighted.update(5.0)
    assert weighted.avg == 2.0
    with pytest.raises(ValueError, match="var"):
        AvgrageMeter("var")


class Constant(nn.Module):
    """Answers with class 1, as networks of the public code do: in a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(8.0).flip(0) - 9 * F.one_hot(torch.tensor(0), 8))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.logits.expand(len(images), -1), None


def test_infer(capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.tensor([1, 1, 2, 7])
    batches = [(torch.zeros(4, 3, 2, 2), labels), (torch.zeros(2, 3, 2, 2), labels[:2])]
    assert infer(Constant(), batches) == pytest.approx((100 * 4 / 6, 100 * 5 / 6))
    assert infer(Constant(), batches, verbose=True, n_batches=1) == pytest.approx((50.0, 75.0))
    assert "top1=50.00" in capsys.readouterr().out


def test_seed_and_choice() -> None:
    def draw() -> tuple[float, float, float]:
        set_seed(3)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    assert draw() == draw()
    assert {int(rand_choice(torch.tensor([4, 5, 6]), 2)) for _ in range(40)} == {4, 5}
    assert default_device() in ("cpu", "cuda")


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 6


@pytest.mark.parametrize("is_imagenet", [False, True])
def test_trainer_updates_a_ghn(ghn: GHN, make_net: MakeNet, is_imagenet: bool) -> None:
    images, labels = images_and_labels()
    ghn.train()
    expected = []
    with torch.no_grad():
        for net in (ghn(make_net().train()), ghn(make_net().train())):
            smoothing = 0.1 if is_imagenet else 0.0
            expected.append(F.cross_entropy(net(images), labels, label_smoothing=smoothing))
    optimizer = torch.optim.SGD(ghn.parameters(), lr=0.1)
    trainer = Trainer(optimizer, 6, is_imagenet, n_batches=10, device="cpu", grad_clip=1e-3)
    before = [parameter.detach().clone() for parameter in ghn.parameters()]
    graphs = GraphBatch([Graph(make_net()), Graph(make_net())])
    loss = trainer.update([make_net(), make_net()], images, labels, ghn=ghn, graphs=graphs)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    step = [(p - b).square().sum() for p, b in zip(ghn.parameters(), before, strict=True)]
    assert math.sqrt(sum(s.item() for s in step)) == pytest.approx(1e-4, rel=1e-2)
    assert trainer.metrics["loss"].avg == pytest.approx(loss.item())
    assert trainer.metrics["top1"].cnt == 16


def test_trainer_updates_a_network(make_net: MakeNet, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = images_and_labels()
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    trainer = Trainer(optimizer, 6, False, n_batches=10, device="cpu", log_interval=4)
    losses = []
    for _ in range(5):
        losses.append(trainer.update(net, images, labels).item())
        trainer.log()
    assert losses[-1] < losses[0]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["batch 4 of 10"]
    trainer.reset()
    assert trainer.metrics["loss"].cnt == trainer.step == 0


def test_trainer_stops_where_the_loss_is_no_number(make_net: MakeNet) -> None:
    images, labels = images_and_labels()
    net = make_net()
    trainer = Trainer(torch.optim.SGD(net.parameters(), lr=0.1), 6, False, 10, device="cpu")
    with pytest.raises(RuntimeError, match="not a number"):
        trainer.update(net, images * float("nan"), labels)
    with pytest.raises(NotImplementedError, match="several devices"):
        Trainer(trainer.optimizer, 6, False, 10, device=[0, 1])
