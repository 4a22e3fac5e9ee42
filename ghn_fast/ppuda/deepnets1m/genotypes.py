"""``ppuda.deepnets1m.genotypes``: cells and node types."""

from __future__ import annotations

from ghn_fast.graph import NODE_TYPES
from ghn_fast.nets import DARTS, Genotype, from_dict, to_dict
from ghn_fast.nets import VIT as ViT

__all__ = ["DARTS", "PDARTS", "PRIMITIVES_DEEPNETS1M", "Genotype", "ViT", "from_dict", "to_dict"]

PRIMITIVES_DEEPNETS1M = list(NODE_TYPES)

PDARTS = Genotype(
    normal=[
        ("skip_connect", 0),
        ("dil_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 4),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("avg_pool_3x3", 0),
        ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0),
        ("dil_conv_3x3", 1),
        ("dil_conv_3x3", 1),
        ("dil_conv_5x5", 3),
    ],
    reduce_concat=[2, 3, 4, 5],
)
"""The cell of Progressive DARTS (arXiv 1904.12760, figure 4)."""
