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

LANGUAGE_NODE_TYPES: tuple[str, ...] = (*NODE_TYPES, "rmsnorm", "rot_emb", "gate")
"""Of LoGAH's graphs of language models (arXiv 2405.16287), which tell more than those above: an RMS
norm from a layer norm, the rotation of rotary embeddings, and the product in a gated MLP."""

CHANNEL_NODE_TYPES: tuple[str, ...] = (*NODE_TYPES, "split", "shuffle")
"""Of graphs that show what moves channels (:mod:`ghn_fast.graph.trace.channels`): where a value's
channels part, and where they change places. For GHNs with :attr:`GHNConfig.channel_nodes`."""

NODE_TYPE_INDEX: dict[str, int] = {name: index for index, name in enumerate(NODE_TYPES)}
