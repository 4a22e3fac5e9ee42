"""Predicting the parameters of a model in place."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ghn_fast._system.writable import check_writable, is_expanded
from ghn_fast.ghn import GHN, Plan
from ghn_fast.ghn.hub import resolve
from ghn_fast.ghn.place.keep import NO_NODE, by_choice
from ghn_fast.ghn.place.materialise import materialised
from ghn_fast.ghn.place.plan import head_nodes, misfit
from ghn_fast.ghn.place.uses import Uses
from ghn_fast.graph import Graph, GraphBatch, TraceError

Model = TypeVar("Model", bound=nn.Module)


NO_HEAD = (
    "no output layer of a classifier was found, and the GHN has learned classifiers of images "
    "only: compare what the model gives now with what its own start gives"
)


@dataclass(repr=False)
class PredictionReport:
    """What :func:`predict` did.

    Attributes:
        predicted: {parameter name: shape} of what the GHN decoded, and of nothing else.
        unpredicted: {parameter name: why not} of all others
            (:data:`ghn_fast.ghn.place.keep.MEANINGS`). They have kept their values, but where the
            reason begins with "follows" or "filled".
        rules: {parameter name: by which rule it was decoded}, see
            :class:`ghn_fast.ghn.place.plan.Group`.
        num_parameters: how many scalars the model has.
        note: of a model unlike those that the GHN has learned, else empty.
        stages: {stage: seconds}; ``load`` (the GHN), ``graph`` and ``predict``.
        seconds: graph and prediction together.

    Examples:
        >>> model, report = ghn_fast.predict(
        ...     torchvision.models.resnet18(num_classes=10), return_report=True
        ... )
        >>> report.rules["conv1.weight"], report.rules["fc.weight"], report.unpredicted
        ('weight', 'class_weight', {})
        >>> print(report)
        decoded 62 of 62 tensors, 11,181,642 of 11,181,642 parameters
    """

    predicted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unpredicted: dict[str, str] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    num_parameters: int = 0
    note: str = ""
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(spent for stage, spent in self.stages.items() if stage != "load")

    @property
    def num_predicted(self) -> int:
        """Number of scalars that were predicted."""
        return sum(torch.Size(shape).numel() for shape in self.predicted.values())

    def __repr__(self) -> str:
        tensors = len(self.predicted) + len(self.unpredicted)
        return (
            f"PredictionReport({len(self.predicted):,} of {tensors:,} tensors, "
            f"{self.num_predicted:,} of {self.num_parameters:,} parameters)"
        )

    def _repr_html_(self) -> str:
        """A table of every parameter, as a notebook shows it; the summary stands above it."""
        rows = [
            (name, " x ".join(map(str, shape)), self.rules.get(name, ""))
            for name, shape in self.predicted.items()
        ]
        rows += [(name, "", reason) for name, reason in self.unpredicted.items()]
        cells = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        summary = escape(str(self)).replace("\n", "<br>")
        head = "<tr><th>parameter</th><th>shape</th><th>rule, or why not decoded</th></tr>"
        return f"<details><summary>{summary}</summary><table>{head}{cells}</table></details>"

    def __str__(self) -> str:
        tensors = len(self.predicted) + len(self.unpredicted)
        lines = [
            f"decoded {len(self.predicted):,} of {tensors:,} tensors, {self.num_predicted:,} of "
            f"{self.num_parameters:,} parameters"
        ]
        for reason, count in Counter(self.unpredicted.values()).most_common():
            example = next(name for name, why in self.unpredicted.items() if why == reason)
            lines.append(f"{count:,} {reason} ({example}{', ...' if count > 1 else ''})")
        lines += [self.note] if self.note else []
        return "\n".join(lines)


@overload
def predict(
    model: Model,
    ghn: GHN | str | Path | None = ...,
    example_inputs: Any = ...,
    return_report: Literal[False] = ...,
    *,
    graph: Graph | None = ...,
    keep: str | Sequence[str] = ...,
    only: str | Sequence[str] | None = ...,
    fill: bool = ...,
) -> Model: ...
@overload
def predict(
    model: Model,
    ghn: GHN | str | Path | None = ...,
    example_inputs: Any = ...,
    *,
    return_report: Literal[True],
    graph: Graph | None = ...,
    keep: str | Sequence[str] = ...,
    only: str | Sequence[str] | None = ...,
    fill: bool = ...,
) -> tuple[Model, PredictionReport]: ...
def predict(
    model: Model,
    ghn: GHN | str | Path | None = None,
    example_inputs: Any = None,
    return_report: bool = False,
    *,
    graph: Graph | None = None,
    keep: str | Sequence[str] = (),
    only: str | Sequence[str] | None = None,
    fill: bool = False,
) -> Model | tuple[Model, PredictionReport]:
    """Predicts the parameters of a model, in place, in one forward pass of a GHN.

    What the GHN was trained to decode is decoded: weights of linear layers and convolutions, their
    biases, norms, position tables. All else keeps the value it has: what the published definition
    of the graph has no node for, embeddings, layers that start at zero on purpose, parameters that
    are marked ``_no_reinit``, an output layer of another number of outputs than the GHN's (a
    warning says so, unless a report is returned; :func:`ghn_fast.fit_head_` fits it to data).

    What a predicted weight needs to be effective follows it, unless it is frozen, marked or kept as
    asked: the magnitude of a weight that is stored as direction and magnitude and, with GHNs that
    were trained so (:attr:`GHNConfig.raised_layer_scales`), a layer scale of a small constant such
    as ConvNeXt's 1e-6, which becomes 0.1.

    Buffers do not change, but for the vectors by which spectral normalisation estimates a predicted
    weight's norm. Batch-norm statistics are not parameters: evaluate the model with batch
    statistics, or calibrate them (:func:`ghn_fast.calibrate_`).

    To make its graph the model is called, without arithmetic: forward hooks and all else that its
    forward does, such as to print or to count in a global, happen then too.

    Args:
        model: any module that can be called; its parameters keep their device and dtype.
        ghn: a GHN, or what :func:`ghn_fast.from_pretrained` takes; by default ``ghn2-cifar10``,
            which is shipped with the package.
        example_inputs: what the model is called with (a tensor, a tuple of arguments or a dict of
            keyword arguments) where it cannot be worked out from the model. Lazy modules that have
            no shapes yet get theirs by such a call.
        return_report: also return a :class:`PredictionReport`, which names every parameter that
            was predicted and every one that was not.
        graph: of the model, as :meth:`GHN.graph_of` makes it, to predict again without tracing
            again; that of the same architecture at another width will do, where no weight is
            scaled by it at run time.
        keep: names of parameters or modules that keep their values, or patterns as of
            :mod:`fnmatch` (``"layer4.*"``).
        only: the same; all others keep theirs. None: no limit.
        fill: the model was made without initialisation (on the meta device, or by ``to_empty``) and
            has no value worth keeping: what is not decoded gets the value that its kind normally
            starts from. A model on the meta device is materialised on the default device; what is
            kept gets such a value too where it had none there.

    Returns:
        The model, or the model and the report.

    Raises:
        TypeError: a model that is no module; a ``ghn`` that is no GHN, name or path; anything but
            strings in ``keep`` or ``only``.
        ValueError: a model without parameters, or with some that cannot be written to: on the meta
            device, not yet initialised, expanded, sparse, sharded, quantised; a graph of another
            network; a name in ``keep`` or ``only`` that no parameter has; a buffer that ``fill``
            cannot make. Nothing has been written then, and what was on the meta device is there
            still.
        ghn_fast.graph.TraceError: the model could not be run; says what to pass.
        ghn_fast.checkpoint.CheckpointError: the GHN could not be loaded.

    Examples:
        >>> model = ghn_fast.adjust_net(torchvision.models.resnet50(num_classes=10))
        >>> model is ghn_fast.predict(model)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if example_inputs is not None and any(is_lazy(p) and not p.is_meta for p in model.parameters()):
        _initialise(model, example_inputs)
    uses = Uses.of(model)
    _check(model, uses, fill)
    reasons = by_choice(uses, keep, only)
    report = PredictionReport()
    with _timed(report, "load"):
        network = resolve(ghn)
    with materialised(model) if fill else nullcontext(frozenset[str]()) as empty:
        uses = (Uses.of(model, empty) if fill else uses).keeping(reasons)
        with _timed(report, "graph"):
            graph = network.graph_of(model, graph, example_inputs).with_shapes(uses.parameters)
        with _timed(report, "predict"):
            plan = network.write(GraphBatch([graph]), [uses], fill)
    if not graph.heads and not network.config.is_of_language:
        report.note = NO_HEAD
    if not return_report:
        _warn_of_head(graph, network, report.note)
        return model
    _account(report, uses.parameters, plan)
    return model, report


