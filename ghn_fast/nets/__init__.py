"""The DeepNets-1M design space: networks, their sampling, and fitting others to small images.

Knows graphs; nothing of GHNs, images or training.
"""

from __future__ import annotations

from ghn_fast.nets.deepnets1m import DeepNets1M
from ghn_fast.nets.generate.graphs import graph_of
from ghn_fast.nets.generate.sampler import SPLITS, sample_net_args
from ghn_fast.nets.measure.count import count_parameters
from ghn_fast.nets.measure.multiply_adds import count_multiply_adds
from ghn_fast.nets.published.export import PartialExportError, export_nets
from ghn_fast.nets.published.files import NetsFileError
from ghn_fast.nets.space.adjust import adjust_net
from ghn_fast.nets.space.genotypes import DARTS, OPERATIONS, VIT, Genotype, from_dict, to_dict
from ghn_fast.nets.space.network import Network, build_ghost, build_net, check_image_size
from ghn_fast.nets.stream import MetaBatches

__all__ = [
    "DARTS",
    "OPERATIONS",
    "SPLITS",
    "VIT",
    "DeepNets1M",
    "Genotype",
    "MetaBatches",
    "NetsFileError",
    "Network",
    "PartialExportError",
    "adjust_net",
    "build_ghost",
    "build_net",
    "check_image_size",
    "count_multiply_adds",
    "count_parameters",
    "export_nets",
    "from_dict",
    "graph_of",
    "sample_net_args",
    "to_dict",
]
