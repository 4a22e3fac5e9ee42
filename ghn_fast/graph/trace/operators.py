"""How calls of operations without parameters are read: pooling, attention, sums, gates.

Each factory here returns a handler for one kind of function; :mod:`ghn_fast.graph.trace.rules` says
which functions it applies to and which node type it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ghn_fast.graph.node import Node
from ghn_fast.graph.trace import shapes
from ghn_fast.graph.trace.flattened import over_map
from ghn_fast.graph.trace.layers import (
    bias_record,
    gain_record,
    is_norm,
    is_position_table,
    norm_bias,
    position_record,
    weight_record,
)
from ghn_fast.graph.trace.nodeless import binary, binary_result, unary
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
from ghn_fast.graph.trace.usage import Use, by_letters, contracted, from_left, from_right

# How far back a product looks for the softmax or the average that one operand comes from.
_SEARCH_LIMIT = 64
_MIXING = frozenset(("conv", "sep_conv", "dil_conv", "bias", "split", "shuffle"))


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
        if over_positions(x, dim, bool(keepdim)):
            number = rec.add(Kind.KEEP, parents, Node(node_type, node_type))
            rec.records.flags[number] = "average"
        else:
            number = rec.flag(parents, "mean")
        return rec.emit(number, func, args, kwargs, x, shapes.reduction, x, dim, bool(keepdim))

    return handle


def over_positions(x: Tensor, dim: Any, keepdim: bool) -> bool:
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
        if "rmatmul" in name_of(func):
            a, b = b, a
        parents = rec.records_in(a, b)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        uses = (from_left(a), from_right(b))
        number = product_record(rec, node_type, (a, b), parents, uses)
        return rec.emit(number, func, args, kwargs, a, shapes.matmul, a, b)

    return handle


def grouped(node_type: str) -> Handler:
    """``grouped_mm``: rows times the matrix of their group, as :func:`product`."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a, b = args[:2]
        parents = rec.records_in(args, kwargs)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        number = product_record(rec, node_type, (a, b), parents, (from_left(a), from_right(b)))
        return rec.emit(number, func, args, kwargs, a, lambda: (*a.shape[:-1], b.shape[-1]))

    return handle


def tensordot(node_type: str) -> Handler:
    """``torch.tensordot``, as :func:`product`."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a, b, dims = bind(("a", "b", "dims"), args, kwargs)
        parents = rec.records_in(a, b)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        left, right = _contracted_dims(a, b, 2 if dims is None else dims)
        uses = (contracted(a, left), contracted(b, right))
        number = product_record(rec, node_type, (a, b), parents, uses)
        return rec.tag(rec.run(func, args, kwargs), number)

    return handle


def _contracted_dims(a: Tensor, b: Tensor, dims: Any) -> tuple[list[int], list[int]]:
    if isinstance(dims, int):
        return list(range(a.dim() - dims, a.dim())), list(range(dims))
    left, right = (list(shapes.as_tuple(side, 1)) for side in dims)
    return [d % a.dim() for d in left], [d % b.dim() for d in right]


def einsum(node_type: str) -> Handler:
    """``torch.einsum``, as :func:`product`; of several operands one product after the other."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        operands = list(rec.tensors_in(args))
        parents = rec.records_in(operands)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        if len(operands) == 2:
            uses = _einsum_uses(args[0]) if isinstance(args[0], str) else (None, None)
            number = product_record(rec, node_type, (operands[0], operands[1]), parents, uses)
        elif len(operands) > 2 and isinstance(args[0], str) and "." not in args[0]:
            number = _chained(rec, node_type, args[0], operands)
        else:
            number = rec.merge(parents)
        return rec.tag(rec.run(func, args, kwargs), number)

    return handle


def _chained(rec: Recorder, node_type: str, equation: str, operands: Sequence[Tensor]) -> int:
    """The record of a product of several: from one that depends on an input, to each in turn that
    shares an index with what there is."""
    parents = rec.records_in(operands)
    if all(rec.is_static(number) for number in parents):
        return rec.flag(parents, "factors")
    words, result = _letters(equation)
    left = list(zip(words, operands, strict=True))
    sizes = {c: size for word, x in left for c, size in zip(word, x.shape, strict=True)}
    word, value = left.pop(next(n for n, (_, x) in enumerate(left) if _is_input(rec, x)))
    while left:
        shared = (n for n, (other, _) in enumerate(left) if set(other) & set(word))
        other, factor = left.pop(next(shared, 0))
        rest = result + "".join(later for later, _ in left)
        product = "".join(dict.fromkeys(c for c in word + other if c in rest))
        uses = by_letters(word, other, product), by_letters(other, word, product)
        parents = rec.records_in(value, factor)
        number = product_record(rec, node_type, (value, factor), parents, uses)
        value = rec.fresh([sizes[c] for c in product], number, value.dtype)
        word = product
    return number


