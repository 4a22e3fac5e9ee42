from __future__ import annotations

import pytest
import torch
from torch import nn

from ghn_fast.train.config import TrainConfig
from ghn_fast.train.schedule import learning_rate, update_average


def test_warm_up_and_cosine() -> None:
    config = TrainConfig(lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(config, step, progress=0.0) for step in (0, 4, 9, 100)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0])
    ends = [learning_rate(config, 100, progress) for progress in (0.5, 1.0, 2.0)]
    assert ends == pytest.approx([0.55, 0.1, 0.1])


def test_steps_down_at_milestones() -> None:
    config = TrainConfig(lr=1.0, warmup_steps=0, schedule="step", milestones=(0.5, 0.9), decay=0.1)
    rates = [learning_rate(config, 0, progress) for progress in (0.0, 0.49, 0.5, 0.9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01])


def test_constant() -> None:
    config = TrainConfig(lr=0.5, warmup_steps=0, schedule="constant")
    assert learning_rate(config, 0, 0.99) == 0.5


def test_average_approaches_the_weights() -> None:
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    wanted = average.weight.detach().lerp(model.weight.detach(), 0.25)
    update_average(average, model, decay=0.75, step=1000)
    torch.testing.assert_close(average.weight.detach(), wanted)


def test_the_first_steps_forget_the_initial_weights() -> None:
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    distance = (average.weight - model.weight).norm()
    for step in range(20):
        update_average(average, model, decay=0.999, step=step)
    assert (average.weight - model.weight).norm() < 1e-3 * distance


def test_warm_up_ends_after_a_tenth_of_a_short_run() -> None:
    config = TrainConfig(lr=1.0, warmup_steps=200, schedule="constant")
    rates = [learning_rate(config, step, step / 31) for step in range(31)]
    assert rates[0] == 1 / 200
    assert rates[2] == pytest.approx(20 / 31)
    assert rates[4:] == [1.0] * 27
