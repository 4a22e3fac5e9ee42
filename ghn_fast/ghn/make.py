"""A GHN of any kind from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ghn_fast.ghn.config import IMAGE_SETTINGS, OWN_SETTINGS, GHNConfig
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


def adapt(ghn: GHN, config: GHNConfig) -> None:
    """Gives a trained GHN a configuration with further own settings, in place, to train it on.

    Images of another kind are those it is trained with from then on. ``flat_kernels`` and
    ``raised_layer_scales`` are how tensors are used, which are the same. With ``channel_nodes``
    there are more node types. They start from the mean of the known ones: a node that the GHN takes
    for nothing in particular, of the size that it is used to, and about which what it predicts
    changes little.

    Raises:
        ValueError: another setting differs, or the GHN would lose node types.
    """
    own = {name: getattr(config, name) for name in (*OWN_SETTINGS, *IMAGE_SETTINGS)}
    own["channel_nodes"] |= ghn.config.channel_nodes
    if replace(ghn.config, **own) != config:
        raise ValueError(f"it is a GHN of {ghn.config}, not of {config}")
    known = ghn.node_type_embedding.weight.detach()
    new = known.mean(dim=0, keepdim=True).expand(len(config.node_types) - len(known), -1)
    if len(new) > 0:
        rows = torch.cat((known, new))
        ghn._modules["embed"] = nn.Embedding.from_pretrained(rows, freeze=False)
    ghn.config = config
