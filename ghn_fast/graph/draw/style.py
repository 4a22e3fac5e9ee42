"""How nodes are drawn: by their kind, a colour and a shape, as in arXiv 2110.13100 (figure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ghn_fast.graph.node import Node


class Style(NamedTuple):
    """How the nodes of a kind are drawn."""

    label: str
    colour: str
    marker: str


STYLES: dict[str, Style] = {
    "input": Style("input", "#222222", "v"),
    "conv": Style("convolution", "#e4572e", "s"),
    "linear": Style("linear or 1×1 convolution", "#f6a15b", "s"),
    "sep_conv": Style("grouped convolution", "#8c2d8f", "s"),
    "dil_conv": Style("dilated grouped convolution", "#c77dca", "s"),
    "bias": Style("bias", "#c9c9c9", "o"),
    "bn": Style("batch norm", "#2f7ed8", "o"),
    "ln": Style("layer norm", "#7fb6f0", "o"),
    "rmsnorm": Style("RMS norm", "#1d4f91", "o"),
    "msa": Style("self-attention", "#d4a800", "*"),
    "cse": Style("squeeze-and-excitation", "#ffd84d", "P"),
    "pos_enc": Style("position encoding", "#8a6d3b", "h"),
    "rot_emb": Style("rotary embedding", "#c9a66b", "h"),
    "gate": Style("product with a gate", "#c2185b", "P"),
    "sum": Style("sum", "#1b9e5a", "D"),
    "concat": Style("concatenation", "#8bd17c", "D"),
    "split": Style("split of channels", "#b5651d", "D"),
    "shuffle": Style("shuffle of channels", "#6b3fa0", "D"),
    "max_pool": Style("max pooling", "#12939a", "^"),
    "avg_pool": Style("average pooling", "#79c7c5", "^"),
    "glob_avg": Style("global average pooling", "#0b5351", "^"),
}
"""By node type; "linear" are those convolutions that look at one position only."""


def style_of(node: Node) -> Style:
    """How a node is drawn."""
    pointwise = node.shape is not None and all(size == 1 for size in node.shape[2:])
    name = "linear" if node.type == "conv" and pointwise else node.type
    return STYLES[name]


_KERNELS = ("conv", "sep_conv", "dil_conv")


def kernel_of(node: Node) -> str:
    """The size of a convolution's kernel, to be written on it; nothing for 1 x 1 and others."""
    if node.shape is None or len(node.shape) != 4 or node.type not in _KERNELS:
        return ""
    height, width = node.shape[2:]
    if height == width:
        return "" if height == 1 else str(height)
    return f"{height}×{width}"
