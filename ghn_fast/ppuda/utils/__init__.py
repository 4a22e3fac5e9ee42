"""``ppuda.utils``: fitting, measuring and training networks.

Names and arguments only, and the loop that ppuda trains single networks with.
"""

from __future__ import annotations

from ghn_fast.ppuda.utils.metrics import AvgrageMeter, CrossEntropyLabelSmooth, accuracy, infer
from ghn_fast.ppuda.utils.trainer import Trainer
from ghn_fast.ppuda.utils.utils import adjust_net, capacity, default_device, rand_choice, set_seed

__all__ = [
    "AvgrageMeter",
    "CrossEntropyLabelSmooth",
    "Trainer",
    "accuracy",
    "adjust_net",
    "capacity",
    "default_device",
    "infer",
    "rand_choice",
    "set_seed",
]
