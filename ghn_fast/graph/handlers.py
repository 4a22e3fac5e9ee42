"""What a rule does: from a call that the recorder intercepts to records and an output shape.

Each factory here returns a handler for one kind of function; :mod:`ghn_fast.graph.rules` says
which functions it applies to and which node type it makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.graph import shapes
from ghn_fast.graph.graph import Node
from ghn_fast.graph.recorder import Handler, Kind, NeedsValues, Parameter, Recorder

Func = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# How far back a product looks for the softmax or the average that one operand comes from.
_SEARCH_LIMIT = 64
_MIXING = frozenset(("conv", "sep_conv", "dil_conv", "bias"))


def bind(names: Sequence[str], args: Args, kwargs: Kwargs) -> list[Any]:
    """Arguments by position or name, None where not given."""
    return [*args, *(kwargs.get(name) for name in names[len(args) :])][: len(names)]


# --- layers: a node for the weight and one for the bias --------------------------------------


def weight_record(rec: Recorder, node_type: str, weight: Tensor, parents: Sequence[int]) -> int:
    """The record of a layer's weight applied to values made by ``parents``."""
    behind = rec.parameters_behind(weight)
    if not behind:
        # A constant kernel, or one that is computed from activations.
        return rec.merge([*parents, *rec.records_in(weight)])
    main, *others = behind
    for other in others:
        other.role = other.role or "weight_gain"
    if main.node is not None:
        # Shared weights have one node, where they are first used.
        return rec.merge([*parents, main.node, *_sources(rec, others)])
    main.node = rec.add(
        Kind.KEEP,
        [*parents, *_sources(rec, others)],
        Node(node_type, main.name, tuple(main.tensor.shape), main.name),
    )
    return main.node


def bias_record(rec: Recorder, bias: Tensor, weight: int) -> int:
    """The record of a layer's bias, which follows the weight's."""
    behind = rec.parameters_behind(bias)
    if not behind:
        return rec.merge([weight, *rec.records_in(bias)])
    numbers = []
    for parameter in behind:
        if parameter.node is None:
            shape = tuple(parameter.tensor.shape)
            node = Node("bias", parameter.name, shape, parameter.name)
            parameter.node = rec.add(Kind.KEEP, [weight], node)
            numbers.append(parameter.node)
        else:
            numbers += [weight, parameter.node]
    return rec.merge(numbers)


def _sources(rec: Recorder, parameters: Sequence[Parameter]) -> list[int]:
    return [rec.source(parameter) for parameter in parameters]


def layer_record(
    rec: Recorder, node_type: str, parents: Sequence[int], weight: Any, bias: Any
) -> int:
    """The record of a layer's output."""
    number = weight_record(rec, node_type, weight, parents)
    return number if bias is None else bias_record(rec, bias, number)


def _only_parameters(rec: Recorder, x: Tensor) -> bool:
    """The operation prepares a weight, as weight standardisation does, and is not a layer."""
    return rec.is_static(rec.record_of(x))


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = (
    *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
)


def convolution(transposed: bool = False) -> Handler:
    """A convolution; its node type depends on groups and dilation."""
    names = _CONV_TRANSPOSE if transposed else _CONV
    shape = shapes.transposed_convolution if transposed else shapes.convolution

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        values = dict(zip(names, args, strict=False)) | kwargs
        x, weight = values.pop("input"), values["weight"]
        if rec.opaque or _only_parameters(rec, x):
            return rec.generic(func, args, kwargs)
        node_type = "conv"
        if values.get("groups", 1) > 1:
            dilation = values.get("dilation", 1)
            dilated = min(dilation if isinstance(dilation, Sequence) else (dilation,)) > 1
            node_type = "dil_conv" if dilated else "sep_conv"
        number = layer_record(rec, node_type, rec.records_in(x), weight, values.get("bias"))
        if rec.execute:
            return rec.tag(rec.run(func, args, kwargs), number)
        return rec.fresh(shape(x, **values), number, x.dtype)

    return handle