def _is_input(rec: Recorder, x: Tensor) -> bool:
    number = rec.record_of(x)
    return number is not None and not rec.is_static(number)


def _letters(equation: str) -> tuple[list[str], str]:
    """Those of each operand, and of the result."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    words = operands.split(",")
    if not arrow:
        found = "".join(words)
        result = "".join(sorted(c for c in set(found) - {"."} if found.count(c) == 1))
    return words, result


def _einsum_uses(equation: str) -> tuple[Use | None, Use | None]:
    """The roles of two operands' dimensions."""
    (a, b), result = _letters(equation)
    return by_letters(a, b, result), by_letters(b, a, result)


def product_record(
    rec: Recorder,
    node_type: str,
    operands: tuple[Tensor, Tensor],
    parents: list[int],
    uses: tuple[Use | None, Use | None],
) -> int:
    """The record of a product; ``uses`` are the roles of the operands' dimensions in it, were
    they a layer's weight."""
    if all(rec.is_static(number) for number in parents):
        # A factor of a layer's weight is not the weight.
        return rec.flag(parents, "factors")
    for weight, x, use in zip(operands, operands[::-1], uses, strict=True):
        if rec.parameters_behind(weight) and weight.dim() >= 2 and min(weight.shape[-2:]) > 1:
            kernel = over_map(rec, x) if use == from_right(weight) else None
            return weight_record(rec, "conv", weight, rec.records_in(x), use, kernel)
    if any(_comes_from(rec, number, "softmax", -1) is not None for number in parents):
        return rec.product(parents, Node(node_type, node_type))
    return rec.merge(parents)


