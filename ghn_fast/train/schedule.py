"""Learning rates over a run, and the running average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from ghn_fast.train.config import TrainConfig

LONGEST_WARMUP = 0.1
"""Share of a run."""


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        config: its schedule.
        step: from 0; decides the warm-up, which ends after a tenth of the run at the latest.
        progress: the share of the run that has passed, from 0 to 1; decides the rest.
    """
    warmup = 1.0
    if config.warmup_steps > 0:
        warmup = min(1.0, max((step + 1) / config.warmup_steps, progress / LONGEST_WARMUP))
    return config.lr * warmup * _decay(config, min(max(progress, 0.0), 1.0))


def _decay(config: TrainConfig, progress: float) -> float:
    if config.schedule == "cosine":
        wave = 0.5 * (1 + math.cos(math.pi * progress))
        return config.final_lr + (1 - config.final_lr) * wave
    if config.schedule == "step":
        return config.decay ** sum(progress >= milestone for milestone in config.milestones)
    return 1.0


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves the exponential moving average of the weights a step on.

    Early steps count for less, so that the initial weights are forgotten soon.
    """
    decay = min(decay, (1 + step) / (10 + step))
    targets = [parameter.detach() for parameter in average.parameters()]
    sources = [parameter.detach() for parameter in model.parameters()]
    torch._foreach_lerp_(targets, sources, 1 - decay)
