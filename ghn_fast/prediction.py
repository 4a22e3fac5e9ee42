"""Predicting the parameters of a model in place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn

from ghn_fast.ghn import GHN, Plan
from ghn_fast.ghn.place.fill import fill
from ghn_fast.ghn.place.plan import Uses
from ghn_fast.graph import Graph, GraphBatch

DEFAULT_GHN = "ghn2-cifar10"

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class PredictionReport:
    """What :func:`predict` did.

    Attributes:
        predicted: {parameter name: shape}.
        unpredicted: {parameter name: why it kept its value}.
        rules: {parameter name: by which rule it was predicted}. The rules of parameters that are
            decoded are told by :class:`ghn_fast.ghn.place.plan.Group`, those of the others by
            :mod:`ghn_fast.ghn.place.fill`.
        stages: {stage: seconds}; ``load`` (the GHN), ``graph`` and ``predict``.
        seconds: graph and prediction together.
    """

    predicted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unpredicted: dict[str, str] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(spent for stage, spent in self.stages.items() if stage != "load")

    @property
    def num_predicted(self) -> int:
        """Number of scalars that were predicted."""
        return sum(torch.Size(shape).numel() for shape in self.predicted.values())


@overload
def predict(
    model: Model,
    ghn: GHN | str | Path | None = ...,
    example_inputs: Any = ...,
    return_report: Literal[False] = ...,
    *,
    graph: Graph | None = ...,
) -> Model: ...
@overload
def predict(
    model: Model,
    ghn: GHN | str | Path | None = ...,
    example_inputs: Any = ...,
    *,
    return_report: Literal[True],
    graph: Graph | None = ...,
) -> tuple[Model, PredictionReport]: ...
def predict(
    model: Model,
    ghn: GHN | str | Path | None = None,
    example_inputs: Any = None,
    return_report: bool = False,
    *,
    graph: Graph | None = None,
) -> Model | tuple[Model, PredictionReport]:
    """Predicts all parameters of a model, in place, in one forward pass of a GHN.

    Nothing but parameters changes. Batch-norm statistics are not parameters: evaluate the model
    with batch statistics, or calibrate them (:func:`ghn_fast.calibrate_`). Neither are the
    vectors by which spectral normalisation estimates a weight's norm: run the model in training
    mode a few times before it is evaluated.

    Args:
        model: any module that can be called; its parameters keep their device and dtype.
        ghn: a GHN, or what :func:`ghn_fast.from_pretrained` takes; by default ``ghn2-cifar10``,
            which is shipped with the package.
        example_inputs: what the model is called with (a tensor, a tuple of arguments or a dict of
            keyword arguments) where it cannot be worked out from the model.
        return_report: also return a :class:`PredictionReport`, which names every parameter that
            was predicted and every one that was not.
        graph: of the model, as ``Graph.from_model`` made it, to predict again without tracing
            again; that of the same architecture at another width will do.

    Returns:
        The model, or the model and the report.

    Raises:
        ValueError: a model without parameters, or with some that cannot be written to: on the meta
            device, not yet initialised, sharded, quantised; a graph of another network. Nothing has
            been written then.
        ghn_fast.graph.TraceError: the model could not be run; says what to pass.
        ghn_fast.checkpoint.CheckpointError: the GHN could not be loaded.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    uses = Uses.of(model)
    _check_parameters(model, uses.parameters)
    report = PredictionReport()
    with _timed(report, "load"):
        network = ghn if isinstance(ghn, GHN) else _load(str(ghn or DEFAULT_GHN))
    with _timed(report, "graph"):
        if graph is None:
            graph = Graph.from_model(model, example_inputs)
        else:
            graph = graph.with_shapes(uses.parameters)
    with _timed(report, "predict"):
        plan, report.rules = _write(model, network, graph, uses)
    _account(report, uses.parameters, plan)
    return (model, report) if return_report else model


def _check_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters to predict")
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"parameter {name!r} has no shape yet: call the model once on an example input "
                "to initialise its lazy modules, then predict"
            )
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device and has no memory to write to: build "
                "the model on a real device (to_empty() would leave constants and buffers unset)"
            )
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise ValueError(
                f"parameter {name!r} is {parameter.dtype}; only floating-point parameters can be "
                "predicted: predict before quantising the model"
            )
        if parameter.numel() > 0 and parameter.data_ptr() == 0:
            raise ValueError(
                f"parameter {name!r} ({type(parameter.data).__name__}) has no memory of its own to "
                "write to: predict before sharding or quantising the model"
            )
        if parameter.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"parameter {name!r} was made in inference mode and cannot be written outside it: "
                "build the model outside torch.inference_mode(), or predict inside"
            )


def _load(name: str) -> GHN:
    """Loaded once: a GHN in evaluation mode is never changed by predicting with it.

    A file that was written anew is loaded anew.
    """
    from ghn_fast.checkpoint.files import checkpoint_file
    from ghn_fast.ghn.hub import shipped

    path = Path(name).expanduser()
    if not path.exists() or name in shipped():
        return _loaded(name, None)
    file = checkpoint_file(path).resolve()
    status = file.stat()
    return _loaded(str(file), (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _loaded(name: str, version: tuple[int, ...] | None) -> GHN:
    from ghn_fast.checkpoint import from_pretrained

    return from_pretrained(name)


@torch.no_grad()
def _write(model: nn.Module, ghn: GHN, graph: Graph, uses: Uses) -> tuple[Plan, dict[str, str]]:
    """Writes all parameters; returns the plan and {parameter name: rule}."""
    plan = ghn.write(GraphBatch([graph]), [uses])
    return plan, plan.rules(0) | fill(model, plan.others[0])


def _account(report: PredictionReport, parameters: Mapping[str, nn.Parameter], plan: Plan) -> None:
    # A tied parameter is in the plan under one of its names, and reported under its first.
    rules = {id(parameters[name]): rule for name, rule in report.rules.items()}
    report.rules = {}
    first = {id(parameter): name for name, parameter in reversed(list(parameters.items()))}
    for identity, name in reversed(list(first.items())):
        rule = rules.get(identity)
        if rule is None:
            reason = plan.skipped[0].get(name, "has no node in the model's graph")
            report.unpredicted[name] = reason
        else:
            report.predicted[name] = tuple(parameters[name].shape)
            report.rules[name] = rule


@contextmanager
def _timed(report: PredictionReport, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report.stages[stage] = time.perf_counter() - start
