"""From a model to its graph."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ghn_fast._system.collection import uncollected
from ghn_fast._system.wrapped import unwrapped
from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.channels import drop_idle_splits, follower
from ghn_fast.graph.trace.contract import contract
from ghn_fast.graph.trace.dispatched import dispatched
from ghn_fast.graph.trace.guess import Call as Inputs
from ghn_fast.graph.trace.guess import arguments_of
from ghn_fast.graph.trace.head import ends_of, first_output, heads_of
from ghn_fast.graph.trace.inputs import guesses
from ghn_fast.graph.trace.layers import is_norm, is_position_table, layer_record, norm_record
from ghn_fast.graph.trace.preserve import preserved
from ghn_fast.graph.trace.recorder import Kind, NeedsValues, Parameter, Recorder
from ghn_fast.graph.trace.rules import MODULES, ROLES, function_rules
from ghn_fast.graph.trace.search import Search, describe_failures, innermost
from ghn_fast.graph.trace.unused import (
    FROZEN,
    GUESSED,
    NOT_GIVEN,
    TRAINING_ONLY,
    reasons,
    whole_parts,
)
from ghn_fast.graph.types import LANGUAGE_NODE_TYPES, NODE_TYPES

UNDECODED = ("embedding", "norm_offset")
"""Roles of parameters that have a node but are not what the published definition means by it."""


ADVICE = (
    "pass example_inputs=...: a tensor, a tuple of arguments or a dict of keyword arguments "
    "(a dict or a graph that is itself an argument goes into a tuple: ({...},), (data,))"
)


class TraceError(RuntimeError):
    """The model's graph could not be built; the message says what to pass."""


@dataclass
class Trace:
    """The graph of a model before distances are computed.

    Attributes:
        nodes: in topological order, the input first.
        edges: (E, 2) int64, (source, target) positions in ``nodes``.
        unused: parameters that no node carries and no output depends on, or that are frozen.
        other: parameters that the output depends on but that have no node in the published
            definition of the graph, and what they look like ("class_token", "layer_scale", ...);
            and what has one but is something else (:data:`UNDECODED`): tables that rows are looked
            up in, weights of norms whose gain is one plus the weight.
        heads: see :class:`ghn_fast.graph.Graph`.
    """

    nodes: list[Node]
    edges: NDArray[np.int64]
    unused: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    heads: tuple[int, ...] = ()

    @property
    def missing(self) -> set[str]:
        """The parameters that no output depends on."""
        return {name for name, why in self.unused.items() if why != FROZEN}