def linear(node_type: str) -> Handler:
    """``torch.nn.functional.linear``."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        x, weight, bias = bind(("input", "weight", "bias"), args, kwargs)
        if rec.opaque or _only_parameters(rec, x):
            return rec.generic(func, args, kwargs)
        number = layer_record(rec, node_type, rec.records_in(x), weight, bias)
        return rec.emit(number, func, args, kwargs, x, shapes.linear, x, weight)

    return handle


def bilinear(node_type: str) -> Handler:
    """``torch.nn.functional.bilinear``: a weight with two inputs."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        x, y, weight, bias = bind(("input1", "input2", "weight", "bias"), args, kwargs)
        if rec.opaque:
            return rec.generic(func, args, kwargs)
        number = layer_record(rec, node_type, rec.records_in(x, y), weight, bias)
        out = (*x.shape[:-1], weight.shape[0])
        return rec.emit(number, func, args, kwargs, x, lambda: out)

    return handle


def addmm(node_type: str) -> Handler:
    """``torch.addmm(bias, input, weight)``, a linear layer with its weight transposed."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        bias, x, weight = bind(("input", "mat1", "mat2"), args, kwargs)
        if rec.opaque or _only_parameters(rec, x) or not rec.parameters_behind(weight):
            return rec.generic(func, args, kwargs)
        number = layer_record(rec, node_type, rec.records_in(x), weight, bias)
        return rec.emit(number, func, args, kwargs, x, shapes.matmul, x, weight)

    return handle


def normalisation(node_type: str, names: Sequence[str]) -> Handler:
    """A normalisation: one node for weight and bias, none if it has neither."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        values = dict(zip(names, bind(names, args, kwargs), strict=True))
        x = values["input"]
        if rec.opaque or _only_parameters(rec, x):
            return rec.generic(func, args, kwargs)
        number = norm_record(
            rec, node_type, rec.records_in(x), values.get("weight"), values.get("bias")
        )
        return rec.emit(number, func, args, kwargs, x, lambda: x.shape)

    return handle


def norm_record(
    rec: Recorder, node_type: str, parents: Sequence[int], weight: Any, bias: Any
) -> int:
    """The record of a normalisation layer's output."""
    number = (
        rec.merge(parents) if weight is None else weight_record(rec, node_type, weight, parents)
    )
    if bias is not None:
        number = _norm_bias(rec, bias, number)
    return number


def _norm_bias(rec: Recorder, bias: Tensor, weight: int) -> int:
    node = rec.records.nodes[weight] if rec.records.kinds[weight] == Kind.KEEP else None
    parameter = rec.parameter_of(bias)
    if parameter is not None and parameter.folded == weight:
        return weight
    free = parameter is not None and parameter.node is None and parameter.folded is None
    if parameter is None or not free or node is None or node.parameter is None or node.bias:
        if parameter is not None:
            parameter.role = parameter.role or "norm_bias"
        return rec.merge([weight, *rec.records_in(bias)])
    parameter.folded = weight
    rec.records.nodes[weight] = Node(
        node.type, node.name, node.shape, node.parameter, parameter.name
    )
    return weight


