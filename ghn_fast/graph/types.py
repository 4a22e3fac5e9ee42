"""The node types of DeepNets-1M graphs (arXiv 2110.13100, Table 1 and Appendix A)."""

from __future__ import annotations

NODE_TYPES: tuple[str, ...] = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""In the order of the published checkpoints' node embedding."""

NODE_TYPE_INDEX: dict[str, int] = {name: index for index, name in enumerate(NODE_TYPES)}