def matrix_function(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """What gives a matrix of a matrix, as orthogonal weights are made: as a product of matrices,
    it has no parameter that is the weight."""
    parents = rec.records_in(args, kwargs)
    if not parents or not all(rec.is_static(number) for number in parents):
        return rec.generic(func, args, kwargs)
    return rec.tag(rec.run(func, args, kwargs), rec.flag(parents, "factors"))


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
        if not rec.opaque and len(parents) == 1 and rec.is_static(parents[0]):
            # Norms look for this, whose gain may be one plus a parameter.
            number = rec.flag(parents, "shifted")
        elif rec.opaque or len(parents) < 2:
            return binary(rec, func, args, kwargs)
        elif parents[0] == parents[1] or all(rec.is_static(number) for number in parents):
            number = rec.merge(parents)
        else:
            number = sum_record(rec, node_type, (a, b), parents)
        return binary_result(rec, func, args, kwargs, a, b, number)

    return handle


def sum_record(
    rec: Recorder, node_type: str, operands: tuple[Tensor, Tensor], parents: list[int]
) -> int:
    for parameter, x, number in (
        (rec.parameter_viewed(operands[0]), operands[1], parents[1]),
        (rec.parameter_viewed(operands[1]), operands[0], parents[0]),
    ):
        if parameter is None or parameter.node is not None:
            continue
        if is_norm(parameter.module):
            return norm_bias(rec, parameter.tensor, number)
        if is_position_table(parameter, x):
            position_record(rec, parameter)
            parents = rec.records_in(*operands)
        elif _biases(rec, parameter, number):
            return bias_record(rec, parameter.tensor, number)
    joined = _join(rec, node_type, parents)
    if rec.scaled:
        _note_branches(rec, operands, parents, joined)
    return joined


def _note_branches(
    rec: Recorder, operands: tuple[Tensor, Tensor], parents: list[int], joined: int
) -> None:
    """Notes which of two summands are branches that a parameter scales.

    Not where the other is computed from what is scaled, which is the trunk then. Where both are
    scaled, one is a branch if it is computed from what is scaled in the other; else their sum is.
    A parameter is a trunk if it has a value at every position, as a token has.
    """
    for index in (0, 1):
        number, other = parents[index], parents[1 - index]
        if number not in rec.scaled:
            continue
        if rec.is_static(other):
            found = operands[0].shape == operands[1].shape
        else:
            apart = other not in rec.scaled or _descends(rec, number, other)
            found = apart and not _descends(rec, other, number)
        if found:
            rec.branches |= rec.scaled[number]
    if all(number in rec.scaled for number in parents):
        rec.scaled[joined] = rec.scaled[parents[0]] | rec.scaled[parents[1]]


def _descends(rec: Recorder, number: int, product: int) -> bool:
    """Whether a record is computed from what is scaled in another."""
    records = rec.records
    scaled = {parent for parent in records.parents[product] if not records.static[parent]}
    oldest = min(scaled)
    pending, seen = [number], {number}
    while pending:
        for parent in records.parents[pending.pop()]:
            if parent in scaled:
                return True
            if parent > oldest and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return False


def _biases(rec: Recorder, parameter: Parameter, number: int) -> bool:
    """A vector that is added right after a layer's product, a value for each of its outputs, is
    that layer's bias."""
    node = rec.records.nodes[number]
    return (
        node is not None
        and node.type in ("conv", "sep_conv", "dil_conv")
        and parameter.tensor.squeeze().dim() <= 1
        and 1 < parameter.tensor.numel() in (node.shape or ())[:2]
    )


def multiplication(node_type: str) -> Handler:
    """A product of values: a gate of squeeze and excitation, a norm layer's weight, a scale."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        a, b = bind(("input", "other"), args, kwargs)
        parents = rec.records_in(a, b)
        if rec.opaque or len(parents) < 2 or parents[0] == parents[1]:
            return binary(rec, func, args, kwargs)
        number = scale_record(rec, node_type, (a, b), parents)
        return binary_result(rec, func, args, kwargs, a, b, number)

    return handle


def scale_record(
    rec: Recorder, node_type: str, operands: tuple[Tensor, Tensor], parents: list[int]
) -> int:
    static = [rec.is_static(number) for number in parents]
    if all(static):
        return rec.merge(parents)
    for index in (0, 1):
        if static[index]:
            weight, other = operands[index], parents[1 - index]
            behind = rec.parameters_behind(weight)
            if len(behind) == 1 and behind[0].tensor.dim() == 1 and is_norm(behind[0].module):
                return gain_record(rec, rec.known_type("rmsnorm"), weight, [other])
            number = rec.merge(parents)
            if rec.parameter_viewed(weight) is not None:
                rec.scaled[number] = frozenset((number,))
            return number
    for x, gate in ((0, 1), (1, 0)):
        average = _average_of(rec, operands[x], parents[x], operands[gate], parents[gate])
        if average is not None:
            rec.records.kinds[average] = int(Kind.CONTRACT)
            return rec.product(parents, Node(node_type, node_type))
    if "gate" in rec.types:
        return rec.add(Kind.JOIN, parents, Node("gate", "gate"))
    return rec.merge(parents)


def negation(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """In graphs of language models the negation that a rotary embedding turns pairs by."""
    x = args[0] if args else kwargs["input"]
    parents = rec.records_in(x)
    if "rot_emb" not in rec.types or not parents or rec.is_static(parents[0]):
        return unary(rec, func, args, kwargs)
    number = rec.add(Kind.KEEP, parents, Node("rot_emb", "rot_emb"))
    return rec.emit(number, func, args, kwargs, x, lambda: x.shape)


def _join(rec: Recorder, node_type: str, parents: list[int]) -> int:
    """A sum or concatenation, but of a rotary embedding's negation and what it negates."""
    if "rot_emb" in rec.types:
        records = rec.records
        turned = {
            parent
            for number in parents
            if (node := records.nodes[number]) is not None and node.type == "rot_emb"
            for parent in records.parents[number]
        }
        parents = [number for number in parents if number not in turned]
        if turned:
            return rec.merge(parents)
    return rec.add(Kind.JOIN, parents, Node(node_type, node_type))


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


def concatenation(node_type: str) -> Handler:
    """``torch.cat``."""

    def handle(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
        tensors, dim = bind(("tensors", "dim"), args, kwargs)
        parents = rec.records_in(tensors)
        if rec.opaque or not parents:
            return rec.generic(func, args, kwargs)
        together = all(rec.is_static(number) for number in parents)
        number = rec.merge(parents) if together else _join(rec, node_type, parents)
        if rec.scaled and not rec.scaled.keys() >= set(parents):
            # Of densely connected blocks, whose trunk is what they are concatenated with.
            rec.branches.update(*(rec.scaled[n] for n in parents if n in rec.scaled))
        if dim is None:
            dim = kwargs.get("axis", 0)
        like = next(t for t in tensors if rec.record_of(t) is not None)
        whole = rec.emit(number, func, args, kwargs, like, shapes.concatenation, tensors, dim)
        if together:
            rec.note_parts(whole, tensors)
        return whole

    return handle
