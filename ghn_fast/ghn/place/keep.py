"""Which parameters keep the values they have, and why.

A GHN decodes what it was trained to decode: weights of linear layers and convolutions, their
biases, norms, position tables. Everything else keeps the value that the model's author gave it,
and so does what the author marked, what starts at zero on purpose, and what the user asks for.

The reasons here, with those of :mod:`ghn_fast.graph.trace` for what is never reached, are all
that reports give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from ghn_fast.ghn.place.fill import LAYER_SCALE
from ghn_fast.ghn.place.uses import Uses
from ghn_fast.graph import Graph

NO_NODE = "kept: the GHN has no node for it"
EMBEDDING = "kept: an embedding, which GHNs are not trained on"
NORM_OFFSET = "kept: the norm's gain is one plus this"
STACKED = "kept: a stack of matrices, one for each expert or head"
STACKED_BIAS = "kept: the bias of a stack of matrices"
TOO_MANY_DIMENSIONS = "kept: more dimensions than a kernel has"
SCALAR = "kept: a scalar"
EMPTY = "kept: it has no elements"
MISSHAPEN = "kept: the bias of a norm of another shape"
MARKED = "kept: marked _no_reinit"
ZERO = "kept: starts at zero"
ZERO_WEIGHT = "kept: its weight starts at zero"
FAR = "kept: starts beyond -1 and 1, between which a GHN's biases lie"
FOLLOWS = "follows: the norm of the weight that was predicted"
RAISED = f"follows: {LAYER_SCALE}, so that the predicted branch takes part"

MEANINGS: Mapping[str, str] = {
    NO_NODE: "tokens, layer scales, recurrent weights, decays and the like: the "
    "published definition of the graph has no node for them",
    EMBEDDING: "rows that are looked up; published GHNs were trained on images",
    NORM_OFFSET: "as in the RMS norms of Gemma; GHNs decode the gain itself",
    STACKED: "weights (experts, out, in) in one tensor: decoded, all would be alike",
    STACKED_BIAS: "(experts, out)",
    TOO_MANY_DIMENSIONS: "more than out, in, time, height and width",
    SCALAR: "a norm's weight without dimensions",
    EMPTY: "a layer without channels",
    MISSHAPEN: "cannot be decoded together with its weight",
    MARKED: "the attribute with which state-space models protect their step sizes",
    ZERO: "a weight that is all zeros in a model whose other weights are not: low-rank adapters, "
    "zero convolutions, adaLN-Zero; an output layer is predicted all the same",
    ZERO_WEIGHT: "the bias of such a layer",
    FAR: "a bias that says something, such as a step size before its softplus or the prior of a "
    "focal loss; no GHN gives such values",
    FOLLOWS: "the magnitude of a weight that is kept as direction and magnitude, so that the "
    "weight is the one that was predicted",
    RAISED: "a layer scale of a small constant, with which a block starts as the identity",
}
"""What each reason stands for."""


def is_by_design(reason: str) -> bool:
    """Whether a reason is that a GHN is not meant to decode such a parameter.

    Others tell of something that could be decoded but was not: an output layer of another size,
    what does not reach the output, what is frozen.
    """
    return reason.startswith(("kept:", "follows:"))


def output_layer(outputs: int, predicted: int) -> str:
    """The reason for an output layer of another number of outputs than the GHN's."""
    return f"output layer of {outputs}; this GHN predicts {predicted}"


def complex_values(dtype: torch.dtype) -> str:
    """The reason for filters in the frequency domain and the like."""
    return f"kept: {str(dtype).removeprefix('torch.')} values; a GHN predicts real ones"


def filled(rule: str, reason: str = NO_NODE) -> str:
    """What is said where ``fill=True`` gave a value (:mod:`ghn_fast.ghn.place.fill`).

    Args:
        rule: that gave it.
        reason: why the parameter is not decoded.
    """
    return f"filled: {rule}" if is_by_design(reason) else f"filled: {rule}; {reason}"


def by_choice(
    uses: Uses, keep: str | Sequence[str], only: str | Sequence[str] | None
) -> dict[str, str]:
    """Parameters that their author marked, or that the user asks to keep.

    Args:
        uses: of the model.
        keep: names of parameters or modules, or patterns as of :mod:`fnmatch`.
        only: the same; everything else is kept. None: no limit.

    Returns:
        {parameter name: reason}.

    Raises:
        TypeError: anything but names.
        ValueError: a name or pattern that no parameter has.
    """
    reasons = {n: MARKED for n, p in uses.parameters.items() if getattr(p, "_no_reinit", False)}
    for pattern in _patterns("keep", keep):
        reasons.update((n, f"kept: as asked (keep={pattern!r})") for n in _matching(uses, pattern))
    if only is not None:
        wanted = {name for pattern in _patterns("only", only) for name in _matching(uses, pattern)}
        for name in uses.parameters.keys() - wanted:
            reasons.setdefault(name, "kept: as asked (not among only=...)")
    return reasons


