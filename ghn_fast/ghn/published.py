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
from ghn_fast.ghn.logah import LoGAHConfig
from ghn_fast.graph import CHANNEL_NODE_TYPES, LANGUAGE_NODE_TYPES

_EVERY_GHN = ("embed.weight", "shape_enc.embed_channel.weight", "shape_enc.embed_spatial.weight")

# LoGAH's files hold these and its decoder does not use them; a layer of one number stands for none.
_UNUSED = re.compile(r"decoder\.(l1|seq\.1)\.|decoder_1d\.0\.")

# ghn3 moves these into the first layer once a GHN is built; the published files have them outside.
_MOVED = re.compile(r"gnn\.0\.(?=(centrality_embed_in|centrality_embed_out|input_dist_embed)\.)")

# What torch.compile, data parallelism and FSDP put into the names of what they wrap.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_MOST_LAYERS = 1000


def is_ghn(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has what every GHN has."""
    return all(name in state for name in _EVERY_GHN)


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a GHN has of a published state dict, by our names.

    Raises:
        CheckpointError: two of its names are one without what wrappers add to them.
    """
    own = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if len(own) < len(state):
        raise CheckpointError("it has a parameter under two names")
    state = own
    unused = {name for name in state if _UNUSED.match(name)}
    if "decoder_1d.0.weight" in unused:
        unused |= {"bias_class.1.weight", "bias_class.1.bias"}
    return {_MOVED.sub("", name): state[name] for name in state if name not in unused}


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
    if "lora" in values:
        values, defaults = _logah_config(values, defaults)
    if graphormer:
        values["hypernet"] = "graphormer"
        values["ve"] = True
    return {**defaults, **values}


def _logah_config(
    values: dict[str, Any], defaults: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """With the defaults of LoGAH's constructor; without its decoder it is a GHN-3."""
    own = ("lora_r", "max_ck_lora", "use_1d_decoder")
    if values.pop("lora"):
        low_rank = {"lora_r": 16, "max_ck_lora": 32, "use_1d_decoder": False, "num_classes": 10}
        return {**values, "decoder": "low_rank"}, {**defaults, **low_rank, "hid": 128}
    return {name: value for name, value in values.items() if name not in own}, defaults


def infer_config(state: Mapping[str, Tensor]) -> GHNConfig:
    """The configuration that the shapes of a GHN's parameters imply.

    Normalisation of what is predicted leaves no trace in the shapes; every published GHN whose
    file has no configuration does it.

    Raises:
        CheckpointError: no GHN has such shapes.
    """
    for name, tensor in state.items():
        # Without values a tensor may have any shape, and so ask for any size.
        if tensor.numel() == 0:
            raise CheckpointError(f"{name} has no values")
    try:
        return _infer(state)
    except KeyError as error:
        raise CheckpointError(f"the parameter {error.args[0]} of a GHN is missing") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"its shapes are not those of a GHN: {error}") from None


def _infer(state: Mapping[str, Tensor]) -> GHNConfig:
    hid = state["embed.weight"].shape[1]
    if "decoder.l2.weight" in state:
        return _infer_logah(state)
    num_classes = state["bias_class.1.weight"].shape[0]
    decoder = "conv" if "decoder.conv.2.weight" in state else "mlp"
    values: dict[str, Any] = {
        "hid": hid,
        "num_classes": num_classes,
        "decoder": decoder,
        "max_shape": _max_shape(state, decoder, hid, num_classes),
        "layernorm": "ln.weight" in state,
        "channel_nodes": _has_channel_nodes(state),
    }
    if "gnn.gru.weight_ih" in state:
        return GHNConfig(hypernet="gatedgnn", ve="gnn.mlp_ve.fc.0.weight" in state, **values)
    if "gnn.fc.0.weight" in state:
        return GHNConfig(hypernet="mlp", **values)
    return GHN3Config(layers=_layers(state), heads=_heads(state), **values)


def _infer_logah(state: Mapping[str, Tensor]) -> LoGAHConfig:
    """Neither the largest channels nor, without a decoder of vectors, the classes show."""
    rows, rank = state["decoder.l2.weight"].shape
    has_vectors = "decoder_1d.fc.0.weight" in state
    return LoGAHConfig(
        hid=state["embed.weight"].shape[1],
        layers=_layers(state),
        heads=_heads(state),
        layernorm="ln.weight" in state,
        num_classes=state["bias_class.1.weight"].shape[0] if has_vectors else 10,
        lora_r=rank,
        max_ck_lora=rows,
        use_1d_decoder=has_vectors,
        language=len(state["embed.weight"]) == len(LANGUAGE_NODE_TYPES),
        channel_nodes=_has_channel_nodes(state),
    )


def _has_channel_nodes(state: Mapping[str, Tensor]) -> bool:
    return len(state["embed.weight"]) == len(CHANNEL_NODE_TYPES)


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
    layers = sum(1 for name in state if re.fullmatch(r"gnn\.\d+\.ln1\.weight", name))
    if layers > _MOST_LAYERS:
        raise ValueError(f"it has {layers} layers")
    return layers


def _heads(state: Mapping[str, Tensor]) -> int:
    return state["gnn.0.attn.proj_e.2.weight"].shape[0]
