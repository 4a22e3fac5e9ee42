"""Training GHNs."""

from __future__ import annotations

from ghn_fast.train.config import ConfigError, TrainConfig
from ghn_fast.train.log import read_log
from ghn_fast.train.networks import NetworkStream
from ghn_fast.train.step import StepResult, train_step
from ghn_fast.train.trainer import Trainer
from ghn_fast.train.work import network_work

__all__ = [
    "ConfigError",
    "NetworkStream",
    "StepResult",
    "TrainConfig",
    "Trainer",
    "network_work",
    "read_log",
    "train_step",
]
