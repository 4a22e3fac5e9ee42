"""Training GHNs.

Knows everything below it; nothing of the command line, and nothing is trained elsewhere.
"""

from __future__ import annotations

from ghn_fast._system.device import images_to_device
from ghn_fast._system.processes import Processes, choose_device, process_group
from ghn_fast.nets.measure.work import network_work
from ghn_fast.train.config import PRESETS, ConfigError, TrainConfig
from ghn_fast.train.log import read_log
from ghn_fast.train.networks import NetworkStream
from ghn_fast.train.plot import plot_run
from ghn_fast.train.step import StepResult, train_step
from ghn_fast.train.teacher import Teacher
from ghn_fast.train.trainer import Trainer

__all__ = [
    "PRESETS",
    "ConfigError",
    "NetworkStream",
    "Processes",
    "StepResult",
    "Teacher",
    "TrainConfig",
    "Trainer",
    "choose_device",
    "images_to_device",
    "network_work",
    "plot_run",
    "process_group",
    "read_log",
    "train_step",
]
