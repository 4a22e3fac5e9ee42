"""Graph HyperNetworks: from graphs to parameters.

Knows graphs, checkpoints and operations; nothing of images, accuracy or training, and no
DeepNets-1M.
"""

from __future__ import annotations

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.ghn3 import GHN3, GHN3Config, ghn3
from ghn_fast.ghn.logah import LoGAH, LoGAHConfig, logah
from ghn_fast.ghn.make import make_config, make_ghn
from ghn_fast.ghn.model import GHN, ghn1, ghn2
from ghn_fast.ghn.place.plan import Plan, make_plan

__all__ = [
    "GHN",
    "GHN3",
    "GHN3Config",
    "GHNConfig",
    "LoGAH",
    "LoGAHConfig",
    "Plan",
    "ghn1",
    "ghn2",
    "ghn3",
    "logah",
    "make_config",
    "make_ghn",
    "make_plan",
]
