"""How calls of layers are read: a node for the weight and one for the bias.

Each factory here returns a handler for one kind of function; :mod:`ghn_fast.graph.trace.rules` says
which functions it applies to and which node type it makes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ghn_fast.graph.layout import Layout, Storage
from ghn_fast.graph.node import Node
from ghn_fast.graph.trace import shapes
from ghn_fast.graph.trace.flattened import over_map
from ghn_fast.graph.trace.recorder import (
    Args,
    Func,
    Handler,
    Kind,
    Kwargs,
    Parameter,
    Recorder,
    bind,
    name_of,
)
from ghn_fast.graph.trace.usage import Use, as_layer, from_left, from_right, storage_of


def weight_record(
    rec: Recorder,
    node_type: str,
    weight: Tensor,
    parents: Sequence[int],
    use: Use | None = None,
    kernel: Layout | None = None,
) -> int:
    """The record of a layer's weight applied to values made by ``parents``.

    Args:
        use: the roles of its dimensions; None for those that are no matrix and no kernel.
        kernel: as :attr:`Node.kernel`.
    """
    behind = rec.parameters_behind(weight)
    if not behind:
        # A constant kernel, or one that is computed from activations.
        return rec.merge([*parents, *rec.records_in(weight)])
    main, *others = behind
    if others and (parts := rec.parts_of(weight)):
        # Layers side by side, whose weights are concatenated for a single product.
        return rec.merge(weight_record(rec, node_type, part, parents, use) for part in parts)
    for other in others:
        other.role = other.role or "weight_gain"
    if main.node is not None:
        # Shared weights have one node, where they are first used.
        if node_type == "conv" and "gate" in rec.types:
            _retype(rec, main.node, "conv")  # LoGAH's graphs tell that a tied table is the head
        return rec.merge([*parents, main.node, *_sources(rec, others)])
    storage = None if use is None else _storage(rec, main, weight, use)
    shape = tuple(main.tensor.shape) if storage is None else storage.used_shape()
    if kernel is not None and (len(shape) != 2 or weight.numel() != main.tensor.numel()):
        kernel = None
    way = kernel, storage, None, rec.factor_of(weight)
    node = Node(node_type, main.name, shape, main.name, None, *way)
    main.node = rec.add(Kind.KEEP, [*parents, *_sources(rec, others)], node)
    return main.node


def _storage(rec: Recorder, main: Parameter, weight: Tensor, use: Use) -> Storage | None:
    """How a parameter is stored that is used as a layer's weight; None if as it is used."""
    if "gate" in rec.types:
        return None  # LoGAH's graphs of language models have weights as they are stored
    place = rec.place_in(main, weight)
    return None if place is None else storage_of(main.tensor, place, use)


def _retype(rec: Recorder, number: int, node_type: str) -> None:
    node = rec.records.nodes[number]
    assert node is not None
    rec.records.nodes[number] = replace(node, type=node_type)


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
    rec: Recorder,
    node_type: str,
    parents: Sequence[int],
    weight: Any,
    bias: Any,
    use: Use | None = None,
    kernel: Layout | None = None,
) -> int:
    """The record of a layer's output; ``use`` and ``kernel`` as for :func:`weight_record`."""
    if bias is None:
        return weight_record(rec, node_type, weight, parents, use, kernel)
    again = rec.parameter_of(weight), rec.parameter_of(bias)
    if all(parameter is not None and parameter.node is not None for parameter in again):
        return rec.merge([*parents, *rec.records_in(bias)])
    return bias_record(rec, bias, weight_record(rec, node_type, weight, parents, use, kernel))


def _use_as_layer(rec: Recorder, weight: Tensor) -> Use | None:
    """The use of a layer's weight; a parameter itself is stored as it is used."""
    return None if id(weight) in rec.parameters else as_layer(weight)


def only_parameters(rec: Recorder, x: Tensor) -> bool:
    """The operation prepares a weight, as weight standardisation does, and is not a layer."""
    return rec.is_static(rec.record_of(x))


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_ATEN = (
    *("input", "weight", "bias", "stride", "padding", "dilation", "transposed"),
    *("output_padding", "groups"),
)
_CONV_TRANSPOSE = (
    *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
)


def _convolution_record(rec: Recorder, values: dict[str, Any], use: Use | None) -> int:
    node_type = "conv"
    if values.get("groups", 1) > 1:
        dilation = values.get("dilation", 1)
        dilated = min(dilation if isinstance(dilation, Sequence) else (dilation,)) > 1
        node_type = "dil_conv" if dilated else "sep_conv"
    x, weight, bias = values["input"], values["weight"], values.get("bias")
    return layer_record(rec, node_type, rec.records_in(x), weight, bias, use)


def convolution(transposed: bool = False, taken_apart: bool = False) -> Handler:
    """A convolution; its node type depends on groups and dilation.

    Args:
        transposed: one that is always so.
        taken_apart: ``aten.convolution``, which all become and whose arguments say it.
    """
    names = _CONV_ATEN if taken_apart else _CONV_TRANSPOSE if transposed else _CONV
    shape = shapes.transposed_convolution if transposed else shapes.convolution

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        values = dict(zip(names, args, strict=False)) | kwargs
        x = values["input"]
        if rec.opaque or only_parameters(rec, x):
            return rec.generic(func, args, kwargs)
        is_plain = not values.get("transposed", transposed)
        use = _use_as_layer(rec, values["weight"]) if is_plain else None
        number = _convolution_record(rec, values, use)
        if rec.execute or taken_apart:
            return rec.tag(rec.run(func, args, kwargs), number)
        del values["input"]
        return rec.fresh(shape(x, **values), number, x.dtype)

    return handle