def embedding(node_type: str) -> Handler:
    """``torch.nn.functional.embedding``: rows of a table."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        index, weight = bind(("input", "weight"), args, kwargs)
        if rec.opaque:
            return rec.generic(func, args, kwargs)
        number = weight_record(rec, node_type, weight, rec.records_in(index))
        out = (*index.shape, weight.shape[-1])
        return rec.emit(number, func, args, kwargs, weight, lambda: out)

    return handle


_MHA = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight"),
    *("out_proj_bias", "training", "key_padding_mask", "need_weights", "attn_mask"),
    *("use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("static_k", "static_v", "average_attn_weights", "is_causal"),
)


def multi_head_attention(node_type: str) -> Handler:
    """``torch.nn.functional.multi_head_attention_forward``.

    The published graphs of vision transformers were made where attention that returns no weights
    runs fused, which left no node of its own: only with ``need_weights`` there is one.
    """

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a = dict(zip(_MHA, args, strict=False)) | kwargs
        if rec.opaque:
            return rec.generic(func, args, kwargs)
        query, key, value = a["query"], a["key"], a["value"]
        if a.get("use_separate_proj_weight"):
            pairs = zip("qkv", (query, key, value), strict=True)
            projected = [
                weight_record(rec, "conv", a[f"{letter}_proj_weight"], rec.records_in(x))
                for letter, x in pairs
            ]
        else:
            inputs = rec.records_in(query, key, value)
            projected = [weight_record(rec, "conv", a["in_proj_weight"], inputs)]
        number = rec.merge(projected)
        if a["in_proj_bias"] is not None:
            number = bias_record(rec, a["in_proj_bias"], number)
        for name in ("bias_k", "bias_v"):
            number = rec.merge([number, *rec.records_in(a.get(name))])
        need_weights = a.get("need_weights", True)
        if need_weights:
            number = rec.add(Kind.KEEP, [number], Node(node_type, node_type))
        number = layer_record(rec, "conv", [number], a["out_proj_weight"], a["out_proj_bias"])
        if rec.execute:
            return rec.tag(rec.run(func, args, kwargs), number)
        out_dim = a["out_proj_weight"].shape[0]
        out = rec.fresh((*query.shape[:-1], out_dim), number, query.dtype)
        return out, (rec.fresh(_weights_shape(a), number, query.dtype) if need_weights else None)

    return handle


def _weights_shape(a: dict[str, Any]) -> tuple[int, ...]:
    """Of the attention weights that ``nn.MultiheadAttention`` returns: (B, [heads,] L, S)."""
    query, key = a["query"], a["key"]
    source = key.shape[0] + (a["bias_k"] is not None) + bool(a["add_zero_attn"])
    batch = () if query.dim() == 2 else (query.shape[1],)
    heads = () if a.get("average_attn_weights", True) else (a["num_heads"],)
    return (*batch, *heads, query.shape[0], source)


_RNN_STATES = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``torch.lstm`` and its kin: their weights are no layer of the published definition."""
    packed = isinstance(args[3], (list, tuple))
    if rec.execute or rec.opaque or packed:
        return rec.generic(func, args, kwargs)
    x, states, weights, _, layers, _, _, bidirectional, batch_first = args[:9]
    for parameter in (rec.parameter_of(weight) for weight in weights):
        if parameter is not None:
            parameter.role = "recurrent_weight" if parameter.tensor.dim() > 1 else "recurrent_bias"
    number = rec.merge(rec.records_in(args))
    directions = 2 if bidirectional else 1
    gates = {"lstm": 4, "gru": 3}.get(func.__name__, 1)
    hidden = weights[0].shape[0] // gates
    first = states[0] if isinstance(states, (list, tuple)) else states
    width = first.shape[-1]
    out = rec.fresh((*x.shape[:-1], directions * width), number, x.dtype)
    batch = () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)
    sizes = [width, hidden][: _RNN_STATES[func.__name__]]
    return out, *(rec.fresh((layers * directions, *batch, size), number, x.dtype) for size in sizes)


# --- operations without parameters of their own ----------------------------------------------


def pooling(node_type: str, dims: int) -> Handler:
    """Maximum or average pooling; its node's shape is (1, 1, kh, kw)."""
    maximum = node_type == "max_pool"
    names = ("input", "kernel_size", "stride", "padding") + (
        ("dilation", "ceil_mode", "return_indices") if maximum else ("ceil_mode",)
    )

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a = dict(zip(names, args, strict=False)) | kwargs
        x = a["input"]
        parents = rec.records_in(x)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        kernel = shapes.as_tuple(a["kernel_size"], dims)
        square = (1, kernel[0]) if dims == 1 else kernel[-2:]
        number = rec.add(Kind.KEEP, parents, Node(node_type, node_type, (1, 1, *square)))
        out = shapes.pooling(
            x,
            kernel,
            a.get("stride"),
            a.get("padding", 0),
            a.get("dilation", 1),
            a.get("ceil_mode", False),
            dims,
        )
        if not maximum and dims > 1 and set(out[-dims:]) == {1}:
            rec.records.flags[number] = "average"
        if rec.execute:
            return rec.tag(rec.run(func, args, kwargs), number)
        result = rec.fresh(out, number, x.dtype)
        if a.get("return_indices"):
            return result, rec.fresh(out, number, torch.int64)
        return result

    return handle


