"""Graph HyperNetworks that predict all parameters of a neural network they have never seen."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ghn_fast import _core as _core
from ghn_fast._version import __version__

if TYPE_CHECKING:
    from ghn_fast.calibration import calibrate_ as calibrate_
    from ghn_fast.embedding import embed as embed
    from ghn_fast.embedding import similar as similar
    from ghn_fast.environment import show_config as show_config
    from ghn_fast.evaluation import evaluate as evaluate
    from ghn_fast.finetune import FinetuneConfig as FinetuneConfig
    from ghn_fast.finetune import finetune_ as finetune_
    from ghn_fast.ghn import GHN as GHN
    from ghn_fast.ghn import GHNConfig as GHNConfig
    from ghn_fast.ghn import ghn1 as ghn1
    from ghn_fast.ghn import ghn2 as ghn2
    from ghn_fast.ghn.ghn3 import ghn3 as ghn3
    from ghn_fast.ghn.hub import from_pretrained as from_pretrained
    from ghn_fast.ghn.hub import list_models as list_models
    from ghn_fast.graph import Graph as Graph
    from ghn_fast.graph import GraphBatch as GraphBatch
    from ghn_fast.head import HeadReport as HeadReport
    from ghn_fast.head import fit_head_ as fit_head_
    from ghn_fast.initialisation import lsuv_ as lsuv_
    from ghn_fast.initialisation import mimetic_ as mimetic_
    from ghn_fast.initialisation import select_weights_ as select_weights_
    from ghn_fast.nets import DeepNets1M as DeepNets1M
    from ghn_fast.nets import Genotype as Genotype
    from ghn_fast.nets import Network as Network
    from ghn_fast.nets import adjust_net as adjust_net
    from ghn_fast.prediction import PredictionReport as PredictionReport
    from ghn_fast.prediction import predict as predict
    from ghn_fast.refine import refine_ as refine_
    from ghn_fast.start import start_ as start_
    from ghn_fast.train import TrainConfig as TrainConfig
    from ghn_fast.train import train_step as train_step

# Each public name is imported when it is first used, so that `import ghn_fast` costs next to
# nothing on top of `import torch`.
_EXPORTS = {
    "DeepNets1M": "ghn_fast.nets",
    "FinetuneConfig": "ghn_fast.finetune",
    "GHN": "ghn_fast.ghn",
    "GHNConfig": "ghn_fast.ghn",
    "Genotype": "ghn_fast.nets",
    "Graph": "ghn_fast.graph",
    "GraphBatch": "ghn_fast.graph",
    "HeadReport": "ghn_fast.head",
    "Network": "ghn_fast.nets",
    "PredictionReport": "ghn_fast.prediction",
    "TrainConfig": "ghn_fast.train",
    "adjust_net": "ghn_fast.nets",
    "calibrate_": "ghn_fast.calibration",
    "embed": "ghn_fast.embedding",
    "evaluate": "ghn_fast.evaluation",
    "finetune_": "ghn_fast.finetune",
    "fit_head_": "ghn_fast.head",
    "from_pretrained": "ghn_fast.ghn.hub",
    "ghn1": "ghn_fast.ghn",
    "ghn2": "ghn_fast.ghn",
    "ghn3": "ghn_fast.ghn",
    "list_models": "ghn_fast.ghn.hub",
    "lsuv_": "ghn_fast.initialisation",
    "mimetic_": "ghn_fast.initialisation",
    "predict": "ghn_fast.prediction",
    "refine_": "ghn_fast.refine",
    "select_weights_": "ghn_fast.initialisation",
    "similar": "ghn_fast.embedding",
    "show_config": "ghn_fast.environment",
    "start_": "ghn_fast.start",
    "train_step": "ghn_fast.train",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ghn_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
