"""Output layers: which one a model has, what it is fed, and its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast._system.batches import fed, logits_of, run
from ghn_fast.graph import Graph, TraceError


class Head:
    """An output layer: ``features`` are what it was last fed, ``logits`` what it made of them."""

    def __init__(self, model: nn.Module, name: str, *others: str) -> None:
        self.name = name
        self.module, *self.others = (_output_layer(model, each) for each in (name, *others))
        if not all(isinstance(value, nn.Parameter) for value in self.values()):
            raise ValueError(
                f"the weight of {name!r} is computed from other parameters (weight normalisation, "
                "for example); fit it before it is parametrised so"
            )
        everywhere = model.named_parameters(remove_duplicate=False)
        uses = [use for use, value in everywhere if value is self.module.weight]
        if len(uses) > 1:
            raise ValueError(
                f"the weight of {name!r} is that of other layers too ({', '.join(uses)}): fitting "
                "it would change what it is fed"
            )
        self.classes, self.width = self.values()[0].shape[:2]
        self.features = self.logits = torch.empty(0)

    def values(self) -> list[Tensor]:
        layers = (self.module, *self.others)
        return [v for m in layers for v in (m.weight, m.bias) if v is not None]

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Raises a ValueError where they are too large for the layer's dtype."""
        for value in self.values():
            value.zero_()
        self.module.weight.copy_(weight.reshape(self.module.weight.shape))
        if bias is not None:
            self.module.bias.copy_(bias)
        if not all(value.isfinite().all() for value in self.values()):
            dtype = str(self.module.weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"what is fitted for {self.name!r} is too large for {dtype}: its features are very "
                "small; fit it in float32"
            )

    def make_up(self, model: nn.Module, inputs: Any) -> None:
        """For the share that the layer has of a mean, so that the model returns its logits."""
        if self.others:
            share = self.run(model, inputs).norm() / self.logits.norm()
            for value in self.values():
                value.div_(share)

    def restore(self, kept: list[Tensor]) -> None:
        for value, old in zip(self.values(), kept, strict=True):
            value.copy_(old)

    def run(self, model: nn.Module, inputs: Any) -> Tensor:
        """The model's output; keeps what the layer was fed and gave."""
        self.features = torch.empty(0)

        def keep(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
            self.features, self.logits = self._pooled(fed(arguments, named)), output

        with self.module.register_forward_hook(keep, with_kwargs=True):
            output = run(model, inputs)
        if not self.features.numel():
            raise ValueError(
                f"the model does not run its layer {self.name!r}; fit_head_ takes another as layer="
            )
        return logits_of(output)

    def _pooled(self, values: Tensor) -> Tensor:
        """(B, D); of a convolution the mean over positions, as of its outputs it is taken."""
        if isinstance(self.module, nn.Conv2d):
            return values.mean((2, 3), dtype=torch.float32)
        if values.numel() != len(values) * self.width:
            raise ValueError(
                f"the layer {self.name!r} is fed {tuple(values.shape)}: an output at each of "
                "several positions has no label of its own"
            )
        return values.reshape(len(values), self.width)


def _output_layer(model: nn.Module, name: str) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        is_bare = name in dict(model.named_parameters())
        why = "it is a parameter, which no linear layer holds" if is_bare else str(error)
        raise ValueError(f"the model has no layer {name!r}: {why}") from None
    is_linear = isinstance(module, nn.Linear)
    is_conv = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    if not (is_linear or (is_conv and module.groups == 1)):
        kind = type(module).__name__
        raise ValueError(f"the output layer {name!r} is a {kind}, not linear or 1x1 convolution")
    return module


def output_layers(model: nn.Module, inputs: Any) -> list[str]:
    """The name of the layer whose outputs no further parameter changes.

    Of several, as of auxiliary classifiers or of a second task, the one that gives what the model
    returns first in evaluation mode, or all of those whose mean it is.

    Raises:
        ValueError: there is none.
    """
    try:
        graph = Graph.from_model(model, inputs)
    except TraceError as error:
        raise TraceError(
            f"{error}\nfit_head_ calls it with what the loader has to give: batches of its inputs"
        ) from error
    if len(graph.heads) > 1:
        return _names(graph, [head - (graph.nodes[head].type == "bias") for head in graph.heads])
    ends = _ends(graph)
    if len(ends) == 1:
        return ends
    given: dict[str, Tensor] = {}
    layers = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as stack:
        for name in (end for end in ends if end in layers):  # not those that are bare parameters
            keep = partial(_keep, given, name)
            stack.enter_context(layers[name].register_forward_hook(keep))
        output = logits_of(run(model, inputs))
    same = [name for name, value in given.items() if _same(value, output)]
    if not same:
        raise ValueError(
            f"the model's first output is not that of a single layer (layers that nothing with "
            f"parameters follows: {', '.join(ends) or 'none'}); fit_head_ takes one as layer="
        )
    return same[-1:]


def _ends(graph: Graph) -> list[str]:
    followed = {source for source, target in graph.edges.tolist() if _is_weight(graph, target)}
    for source, target in reversed(graph.edges.tolist()):
        if target in followed:
            followed.add(source)
    nodes = enumerate(graph.nodes)
    return _names(graph, [i for i, node in nodes if node.type == "conv" and i not in followed])


def _names(graph: Graph, weights: Iterable[int]) -> list[str]:
    names = [graph.nodes[weight].parameter for weight in weights]
    if None in names:
        raise ValueError(
            "the output layer is frozen, its requires_grad is False while others are trained; "
            "fit_head_ with layer= fits it all the same"
        )
    plain = (str(name).partition(".parametrizations")[0] for name in names)
    return [re.sub(r"(^|\.)weight$", "", name) for name in plain]


def _keep(given: dict[str, Tensor], name: str, *arguments: Any) -> None:
    given[name] = arguments[-1]


def _same(value: Any, output: Tensor) -> bool:
    is_one = isinstance(value, Tensor) and value.numel() == output.numel()
    return is_one and torch.equal(value.reshape(output.shape), output)


def _is_weight(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return node.parameter is not None and node.type != "bias"