def adaptive_average(node_type: str, dims: int) -> Handler:
    """Adaptive average pooling; to a single position it may be a gate's average."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        x, size = bind(("input", "output_size"), args, kwargs)
        parents = rec.records_in(x)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        out = shapes.adaptive_pooling(x, size, dims)
        number = rec.add(Kind.KEEP, parents, Node(node_type, node_type))
        if set(out[-dims:]) == {1}:
            rec.records.flags[number] = "average"
        return rec.emit(number, func, args, kwargs, x, lambda: out)

    return handle


def mean(node_type: str) -> Handler:
    """A mean over all positions of an image or a sequence is a global average."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        x, dim, keepdim = bind(("input", "dim", "keepdim"), args, kwargs)
        parents = rec.records_in(x)
        if rec.opaque or not parents or rec.is_static(parents[0]):
            return rec.generic(func, args, kwargs)
        if dim is None:
            dim = kwargs.get("axis")
        if _over_positions(x, dim, bool(keepdim)):
            number = rec.add(Kind.KEEP, parents, Node(node_type, node_type))
            rec.records.flags[number] = "average"
        else:
            number = rec.flag(parents, "mean")
        return rec.emit(number, func, args, kwargs, x, shapes.reduction, x, dim, bool(keepdim))

    return handle


def _over_positions(x: Tensor, dim: Any, keepdim: bool) -> bool:
    """Whether dimensions are all positions of (B, C, H, W), (B, H, W, C), (B, T, C), ..."""
    if dim is None or isinstance(dim, str):
        return False
    n = x.dim()
    dims = {d % n for d in shapes.as_tuple(dim, 1)}
    if n == 3:
        # The last of three dimensions is the channels of tokens where it is kept: a norm layer.
        return dims == {1} or (dims == {2} and not keepdim)
    return n > 3 and (dims == set(range(2, n)) or dims == set(range(1, n - 1)))


