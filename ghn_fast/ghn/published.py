"""What the published checkpoints leave unsaid: their configuration, from names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.ghn3 import GHN3Config

_EVERY_GHN = ("embed.weight", "shape_enc.embed_channel.weight", "bias_class.1.weight")

# ghn3 moves these into the first layer once a GHN is built; the published files have them outside.
_MOVED = re.compile(r"gnn\.0\.(?=(centrality_embed_in|centrality_embed_out|input_dist_embed)\.)")


def is_ghn(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has what every GHN has."""
    return all(name in state for name in _EVERY_GHN)


def published_name(name: str) -> str:
    """A parameter's name in the published files."""
    return _MOVED.sub("", name)


def published_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in our terms; ghn3's trainer adds fields of its own to ppuda's.

    A missing field has the value that ppuda's constructor gives it.
    """
    values = dict(values)
    graphormer = values.get("hypernet") == "graphormer"
    if "is_ghn2" in values:
        graphormer = values.pop("is_ghn2") is False
        values.pop("pretrained", None)
        if not graphormer:
            values.pop("layers", None)
            values.pop("heads", None)
    defaults: dict[str, Any] = {"weight_norm": False, "ve": False, "layernorm": False}
    if graphormer:
        values["hypernet"] = "graphormer"
        values["ve"] = True
    return {**defaults, **values}


def infer_config(state: Mapping[str, Tensor]) -> GHNConfig:
    """The configuration that the shapes of a GHN's parameters imply.

    Normalisation of what is predicted leaves no trace in the shapes; every published GHN whose
    file has no configuration does it.

    Raises:
        CheckpointError: no GHN has such shapes.
    """
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{name} is larger than its data")
    try:
        return _infer(state)
    except KeyError as error:
        raise CheckpointError(f"the parameter {error.args[0]} of a GHN is missing") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"its shapes are not those of a GHN: {error}") from None


def _infer(state: Mapping[str, Tensor]) -> GHNConfig:
    hid = state["embed.weight"].shape[1]
    num_classes = state["bias_class.1.weight"].shape[0]
    decoder = "conv" if "decoder.conv.2.weight" in state else "mlp"
    values: dict[str, Any] = {
        "hid": hid,
        "num_classes": num_classes,
        "decoder": decoder,
        "max_shape": _max_shape(state, decoder, hid, num_classes),
        "layernorm": "ln.weight" in state,
    }
    if "gnn.gru.weight_ih" in state:
        return GHNConfig(hypernet="gatedgnn", ve="gnn.mlp_ve.fc.0.weight" in state, **values)
    if "gnn.fc.0.weight" in state:
        return GHNConfig(hypernet="mlp", **values)
    return GHN3Config(layers=_layers(state), heads=_heads(state), **values)


def _max_shape(
    state: Mapping[str, Tensor], decoder: str, hid: int, num_classes: int
) -> tuple[int, int, int, int]:
    predictor = state["decoder.class_layer_predictor.1.weight"]
    if decoder == "conv":
        out = predictor.shape[1]
        channels = state["decoder.conv.2.weight"].shape[0] // out
        positions = state["decoder.fc.0.weight"].shape[0] // (4 * hid)
    else:
        out = channels = predictor.shape[0] // num_classes
        positions = state["decoder.mlp.fc.2.weight"].shape[0] // (out * channels)
    side = math.isqrt(positions)
    return (out, channels, side, side)


def _layers(state: Mapping[str, Tensor]) -> int:
    return len({name for name in state if re.fullmatch(r"gnn\.\d+\.ln1\.weight", name)})


def _heads(state: Mapping[str, Tensor]) -> int:
    return state["gnn.0.attn.proj_e.2.weight"].shape[0]