def linear(node_type: str) -> Handler:
    """``torch.nn.functional.linear``."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        x, weight, bias = bind(("input", "weight", "bias"), args, kwargs)
        if rec.opaque or only_parameters(rec, x):
            return rec.generic(func, args, kwargs)
        use, kernel = _use_as_layer(rec, weight), over_map(rec, x)
        number = layer_record(rec, node_type, rec.records_in(x), weight, bias, use, kernel)
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
    """``torch.addmm(bias, a, b)`` and ``baddbmm``: a product with a weight, and its bias."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        names = ("input", "mat1", "mat2") if name_of(func) == "addmm" else _BADDBMM
        bias, a, b = bind(names, args, kwargs)
        operand = next((i for i in (1, 0) if rec.parameters_behind((a, b)[i])), None)
        if rec.opaque or operand is None or only_parameters(rec, (a, b)[1 - operand]):
            return rec.generic(func, args, kwargs)
        weight, x = ((a, b), (b, a))[operand]
        use = from_left(a) if operand == 0 else from_right(b)
        kernel = over_map(rec, x) if operand == 1 else None
        number = layer_record(rec, node_type, rec.records_in(x), weight, bias, use, kernel)
        return rec.emit(number, func, args, kwargs, x, shapes.matmul, a, b)

    return handle


_BADDBMM = ("input", "batch1", "batch2")


def normalisation(node_type: str, names: Sequence[str], taken_apart: bool = False) -> Handler:
    """A normalisation: one node for weight and bias, none if it has neither.

    Args:
        taken_apart: ``aten.native_layer_norm`` and its kin, which also return statistics.
    """

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        values = dict(zip(names, bind(names, args, kwargs), strict=True))
        x = values["input"]
        if rec.opaque or only_parameters(rec, x):
            return rec.generic(func, args, kwargs)
        weight, bias = values.get("weight"), values.get("bias")
        number = norm_record(rec, rec.known_type(node_type), rec.records_in(x), weight, bias)
        if taken_apart:
            return rec.tag(rec.run(func, args, kwargs), number)
        return rec.emit(number, func, args, kwargs, x, lambda: x.shape)

    return handle


def norm_record(
    rec: Recorder, node_type: str, parents: Sequence[int], weight: Any, bias: Any
) -> int:
    """The record of a normalisation layer's output."""
    number = rec.merge(parents) if weight is None else gain_record(rec, node_type, weight, parents)
    if bias is not None:
        number = norm_bias(rec, bias, number)
    return number


def gain_record(rec: Recorder, node_type: str, weight: Tensor, parents: Sequence[int]) -> int:
    """The record of a normalisation's weight; one that counts from one is marked."""
    number = None if id(weight) in rec.parameters else rec.record_of(weight)
    if number is not None and rec.records.flags.get(number) == "shifted":
        for parameter in rec.parameters_behind(weight)[:1]:
            parameter.role = "norm_offset"
    return weight_record(rec, node_type, weight, parents)


def norm_bias(rec: Recorder, bias: Tensor, weight: int) -> int:
    node = rec.records.nodes[weight] if rec.records.kinds[weight] == Kind.KEEP else None
    parameter = rec.parameter_in_place_of(bias)
    if parameter is not None and parameter.folded == weight:
        return weight
    free = parameter is not None and parameter.node is None and parameter.folded is None
    if parameter is None or not free or node is None or node.parameter is None or node.bias:
        if parameter is not None:
            parameter.role = parameter.role or "norm_bias"
        return rec.merge([weight, *rec.records_in(bias)])
    parameter.folded = weight
    node_type = "ln" if node.type == "rmsnorm" else node.type
    rec.records.nodes[weight] = replace(node, type=node_type, bias=parameter.name)
    return weight


def embedding(node_type: str, names: Sequence[str] = ("input", "weight")) -> Handler:
    """``torch.nn.functional.embedding``: rows of a table."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        values = dict(zip(names, bind(names, args, kwargs), strict=True))
        index, weight = values["input"], values["weight"]
        if rec.opaque:
            return rec.generic(func, args, kwargs)
        number = weight_record(rec, node_type, weight, rec.records_in(index))
        for parameter in rec.parameters_behind(weight)[:1]:
            parameter.role = "embedding"
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
        for name in ("bias_k", "bias_v", "attn_mask", "key_padding_mask"):
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


_TABLE = re.compile(r"emb|enc|^(a|w)?pe\d*$")
_POSITION = re.compile(r"(^|[._])(abs(olute)?_)?(\w+_)?pos(ition(al|s)?)?($|[._\d]|_?e(mb|nc))")


def is_position_table(parameter: Parameter, x: Tensor | None = None) -> bool:
    """A table with a row for each position, by its name or by how it is added to ``x``."""
    shape = parameter.tensor.shape
    last = parameter.name.rsplit(".", 1)[-1]
    if sum(size > 1 for size in shape) < 2 or "rel" in last or "bias" in last:
        return False
    if _POSITION.search(parameter.name) is not None:
        return True
    if x is None or _TABLE.search(last) is None:
        # Tables of scales and shifts are added in the same way.
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


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