def softmax(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Marked, because the product of its result with values is attention."""
    x = args[0] if args else kwargs["input"]
    parents = rec.records_in(x)
    if not parents:
        return rec.generic(func, args, kwargs)
    number = rec.flag(parents, "softmax")
    return rec.emit(number, func, args, kwargs, x, lambda: x.shape)


def fused_attention(node_type: str) -> Handler:
    """``torch.nn.functional.scaled_dot_product_attention``."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        query, _, value = bind(("query", "key", "value"), args, kwargs)
        parents = rec.records_in(args, kwargs)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        number = rec.add(Kind.KEEP, parents, Node(node_type, node_type))
        return rec.emit(number, func, args, kwargs, query, shapes.attention, query, value)

    return handle


def product(node_type: str) -> Handler:
    """A matrix product: attention after a softmax, a linear layer with a parameter."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a, b = bind(("input", "other"), args, kwargs)
        if b is None:
            b = kwargs.get("mat2", kwargs.get("tensor2"))
        if "rmatmul" in func.__name__:
            a, b = b, a
        parents = rec.records_in(a, b)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        number = _product_record(rec, node_type, (a, b), parents)
        return rec.emit(number, func, args, kwargs, a, shapes.matmul, a, b)

    return handle


def einsum(node_type: str) -> Handler:
    """``torch.einsum`` of two operands, as :func:`product`."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        operands = list(rec.tensors_in(args))
        parents = rec.records_in(operands)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        if len(operands) == 2:
            number = _product_record(rec, node_type, (operands[0], operands[1]), parents)
        else:
            number = rec.merge(parents)
        return rec.tag(rec.run(func, args, kwargs), number)

    return handle


def _product_record(
    rec: Recorder, node_type: str, operands: tuple[Tensor, Tensor], parents: list[int]
) -> int:
    if all(rec.is_static(number) for number in parents):
        return rec.merge(parents)
    for weight, x in (operands, operands[::-1]):
        if rec.parameters_behind(weight) and weight.dim() >= 2 and min(weight.shape[-2:]) > 1:
            return weight_record(rec, "conv", weight, rec.records_in(x))
    if any(_comes_from(rec, number, "softmax", -1) is not None for number in parents):
        return rec.product(parents, Node(node_type, node_type))
    return rec.merge(parents)


def _comes_from(rec: Recorder, start: int, mark: str, stop: int) -> int | None:
    """The nearest record with a mark that a value depends on, made after record ``stop``.

    Looks through convolutions and linear layers, which gates and mixed attention heads have, but
    not through other nodes.
    """
    records = rec.records
    pending, seen = [start], {start}
    while pending and len(seen) <= _SEARCH_LIMIT:
        current = pending.pop(0)
        if records.flags.get(current) == mark:
            return current
        node = records.nodes[current]
        if node is not None and node.type not in _MIXING:
            continue
        for parent in records.parents[current]:
            if parent > stop and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return None


def addition(node_type: str) -> Handler:
    """A sum of two values, a bias, or a position table."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a, b = bind(("input", "other"), args, kwargs)
        parents = rec.records_in(a, b)
        if rec.opaque or len(parents) < 2:
            return binary(rec, func, args, kwargs)
        if parents[0] == parents[1] or all(rec.is_static(number) for number in parents):
            number = rec.merge(parents)
        else:
            number = _sum_record(rec, node_type, (a, b), parents)
        return _binary_result(rec, func, args, kwargs, a, b, number)

    return handle


def _sum_record(
    rec: Recorder, node_type: str, operands: tuple[Tensor, Tensor], parents: list[int]
) -> int:
    for parameter, x, number in (
        (rec.parameter_of(operands[0]), operands[1], parents[1]),
        (rec.parameter_of(operands[1]), operands[0], parents[0]),
    ):
        if parameter is None or parameter.node is not None:
            continue
        if _is_norm(parameter.module):
            return _norm_bias(rec, parameter.tensor, number)
        if is_position_table(parameter, x):
            position_record(rec, parameter)
            parents = rec.records_in(*operands)
        elif _biases(rec, parameter, number):
            return bias_record(rec, parameter.tensor, number)
    return rec.add(Kind.JOIN, parents, Node(node_type, node_type))


def _biases(rec: Recorder, parameter: Parameter, number: int) -> bool:
    """A vector that is added right after a layer's product is that layer's bias."""
    node = rec.records.nodes[number]
    return (
        node is not None
        and node.type in ("conv", "sep_conv", "dil_conv")
        and parameter.tensor.squeeze().dim() <= 1
        and parameter.tensor.numel() > 1
    )


_POSITION = re.compile(r"(^|[._])(abs(olute)?_)?(\w+_)?pos(ition(al|s)?)?($|[._\d]|_?e(mb|nc))")


def is_position_table(parameter: Parameter, x: Tensor | None = None) -> bool:
    """A table with a row for each position, by its name or by how it is added to ``x``."""
    shape = parameter.tensor.shape
    last = parameter.name.rsplit(".", 1)[-1]
    if sum(size > 1 for size in shape) < 2 or "rel" in last or "bias" in last:
        return False
    if _POSITION.search(parameter.name) is not None:
        return True
    if x is None:
        return False
    trailing = tuple(x.shape)[-len(shape) :]
    return all(m in (1, n) for m, n in zip(shape, trailing, strict=False))


def position_record(rec: Recorder, parameter: Parameter) -> int:
    """The node of a position table, which no edge leads to."""
    if parameter.node is None:
        node = Node("pos_enc", parameter.name, tuple(parameter.tensor.shape), parameter.name)
        parameter.node = rec.add(Kind.KEEP, (), node)
        rec.records.sourceless.add(parameter.node)
    return parameter.node


def multiplication(node_type: str) -> Handler:
    """A product of values: a gate of squeeze and excitation, a norm layer's weight, a scale."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a, b = bind(("input", "other"), args, kwargs)
        parents = rec.records_in(a, b)
        if rec.opaque or len(parents) < 2 or parents[0] == parents[1]:
            return binary(rec, func, args, kwargs)
        number = _scale_record(rec, node_type, (a, b), parents)
        return _binary_result(rec, func, args, kwargs, a, b, number)

    return handle


def _scale_record(
    rec: Recorder, node_type: str, operands: tuple[Tensor, Tensor], parents: list[int]
) -> int:
    static = [rec.is_static(number) for number in parents]
    if all(static):
        return rec.merge(parents)
    for index in (0, 1):
        if static[index]:
            weight, other = operands[index], parents[1 - index]
            behind = rec.parameters_behind(weight)
            if len(behind) == 1 and behind[0].tensor.dim() == 1 and _is_norm(behind[0].module):
                return weight_record(rec, "ln", weight, [other])
            return rec.merge(parents)
    for x, gate in ((0, 1), (1, 0)):
        average = _average_of(rec, operands[x], parents[x], operands[gate], parents[gate])
        if average is not None:
            rec.records.kinds[average] = int(Kind.CONTRACT)
            return rec.product(parents, Node(node_type, node_type))
    return rec.merge(parents)


def _average_of(
    rec: Recorder, x: Tensor, x_record: int, gate: Tensor, gate_record: int
) -> int | None:
    """The record of x's own global average that a gate is computed from, if it is such a gate."""
    if gate_record <= x_record or gate.numel() >= x.numel() or x.dim() < 3:
        return None
    average = _comes_from(rec, gate_record, "average", x_record)
    if average is not None and rec.records.parents[average] == (x_record,):
        return average
    return None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def concatenation(node_type: str) -> Handler:
    """``torch.cat``."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        tensors, dim = bind(("tensors", "dim"), args, kwargs)
        parents = rec.records_in(tensors)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        if all(rec.is_static(number) for number in parents):
            number = rec.merge(parents)
        else:
            number = rec.add(Kind.JOIN, parents, Node(node_type, node_type))
        if dim is None:
            dim = kwargs.get("axis", 0)
        like = next(t for t in tensors if rec.record_of(t) is not None)
        return rec.emit(number, func, args, kwargs, like, shapes.concatenation, tensors, dim)

    return handle


# --- operations that are contracted: only the shape of their result matters -------------------


def unary(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Activations, dropout and the like: the shape of their input."""
    x = args[0] if args else kwargs["input"]
    number = rec.record_of(x)
    if number is None or rec.execute or rec.parameter_of(x) or not rec.shape_only(x):
        return rec.generic(func, args, kwargs)
    parents = rec.records_in(args[1:], kwargs)
    if parents:
        number = rec.merge([number, *parents])
    if func.__name__.endswith("_") or kwargs.get("inplace"):
        if parents:
            rec.mutate(x, number)
        return x
    return rec.fresh(x.shape, number, x.dtype)


def binary(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Arithmetic on two values or a value and a number."""
    a, b = bind(("input", "other"), args, kwargs)
    parents = rec.records_in(a, b)
    if not parents:
        return rec.generic(func, args, kwargs)
    return _binary_result(rec, func, args, kwargs, a, b, rec.merge(parents))


def _binary_result(
    rec: Recorder, func: Func, args: Args, kwargs: Kwargs, a: Any, b: Any, number: int
) -> Any:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    first = a if isinstance(a, Tensor) else b
    in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
    plain = first.is_floating_point() and (
        a.dtype == b.dtype if both else isinstance(a if first is b else b, (int, float))
    )
    if rec.execute or not plain or (in_place and not rec.shape_only(first)) or "out" in kwargs:
        return _run_binary(rec, func, args, kwargs, number)
    if in_place:
        rec.mutate(first, number)
        return first
    out = shapes.broadcast(a.shape, b.shape) if both else first.shape
    return rec.fresh(out, number, first.dtype)


def _run_binary(rec: Recorder, func: Func, args: Args, kwargs: Kwargs, number: int) -> Any:
    result = rec.compute(func, args, kwargs)
    name = func.__name__
    if name.endswith("_") and not name.endswith("__"):
        rec.mutate(args[0], number)
        return args[0]
    return rec.tag(result, number)


def to(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``Tensor.to`` and its kin: the shape, perhaps in another type; devices do not matter."""
    x = args[0]
    number = rec.record_of(x)
    if number is None or rec.execute or not rec.shape_only(x):
        return rec.generic(func, args, kwargs)
    dtype = _target_dtype(rec, func.__name__, args[1:], kwargs, x.dtype)
    if dtype == x.dtype and rec.parameter_of(x) is None:
        return x
    return rec.fresh(x.shape, number, dtype)


_DTYPE_METHODS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "int": torch.int32,
    "long": torch.int64,
    "bool": torch.bool,
}


def _target_dtype(
    rec: Recorder, name: str, args: Args, kwargs: Kwargs, old: torch.dtype
) -> torch.dtype:
    if name in _DTYPE_METHODS:
        return _DTYPE_METHODS[name]
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, Tensor):
            return value.dtype
    return old