@torch.no_grad()
def _initialise(model: nn.Module, example_inputs: Any) -> None:
    """Calls a model once, so that its lazy modules have shapes; batch statistics stay."""
    modes = [(module, module.training) for module in model.modules()]
    inputs = example_inputs if isinstance(example_inputs, (Mapping, tuple)) else (example_inputs,)
    try:
        model.eval()
        model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    except Exception as error:  # of a user's code
        raise TraceError(f"the model could not be run with example_inputs: {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode


def _check(model: nn.Module, uses: Uses, fill: bool) -> None:
    for name in uses.packed:
        raise ValueError(
            f"module {name!r} holds quantised weights that are no parameters and cannot be "
            "written to: predict before quantising the model"
        )
    if not uses.parameters:
        raise ValueError(f"{type(model).__name__} has no parameters to predict")
    check_writable(uses.parameters.items(), fill)
    for name, parameter in uses.parameters.items():
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise ValueError(
                f"parameter {name!r} is {parameter.dtype}; only floating-point parameters can be "
                "predicted: predict before quantising the model"
            )
        if parameter.layout != torch.strided:
            raise ValueError(
                f"parameter {name!r} has the layout {parameter.layout}; only dense parameters can "
                "be predicted: to_dense() makes it one"
            )
        if parameter.is_meta:
            continue
        if parameter.numel() > 0 and parameter.data_ptr() == 0:
            raise ValueError(
                f"parameter {name!r} ({type(parameter.data).__name__}) has no memory of its own to "
                "write to: predict before sharding or quantising the model"
            )
        if is_expanded(parameter):
            raise ValueError(
                f"parameter {name!r} is expanded: several of its elements share one place in "
                "memory, so that they cannot be written to; clone() it first"
            )


def _warn_of_head(graph: Graph, ghn: GHN, note: str) -> None:
    if note:
        warnings.warn(note, stacklevel=3)
    reason = misfit(graph, ghn.config)
    if reason is None:
        return
    name = graph.nodes[head_nodes(graph)[0]].name
    warnings.warn(
        f"{name!r} is not predicted: {reason}. Fit it to your data with ghn_fast.fit_head_(model, "
        "loader), or train it; return_report=True tells of such layers without a warning",
        stacklevel=3,
    )


def _account(report: PredictionReport, parameters: Mapping[str, nn.Parameter], plan: Plan) -> None:
    # A tied parameter is in the plan under one of its names, and reported under its first.
    rules = {id(parameters[name]): rule for name, rule in plan.rules(0).items()}
    reasons = {id(parameters[name]): reason for name, reason in plan.kept[0].items()}
    first = {id(parameter): name for name, parameter in reversed(list(parameters.items()))}
    for identity, name in reversed(list(first.items())):
        shape = tuple(parameters[name].shape)
        report.num_parameters += parameters[name].numel()
        if identity in rules:
            report.predicted[name] = shape
            report.rules[name] = rules[identity]
        else:
            report.unpredicted[name] = reasons.get(identity, NO_NODE)


@contextmanager
def _timed(report: PredictionReport, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report.stages[stage] = time.perf_counter() - start
