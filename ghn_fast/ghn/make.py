"""A GHN of any kind from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.ghn3 import GHN3, GHN3Config
from ghn_fast.ghn.logah import LoGAH, LoGAHConfig
from ghn_fast.ghn.model import GHN


def config_class(values: Mapping[str, Any]) -> type[GHNConfig]:
    """Whose configuration the fields are."""
    if values.get("decoder") == "low_rank":
        return LoGAHConfig
    return GHN3Config if values.get("hypernet") == "graphormer" else GHNConfig


def make_config(values: Mapping[str, Any]) -> GHNConfig:
    """The configuration of any GHN from its fields.

    A decoder ``low_rank`` is a LoGAH's, else a hypernet ``graphormer`` a GHN-3's.

    Raises:
        ValueError: an unknown field, or a value that no GHN can have.
    """
    return config_class(values).from_dict(values)


def make_ghn(config: GHNConfig) -> GHN:
    """The GHN of any configuration."""
    if isinstance(config, LoGAHConfig):
        return LoGAH(config)
    return GHN3(config) if isinstance(config, GHN3Config) else GHN(config)