def device(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``Tensor.device``: where the model is, so that constants made there have values."""
    return func(*args, **kwargs) if rec.record_of(args[0]) is None else rec.device


def constant_like(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``zeros_like``, ``new_ones``, ...: a constant of that size, on the model's device."""
    x = args[0] if args else kwargs["input"]
    if rec.record_of(x) is None or rec.execute or not x.is_meta:
        return func(*args, **kwargs)
    kwargs.setdefault("device", rec.device)
    return func(*args, **kwargs)


def look(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Questions about a tensor that need no values."""
    return func(*args, **kwargs)


def values(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Questions about a tensor's values, which only constants and parameters have."""
    if any(rec.shape_only(tensor) for tensor in rec.tensors_in(args)):
        raise NeedsValues(f"the model asks for the value of an activation ({func.__name__})")
    return func(*args, **kwargs)


def get_item(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Indexing: constant masks become positions, as shapes alone cannot be masked."""
    x, index = args[0], args[1]
    parents = rec.records_in(args)
    if not parents or rec.execute or not (rec.shape_only(x) or rec.parameter_of(x)):
        return rec.generic(func, args, kwargs)
    items = index if isinstance(index, tuple) else (index,)
    expanded: list[Any] = []
    for item in items:
        if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
            expanded += _selected(rec, item)
        else:
            expanded.append(item)
    return rec.tag(rec.run(func, (x, tuple(expanded)), {}), rec.merge(parents))


def _selected(rec: Recorder, mask: Tensor) -> tuple[Tensor, ...]:
    """Where a mask holds, for each dimension; everywhere if it has no values.

    All is as possible an outcome as any, and one that everything computed from it agrees on.
    """
    if not rec.shape_only(mask):
        return mask.nonzero(as_tuple=True)
    everywhere = torch.empty(mask.numel(), dtype=torch.int64, device="meta")
    return (everywhere,) * mask.dim()


def set_item(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Assignment to a part: the whole depends on both; there is nothing to compute."""
    parents = rec.records_in(args)
    if not parents or rec.execute:
        return rec.generic(func, args, kwargs)
    rec.mutate(args[0], rec.merge(parents))
    return None


def select(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``nonzero``, ``where`` with one argument and ``masked_select``, see :func:`_selected`."""
    x = args[0] if args else kwargs.get("input", kwargs.get("condition"))
    parents = rec.records_in(args, kwargs)
    if not parents or rec.execute or not rec.shape_only(x) or (func in _WHERE and len(args) > 1):
        return rec.generic(func, args, kwargs)
    number = rec.merge(parents)
    if func.__name__ == "masked_select":
        return rec.fresh((x.numel(),), number, x.dtype)
    if func in _WHERE or kwargs.get("as_tuple"):
        return tuple(rec.fresh((x.numel(),), number, torch.int64) for _ in range(x.dim()))
    return rec.fresh((x.numel(), x.dim()), number, torch.int64)


_WHERE = (torch.where, Tensor.where)


def suppress(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Non-maximum suppression of boxes: all are kept, see :func:`_selected`."""
    parents = rec.records_in(args, kwargs)
    if not parents or rec.execute:
        return rec.generic(func, args, kwargs)
    return rec.fresh((args[0].shape[0],), rec.merge(parents), torch.int64)


def unique(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``unique`` without further results: one value, see :func:`_selected`."""
    parents = rec.records_in(args, kwargs)
    if not parents or rec.execute or not rec.shape_only(args[0]):
        return rec.generic(func, args, kwargs)
    if any(kwargs.get(name) for name in ("return_inverse", "return_counts", "dim")):
        raise NeedsValues("the model asks which values of an activation are the same")
    return rec.fresh((1,), rec.merge(parents), args[0].dtype)