def _patterns(option: str, value: Any) -> list[str]:
    several = isinstance(value, Iterable) and not isinstance(value, str)
    patterns: list[Any] = list(value) if several else [value]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{option} takes names of parameters or modules, or patterns such as 'layer4.*', "
                f"not {type(pattern).__name__}"
            )
    return patterns


def _matching(uses: Uses, pattern: str) -> list[str]:
    found = [
        name
        for name in uses.parameters
        if name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
    ]
    if not found:
        example = next(iter(uses.parameters), "")
        raise ValueError(f"no parameter is called {pattern!r}; names look like {example!r}")
    return found


def by_value(graph: Graph, uses: Uses) -> dict[str, str]:
    """Parameters of layers whose values say that they are there on purpose.

    - A weight that is all zeros in a model whose other weights are not, and its bias. A head of
      zeros is only a careful start: the output layer is predicted all the same, but where there
      are several (the zero convolutions that a ControlNet ends in) or others are added to it
      (a low-rank adapter of the output layer).
    - A bias whose values all lie beyond -1 and 1.

    Only tensors in memory are looked at, each but for its first element only where that calls for
    it.

    Returns:
        {parameter name: reason}.
    """
    weights, biases = _layers(graph, uses)
    first = _first_elements({name: uses.parameters[name] for name in (*weights, *biases)})
    zero = [name for name in weights if first[name] == 0 and not uses.parameters[name].any()]
    far = [name for name in biases if abs(first[name]) >= 1 and _is_far(uses.parameters[name])]
    reasons = dict.fromkeys(far, FAR)
    if zero and len(zero) < len(weights):
        zeros, ending = {weights[name] for name in zero}, _output_layers(graph)
        silent = zeros - ending if ending <= zeros else zeros
        reasons.update((name, ZERO) for name in zero if weights[name] in silent)
        reasons.update(dict.fromkeys(_biases_after(graph, silent), ZERO_WEIGHT))
    return reasons


def _layers(graph: Graph, uses: Uses) -> tuple[dict[str, int], dict[str, int]]:
    """{parameter name: node} of weights and of biases that are in memory."""
    weights: dict[str, int] = {}
    biases: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        if node.type in _LAYERS and len(node.shape or ()) > 1:
            found = weights
        elif node.type == "bias" and position not in graph.heads:
            found = biases
        else:
            continue
        name = node.parameter
        if name is not None and name not in graph.other and _is_readable(uses.parameters.get(name)):
            found[name] = position
    return weights, biases


_LAYERS = ("conv", "sep_conv", "dil_conv")


def _is_readable(tensor: Tensor | None) -> bool:
    return (
        tensor is not None
        and not tensor.is_meta
        and tensor.numel() > 0
        and tensor.is_floating_point()
    )


@torch.no_grad()
def _first_elements(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each tensor; a GPU is waited for once."""
    places: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        there = places.setdefault((tensor.device, tensor.dtype), {})
        there[name] = tensor.as_strided((), ())
    values: dict[str, float] = {}
    for there in places.values():
        values.update(zip(there, torch.stack(list(there.values())).tolist(), strict=True))
    return values


def _is_far(bias: Tensor) -> bool:
    return bool((bias.detach().abs() >= 1).all())


def _output_layers(graph: Graph) -> set[int]:
    """The weights that end the network: the heads', or one that alone nothing follows."""
    if graph.heads:
        return {_weight_of(graph, head) for head in graph.heads}
    followed = set(graph.edges[:, 0].tolist())
    ends = [index for index in range(graph.num_nodes) if index not in followed]
    return {_weight_of(graph, index) for index in ends} if len(ends) == 1 else set()


def _weight_of(graph: Graph, position: int) -> int:
    return position - (graph.nodes[position].type == "bias")


def _biases_after(graph: Graph, weights: set[int]) -> Iterator[str]:
    for source, target in graph.edges.tolist():
        node = graph.nodes[target]
        if source in weights and node.type == "bias" and node.parameter is not None:
            yield node.parameter