def trace(
    model: nn.Module, example_inputs: Any = None, types: tuple[str, ...] = NODE_TYPES
) -> Trace:
    """Runs a model once without arithmetic and returns its graph.

    The model is left as it was, whatever its forward writes to: parameters, buffers, attributes
    and what they hold, modes, hooks, gradients and random states.
    Parts that run only in training, such as auxiliary heads, are counted. A model whose course
    depends on the values of activations is run for real, on the same inputs, and so is one whose
    calls cannot be seen in Python, because it is scripted.

    Args:
        model: any module that can be called, on any device and in any floating point type.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; worked out
            from the model if None (:func:`ghn_fast.graph.trace.inputs.guess_inputs`).
        types: that nodes may have.

    Raises:
        TypeError: the model is no module.
        TraceError: the model has no parameters, is not built yet, or could not be run.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    # A view made in inference mode does not know what it is a view of.
    with uncollected(), torch.inference_mode(False):
        modules = list(model.named_modules())
        _check_parameters(model, modules)
        call = _Call(model, modules, types)
        if example_inputs is None:
            call, result = _guessed(call)
        else:
            call = call.of(_arguments(example_inputs))
            result = _attempt(call, training=False)
        if result.missing:
            result = _with_training_parts(call, result)
        if example_inputs is None and result.missing:
            others = {name for name, why in result.unused.items() if why == NOT_GIVEN}
            for name in others | whole_parts(modules, result.missing):
                result.unused[name] = GUESSED
        return result


Modules = Sequence[tuple[str, nn.Module]]


@dataclass(frozen=True)
class _Call:
    """A model, its modules by name, and what it is called with."""

    model: nn.Module
    modules: Modules
    types: tuple[str, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def of(self, inputs: Inputs) -> _Call:
        """The same model, called with these."""
        args, kwargs = inputs
        return replace(self, args=args, kwargs=kwargs)

    @property
    def scripted(self) -> bool:
        kinds = {type(module) for _, module in self.modules}
        return any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds)

    @property
    def on_meta(self) -> bool:
        return any(p.is_meta for p in self.model.parameters())

    def __str__(self) -> str:
        values = [_describe(value) for value in self.args]
        values += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        return f"model({', '.join(values)})"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_describe(item) for item in value) + "]"
    if isinstance(value, dict):
        items = (f"{name!r}: {_describe(item)}" for name, item in value.items())
        return "{" + ", ".join(items) + "}"
    return type(value).__name__


def _guessed(call: _Call) -> tuple[_Call, Trace]:
    """The graph for the first inputs that the model runs with."""

    def run(inputs: Inputs, real: bool) -> Trace:
        return _run(call.of(inputs), training=False, execute=real or call.scripted)

    def run_method(method: Callable[..., Any], inputs: Inputs, real: bool) -> Any:
        watched = _watched(call.of(inputs), False, real)
        with watched as (recorder, (args, kwargs)), recorder:
            return method(*args, **kwargs)

    model = call.model
    search: Search[Trace] = Search(run, may_run=lambda: not call.on_meta)
    parts = [module for _, module in call.modules]
    found = search.first(guesses(model, modules=parts, thin=True, run_method=run_method))
    if found is not None:
        inputs, result = found
        return call.of(inputs), result
    tried = [(str(call.of(inputs)), error) for inputs, error in search.failures]
    raise TraceError(
        f"{type(model).__name__} could not be run with any input that was worked out from it:\n"
        f"{describe_failures(tried)}\n{_advice(call.on_meta, [error for _, error in tried])}\n"
        f"its forward takes {', '.join(arguments_of(unwrapped(model).forward)[1])}"
    ) from search.failures[0][1]


def _check_parameters(model: nn.Module, modules: Modules) -> None:
    found = False
    for prefix, module in modules:
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            found = True
            if is_lazy(tensor):
                raise TraceError(
                    f"{prefix}.{name} has no shape yet: call the model once on an example, then "
                    "build its graph"
                )
    if not found:
        raise TraceError(f"{type(model).__name__} has no parameters, so there is no graph of it")


def _with_training_parts(call: _Call, evaluated: Trace) -> Trace:
    """The graph in training mode if more parameters, and no others, reach an output there."""
    try:
        trained = _attempt(call, training=True)
    except TraceError:
        return evaluated
    if trained.missing < evaluated.missing:
        return trained
    for name in evaluated.missing - trained.missing:
        evaluated.unused[name] = TRAINING_ONLY
    return evaluated


def _attempt(call: _Call, training: bool) -> Trace:
    try:
        return _run(call, training, execute=call.scripted)
    except Exception as error:
        if call.on_meta or call.scripted:
            raise _explain(call, error) from error
    try:
        return _run(call, training, execute=True)
    except Exception as error:
        raise _explain(call, error) from error


def _explain(call: _Call, error: Exception) -> TraceError:
    return TraceError(
        f"{type(call.model).__name__} could not be run as {call}: {innermost(error)}\n"
        f"{_advice(call.on_meta, [error])}"
    )


def _advice(on_meta: bool, errors: Sequence[Exception]) -> str:
    if on_meta and any(isinstance(error, NeedsValues) for error in errors):
        return "its course depends on values, so it needs parameters that are not on meta"
    return ADVICE


def _arguments(example_inputs: Any) -> Inputs:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs is a tensor, a tuple of arguments or a dict of keyword arguments, not "
        f"{type(example_inputs).__name__}; any other object that is the argument, such as a graph, "
        "goes into a tuple: (data,)"
    )


# --- one run ---------------------------------------------------------------------------------


def _run(call: _Call, training: bool, execute: bool) -> Trace:
    with _watched(call, training, execute) as (recorder, inputs):
        outputs = _outputs(call.model, recorder, *inputs)
    return _assemble(recorder, outputs)


@contextmanager
def _watched(call: _Call, training: bool, execute: bool) -> Iterator[tuple[Recorder, Inputs]]:
    """A recorder and the inputs as it knows them; afterwards the model is as it was."""
    model, modules = call.model, call.modules
    products = getattr(model, "graph_products", ())
    with ExitStack() as stack:
        parts = [module for _, module in modules]
        kept = stack.enter_context(preserved(model, parts, execute))
        stack.enter_context(_eager())
        _set_mode(modules, training)
        recorder = Recorder(modules, kept.tensors, function_rules(), execute, products, call.types)
        recorder.after = follower(recorder)
        _isolate_registered(modules, recorder)
        inputs = _enter(recorder, (call.args, call.kwargs))
        # Some fused kernels, which hide what they do, are for models that need no gradients.
        stack.enter_context(torch.enable_grad())
        if execute:
            stack.enter_context(dispatched(recorder))
        yield recorder, inputs
        recorder.random = not recorder.all_used() and kept.drew()


def _set_mode(modules: Modules, training: bool) -> None:
    """Of all modules whose mode is an attribute; scripted ones keep theirs."""
    for _, module in modules:
        if "training" in module.__dict__:
            module.__dict__["training"] = training


def _outputs(
    model: nn.Module, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[int]:
    """Runs the model and returns the records of what it returned."""
    try:
        with recorder:
            # A generator computes what it yields only now.
            output = list(_tensors_of(unwrapped(model)(*args, **kwargs)))
    except NeedsValues:
        # What is left, such as pasting predicted masks into an image, has no parameters.
        if not recorder.all_used():
            raise
        return list(range(len(recorder.records.kinds)))
    recorder.output = first_output(recorder, output, _tensors_of((args, kwargs)))
    return [r for t in output if (r := recorder.record_of(t)) is not None]


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _enter(recorder: Recorder, value: Any) -> Any:
    """The inputs as the recorder knows them: without values, but for small integers."""
    if isinstance(value, Tensor):
        keeps_values = recorder.execute or (not value.is_floating_point() and not value.is_meta)
        entered = value.detach().clone() if keeps_values else torch.empty_like(value, device="meta")
        return recorder.tag(entered, recorder.input)
    if isinstance(value, (tuple, list)):
        items = [_enter(recorder, item) for item in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if isinstance(value, dict):
        return {key: _enter(recorder, item) for key, item in value.items()}
    return value


def _tensors_of(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """All tensors in what a model returned."""
    if isinstance(value, Tensor):
        yield value
    elif depth > 8:
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_of(item, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset, Iterator)):
        for item in value:
            yield from _tensors_of(item, depth + 1)
    elif not isinstance(value, (type, ModuleType, nn.Module)):
        for item in _attributes(value):
            yield from _tensors_of(item, depth + 1)


def _attributes(value: Any) -> list[Any]:
    """What an object of any class holds, such as a dataclass or a distribution."""
    slots = (name for base in type(value).__mro__ for name in getattr(base, "__slots__", ()))
    held = [getattr(value, name) for name in slots if hasattr(value, name)]
    return held + list(getattr(value, "__dict__", {}).values())


def _isolate_registered(modules: Sequence[tuple[str, nn.Module]], recorder: Recorder) -> None:
    """Modules with a rule of their own run unobserved and become one layer."""
    if not MODULES:
        return
    classes = tuple(MODULES)
    for _, module in modules:
        if isinstance(module, classes):
            node_type = next(t for c, t in reversed(MODULES.items()) if isinstance(module, c))
            module.__dict__["forward"] = _as_layer(recorder, module, node_type)


def _as_layer(recorder: Recorder, module: nn.Module, node_type: str) -> Callable[..., Any]:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        parents = recorder.records_in(args, kwargs)
        recorder.opaque += 1
        try:
            output = forward(*args, **kwargs)
        finally:
            recorder.opaque -= 1
        if recorder.opaque:
            return output
        return recorder.tag(output, _layer(recorder, module, node_type, parents))

    return run


def _layer(recorder: Recorder, module: nn.Module, node_type: str, parents: list[int]) -> int:
    tensors = dict(module.named_parameters())
    if not tensors:
        return recorder.add(Kind.KEEP, parents, Node(node_type, node_type))
    largest = max(tensors.values(), key=lambda p: p.numel())
    weight, bias = tensors.get("weight", largest), tensors.get("bias")
    if bias is weight:
        bias = None
    for tensor in tensors.values():
        parameter = recorder.parameter_of(tensor)
        if parameter is not None:
            parameter.source = None
    record = norm_record if node_type in ("bn", "ln") else layer_record
    rest = [t for t in tensors.values() if t is not weight and t is not bias]
    number = record(recorder, node_type, parents, weight, bias)
    return recorder.merge([number, *recorder.records_in(rest)])


# --- from records to a trace -------------------------------------------------------------------


def _assemble(recorder: Recorder, outputs: list[int]) -> Trace:
    _settle_sources(recorder)
    records = recorder.records
    ends = [recorder.input, *outputs]
    kept, edges, live = contract(records.kinds, records.parents, ends)
    while recorder.after is not None and drop_idle_splits(records, kept, edges):
        kept, edges, live = contract(records.kinds, records.parents, ends)
    nodes = [records.nodes[record] for record in kept]
    if not any(_reaches(parameter, live) for parameter in recorder.parameters.values()):
        raise RuntimeError("no output of the model depends on its parameters")
    edges = _from_input(kept, edges, records.sourceless)
    trained = any(p.tensor.requires_grad for p in recorder.parameters.values())
    result = Trace([n for n in nodes if n is not None], edges)
    _average_before_classifier(result)
    if recorder.types == LANGUAGE_NODE_TYPES:
        _set_head_aside(result)
    if recorder.output is not None:
        last = ends_of(recorder, recorder.output.record, kept)
        result.heads = heads_of(result.nodes, edges, recorder.output, last)
    _account(recorder, live, result)
    if trained:
        _set_frozen_aside(recorder.parameters.values(), result)
    return result


def _settle_sources(recorder: Recorder) -> None:
    """Parameters that entered computations directly: position tables, and what has no node."""
    records = recorder.records
    _settle_layer_scales(recorder)
    for parameter in recorder.parameters.values():
        if parameter.source is None or parameter.node is not None:
            continue
        if parameter.role is None and is_position_table(parameter):
            shape = tuple(parameter.tensor.shape)
            records.kinds[parameter.source] = int(Kind.KEEP)
            records.nodes[parameter.source] = Node("pos_enc", parameter.name, shape, parameter.name)
            records.sourceless.add(parameter.source)
            parameter.node = parameter.source


def _settle_layer_scales(recorder: Recorder) -> None:
    """Parameters that scale branches of the network and nothing else, or of modules for that."""
    for parameter in recorder.parameters.values():
        if "layerscale" in type(parameter.module).__name__.lower():
            parameter.role = parameter.role or "layer_scale"
    if not recorder.branches:
        return
    users = defaultdict[int, set[int]](set)
    for number, parents in enumerate(recorder.records.parents):
        for parent in parents:
            users[parent].add(number)
    for parameter in recorder.parameters.values():
        if parameter.source is None or parameter.node is not None or parameter.role is not None:
            continue
        if users[parameter.source] <= recorder.branches and not is_norm(parameter.module):
            parameter.role = "layer_scale"


def _from_input(
    kept: NDArray[np.int64], edges: NDArray[np.int64], sourceless: set[int]
) -> NDArray[np.int64]:
    """Layers that read constants start at the input; position tables start nowhere."""
    has_source = np.zeros(len(kept), dtype=bool)
    has_source[edges[:, 1]] = True
    orphans = [
        (0, i) for i in range(1, len(kept)) if not has_source[i] and int(kept[i]) not in sourceless
    ]
    return np.concatenate([np.array(orphans, dtype=np.int64).reshape(-1, 2), edges])


def _average_before_classifier(result: Trace) -> None:
    """Puts a global average that ends the network before the classifying convolution.

    So that the last two nodes are the classification layer, as in the published graphs; an
    average and a 1x1 convolution commute.
    """
    nodes = result.nodes
    last = len(nodes) - 1
    if last < 3 or nodes[last].type != "glob_avg":
        return
    weight = last - 1 if nodes[last - 1].type == "conv" else last - 2
    chain = list(range(weight, last))
    if nodes[weight].type != "conv" or len(nodes[weight].shape or ()) != 4:
        return
    if len(chain) == 2 and nodes[last - 1].type != "bias":
        return
    between = result.edges[result.edges[:, 0] >= weight]
    if sorted(map(tuple, between.tolist())) != [(i, i + 1) for i in chain]:
        return
    # The edges form a chain, so moving the average to its front leaves them as they are.
    nodes[weight:] = [nodes[last], *nodes[weight:last]]


def _reaches(parameter: Parameter, live: NDArray[np.bool_]) -> bool:
    """Whether an output depends on a parameter."""
    records = (parameter.node, parameter.source, parameter.folded)
    return any(record is not None and live[record] for record in records)


def _account(recorder: Recorder, live: NDArray[np.bool_], result: Trace) -> None:
    """Says of every parameter without a node what it is or why it has none."""
    carried = {n.parameter for n in result.nodes} | {n.bias for n in result.nodes}
    idle: list[Parameter] = []
    for parameter in recorder.parameters.values():
        if parameter.name in carried:
            if parameter.role in UNDECODED:
                result.other[parameter.name] = parameter.role
            continue
        if parameter.source is not None and live[parameter.source]:
            result.other[parameter.name] = _role(parameter)
        else:
            idle.append(parameter)
    result.unused.update(reasons(recorder, idle))


def _set_head_aside(result: Trace) -> None:
    """As in LoGAH's graphs, an output layer without bias after a layer norm hangs on the input.

    After an RMS norm it follows the norm, as it should; checkpoints were trained on both.
    """
    last = len(result.nodes) - 1
    sources = result.edges[result.edges[:, 1] == last, 0]
    if result.nodes[last].type == "conv" and [result.nodes[s].type for s in sources] == ["ln"]:
        result.edges[result.edges[:, 1] == last, 0] = 0
        result.edges = np.unique(result.edges, axis=0)


def _role(parameter: Parameter) -> str:
    if parameter.role is not None:
        return parameter.role
    if isinstance(parameter.module, nn.PReLU):
        return "slope"
    if parameter.tensor.numel() == 1:
        return "scalar"
    name = parameter.name.rsplit(".", 1)[-1].lower()
    for pattern, role in ROLES:
        if re.search(pattern, name):
            return role
    return "scale" if is_norm(parameter.module) else "unknown"


def _set_frozen_aside(parameters: Iterable[Parameter], result: Trace) -> None:
    """Frozen parameters among trained ones keep their nodes but are not to be predicted."""
    frozen = {p.name for p in parameters if not p.tensor.requires_grad}
    if not frozen:
        return
    for i, node in enumerate(result.nodes):
        if node.parameter in frozen or node.bias in frozen:
            result.nodes[i] = replace(
                node,
                parameter=None if node.parameter in frozen else node.parameter,
                bias=None if node.bias in frozen else node.bias,
            )
    for name in frozen:
        result.other.pop(name, None)
        result.unused.setdefault(name, FROZEN)
