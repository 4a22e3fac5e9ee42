"""Checkpoints from a seed, and what the public codes predict from them (``public_facts.json``).

So that parity with them is tested wherever the tests run. The facts come from
``facebookresearch/ppuda`` at 4673a42 (GHN-2) and ``SamsungSAILMontreal/ghn3`` at b3289ac (GHN-3)::

    PYTHONPATH=<ppuda>:<ghn3> python -m tests.public_facts > tests/public_facts.json

Each has the size of the graph, the 2-norm of the mean node embedding, and for each parameter that
the public code predicts [number of elements, 2-norm, sum of w_i cos(0.37 i)].
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

SEED = 2110
GHN2 = {
    "max_shape": (64, 64, 11, 11),
    "num_classes": 10,
    "hypernet": "gatedgnn",
    "decoder": "conv",
    "weight_norm": True,
    "ve": True,
    "layernorm": True,
    "hid": 32,
}
TORCHVISION = {
    "ghn2": ("resnet18", "mobilenet_v2", "convnext_tiny"),
    "ghn3": ("resnet18", "mobilenet_v3_small", "vit_b_16"),
}
# DeepNets networks: what ppuda's `Network` is made with, beside 10 classes and 32 x 32 images.
DEEPNETS: dict[str, dict[str, Any]] = {
    "deepnets_1": {
        "norm": "bnorm",
        "ks": 7,
        "preproc": True,
        "glob_avg": True,
        "stem_pool": False,
        "C_mult": 2,
        "n_cells": 4,
        "fc_layers": 1,
        "C": 32,
        "fc_dim": 64,
        "stem_type": 1,
        "genotype": {
            "normal": [
                ["dil_conv_3x3", 0],
                ["conv_7x7", 1],
                ["dil_conv_5x5", 1],
                ["sep_conv_5x5", 0],
            ],
            "normal_concat": [2, 3],
            "reduce": [
                ["skip_connect", 1],
                ["conv_1x1", 0],
                ["max_pool_3x3", 0],
                ["max_pool_3x3", 1],
            ],
            "reduce_concat": [2, 3],
        },
    },
    "deepnets_17": {
        "norm": None,
        "ks": 5,
        "preproc": True,
        "glob_avg": True,
        "stem_pool": False,
        "C_mult": 1,
        "n_cells": 5,
        "fc_layers": 2,
        "C": 32,
        "fc_dim": 64,
        "stem_type": 0,
        "genotype": {
            "normal": [["conv_5x5", 1], ["conv_1x1", 0]],
            "normal_concat": [2],
            "reduce": [["sep_conv_5x5", 1], ["conv_1x1", 0]],
            "reduce_concat": [2],
        },
    },
    "deepnets_18": {
        "norm": "bnorm",
        "ks": 5,
        "preproc": True,
        "glob_avg": True,
        "stem_pool": False,
        "C_mult": 1,
        "n_cells": 5,
        "fc_layers": 2,
        "C": 32,
        "fc_dim": 64,
        "stem_type": 1,
        "genotype": {
            "normal": [["conv_3x3", 1], ["none", 0], ["cse", 1], ["sep_conv_5x5", 0]],
            "normal_concat": [2, 3],
            "reduce": [["skip_connect", 0], ["skip_connect", 1], ["none", 1], ["avg_pool_3x3", 2]],
            "reduce_concat": [2, 3],
        },
    },
}


# ---------------------------------------------------------------- checkpoints


def mlp(name: str, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Linear layers with activations between them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shapes[f"{name}.{2 * layer}.weight"] = outputs, inputs
        shapes[f"{name}.{2 * layer}.bias"] = (outputs,)
    return shapes


def outer_shapes(hid: int, classes: int, kernels: int, sizes: int, area: int) -> dict[str, Any]:
    """What GHN-2 and GHN-3 have alike, for blocks of 64 x 64 channels."""
    return {
        "ln.weight": (hid,),
        "ln.bias": (hid,),
        "embed.weight": (15, hid),
        "shape_enc.embed_spatial.weight": (kernels, hid // 4),
        "shape_enc.embed_channel.weight": (sizes, hid // 4),
        **mlp("decoder.fc", (hid, 4 * hid * area)),
        **mlp("decoder.conv", (4 * hid, 8 * hid, 64 * 64)),
        "decoder.class_layer_predictor.1.weight": (classes, 64),
        "decoder.class_layer_predictor.1.bias": (classes,),
        **mlp("decoder_1d.fc", (hid, 2 * hid, 128)),
        "bias_class.1.weight": (classes, 64),
        "bias_class.1.bias": (classes,),
    }


def ghn2_shapes() -> dict[str, tuple[int, ...]]:
    """Of the state dict of a GHN-2 for CIFAR-10."""
    shapes = {
        **outer_shapes(32, classes=10, kernels=9, sizes=392, area=11 * 11),
        **mlp("gnn.mlp.fc", (32, 16, 32)),
        **mlp("gnn.mlp_ve.fc", (32, 16, 32)),
        "gnn.gru.weight_ih": (96, 32),
        "gnn.gru.weight_hh": (96, 32),
        "gnn.gru.bias_ih": (96,),
        "gnn.gru.bias_hh": (96,),
    }
    convolutions = ("decoder.conv", "decoder.class_layer_predictor")
    return {
        name: (*shape, 1, 1) if len(shape) == 2 and name.startswith(convolutions) else shape
        for name, shape in shapes.items()
    }


def ghn3_shapes() -> dict[str, tuple[int, ...]]:
    """Of the state dict of a GHN-3 tiny for ImageNet, by its published names."""
    shapes = {
        **outer_shapes(64, classes=1000, kernels=11, sizes=392, area=16 * 16),
        "centrality_embed_in.weight": (101, 64),
        "centrality_embed_out.weight": (101, 64),
        "input_dist_embed.weight": (1001, 64),
        "gnn.0.attn.edge_embed.embed.weight": (257, 64),
        **mlp("gnn.0.attn.proj_e", (128, 64, 8)),
    }
    for layer in range(3):
        own = {
            "ln1.weight": (64,),
            "ln1.bias": (64,),
            "attn.to_qkv.weight": (192, 64),
            "attn.to_out.0.weight": (64, 64),
            "attn.to_out.0.bias": (64,),
            "ln2.weight": (64,),
            "ln2.bias": (64,),
            "ff.net.0.weight": (256, 64),
            "ff.net.0.bias": (256,),
            "ff.net.3.weight": (64, 256),
            "ff.net.3.bias": (64,),
        }
        shapes.update({f"gnn.{layer}.{name}": shape for name, shape in own.items()})
    return shapes


def seeded_state(shapes: dict[str, tuple[int, ...]], seed: int = SEED) -> dict[str, Tensor]:
    """Weights like those of a fresh network, the same bits on every machine.

    NumPy keeps the stream of ``RandomState`` as it is for good.
    """
    state = {}
    for index, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        values = np.random.RandomState([seed, index]).uniform(-1, 1, shape)
        if "embed" in name:
            values *= math.sqrt(3)
        elif len(shape) > 1:
            values *= math.sqrt(3 / math.prod(shape[1:]))
        else:
            values = 0.1 * values + (".ln" in f".{name}" and name.endswith("weight"))
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


def write_checkpoint(kind: str, folder: Path) -> Path:
    """As ppuda's trainer saves a GHN-2, or as GHN-3 is published: a state dict alone."""
    path = folder / f"{kind}_seed_{SEED}.pt"
    if kind == "ghn2":
        torch.save({"state_dict": seeded_state(ghn2_shapes()), "epoch": 0, "config": GHN2}, path)
    else:
        with path.open("wb") as file:  # uncompressed, joblib's dump is such a pickle as well
            pickle.dump(seeded_state(ghn3_shapes()), file)
    return path


# ---------------------------------------------------------------- facts


def measured(name: str, parameter: Tensor) -> list[float]:
    """[number of elements, 2-norm, sum of w_i cos(0.37 i)], in double precision."""
    if name == "encoder.pos_embedding":
        # The public code draws the class token's row from the global generator.
        parameter = parameter[:, 1:]
    values = parameter.detach().double().flatten()
    waves = torch.cos(0.37 * torch.arange(len(values), dtype=torch.float64))
    return [len(values), float(values.norm()), float(values @ waves)]


def _rounded(values: list[float]) -> list[float]:
    return [values[0], *(float(f"{value:.7g}") for value in values[1:])]


def _facts(ghn: nn.Module, graphs: Any, graph: Any, model: nn.Module) -> dict[str, Any]:
    """Of a model as a public code predicts it; parameters that it does not predict stay nan."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    _, embeddings = ghn(model, graphs, return_embeddings=True)
    distances = graph.edges[:, 2]
    found = {name: measured(name, p) for name, p in model.named_parameters()}
    return {
        "nodes": graph.n_nodes,
        "types": torch.bincount(graph.node_feat[:, 0], minlength=15).tolist(),
        "edges_1hop": int((distances == 1).sum()),
        "edges_all": len(distances),
        "dist_sum": int(distances.sum()),
        "embedding_mean_norm": float(embeddings.detach().double().mean(0).norm()),
        "params": {n: _rounded(values) for n, values in found.items() if values[1] == values[1]},
    }


def _ghn2_facts() -> dict[str, Any]:
    nn_, graph_, net_, utils_ = (
        importlib.import_module(f"ppuda.{name}")
        for name in ("ghn.nn", "deepnets1m.graph", "deepnets1m.net", "utils")
    )
    ghn = nn_.GHN(**GHN2).eval()
    ghn.load_state_dict(seeded_state(ghn2_shapes()))
    nets = {
        name: utils_.adjust_net(models.get_model(name, num_classes=10))
        for name in TORCHVISION["ghn2"]
    }
    for name, arguments in DEEPNETS.items():
        options = {**arguments, "genotype": SimpleNamespace(**arguments["genotype"])}
        nets[name] = net_.Network(num_classes=10, is_imagenet_input=False, **options)
    facts = {}
    for name, net in nets.items():
        graph = graph_.Graph(net.eval(), ve_cutoff=50)
        facts[f"ghn2/{name}"] = _facts(ghn, graph_.GraphBatch([graph]).to_device("cpu"), graph, net)
    return facts


def _ghn3_facts() -> dict[str, Any]:
    nn_, graph_ = (importlib.import_module(f"ghn3.{name}") for name in ("nn", "graph"))
    options = {"weight_norm": True, "ve": True, "layernorm": True, "pretrained": True}
    ghn = nn_.GHN3((64, 64, 16, 16), 1000, 64, **options).eval()
    ghn.load_state_dict(seeded_state(ghn3_shapes()))
    ghn.fix_embed_layers()
    facts = {}
    for name in TORCHVISION["ghn3"]:
        net = models.get_model(name).eval()
        graph = graph_.Graph(net, ve_cutoff=50)
        facts[f"ghn3/{name}"] = _facts(ghn, graph_.GraphBatch([graph], dense=True), graph, net)
    return facts


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # where the public codes print
        facts = {**_ghn2_facts(), **_ghn3_facts()}
    lines = (f"{json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items())
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
