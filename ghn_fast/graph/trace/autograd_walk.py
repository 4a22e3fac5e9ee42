"""Records from autograd's graph, for models that run where calls cannot be seen.

Scripted modules and compiled extensions hide their calls from the recorder, but not from
autograd. The model runs for real; its backward graph is then read from the inputs to the outputs
with the same rules as calls are. Only what has a gradient is seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.layers import layer_record, norm_record, weight_record
from ghn_fast.graph.trace.operators import (
    over_positions,
    product_record,
    scale_record,
    sum_record,
)
from ghn_fast.graph.trace.recorder import Kind, Recorder

Operands = Sequence[Tensor | None]
Reader = Callable[[Recorder, Any, Operands], int]
"""From a backward node and its operands to the record of its result."""


@contextmanager
def differentiable(recorder: Recorder, inputs: Iterable[Tensor]) -> Iterator[None]:
    """Everything that can have a gradient has one, whatever is frozen."""
    tensors = [p.tensor for p in recorder.parameters.values()]
    tensors = [t for t in (*tensors, *inputs) if t.is_floating_point()]
    before = [t.requires_grad for t in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        with torch.enable_grad(), torch.jit.optimized_execution(False):
            yield
    finally:
        for tensor, required in zip(tensors, before, strict=True):
            tensor.requires_grad_(required)


def read_backward(recorder: Recorder, outputs: Iterable[Tensor]) -> list[int]:
    """Records what led to a model's outputs; returns their records.

    Args:
        recorder: knows the parameters; nothing is recorded yet but the input.
        outputs: of a forward pass under :func:`differentiable`. What they depend on that is
            neither a parameter nor computed is an input.
    """
    roots = [t.grad_fn for t in outputs if t.grad_fn is not None]
    results: dict[Any, Tensor] = {}
    for fn in _in_order(roots):
        operands = [_operand(recorder, results, edge) for edge in fn.next_functions]
        number = _record(recorder, fn, operands)
        results[fn] = recorder.fresh(_shape(fn), number, torch.float32)
    found = [recorder.record_of(results[root]) for root in roots]
    return [number for number in found if number is not None]


def _in_order(roots: Sequence[Any]) -> list[Any]:
    """All backward nodes that are no leaves, in the order in which their operations ran."""
    seen = set(roots)
    pending = list(seen)
    while pending:
        for fn, _ in pending.pop().next_functions:
            if fn is not None and fn not in seen and not hasattr(fn, "variable"):
                seen.add(fn)
                pending.append(fn)
    return sorted(seen, key=lambda fn: fn._sequence_nr())


def _operand(recorder: Recorder, results: dict[Any, Tensor], edge: tuple[Any, int]) -> Any:
    fn, _ = edge
    if fn is None:
        return None
    variable = getattr(fn, "variable", None)
    if variable is None:
        return results[fn]
    if recorder.parameter_of(variable) is not None:
        return variable
    return recorder.fresh(variable.shape, recorder.input, torch.float32)


def _shape(fn: Any) -> tuple[int, ...]:
    metadata = fn._input_metadata
    return tuple(metadata[0].shape) if metadata else ()


def _record(recorder: Recorder, fn: Any, operands: Operands) -> int:
    name = re.sub(r"Backward\d*$", "", type(fn).__name__)
    if "DifferentiableGraph" in fn.name():
        raise RuntimeError(
            "a scripted part has run before and hides its operations; build the graph of the "
            "model before it was scripted"
        )
    reader = _READERS.get(name)
    static = all(
        operand is None or recorder.is_static(recorder.record_of(operand)) for operand in operands
    )
    # What depends on parameters only prepares a weight, but for a row of a table.
    if reader is None or (static and reader is not _embedding):
        return recorder.merge(recorder.records_in(operands))
    return reader(recorder, fn, operands)


# --- the readers -------------------------------------------------------------------------------


def _convolution(rec: Recorder, fn: Any, operands: Operands) -> int:
    x, weight, bias = operands
    node_type = "conv"
    if fn._saved_groups > 1:
        node_type = "dil_conv" if min(fn._saved_dilation) > 1 else "sep_conv"
    return layer_record(rec, node_type, rec.records_in(x), weight, bias)


def _addmm(rec: Recorder, fn: Any, operands: Operands) -> int:
    bias, x, weight = operands
    if weight is None or not rec.parameters_behind(weight):
        return rec.merge(rec.records_in(operands))
    return layer_record(rec, "conv", rec.records_in(x), weight, bias)


def _norm(node_type: str) -> Reader:
    def read(rec: Recorder, fn: Any, operands: Operands) -> int:
        x, weight, bias = (*operands, None, None)[:3]
        return norm_record(rec, node_type, rec.records_in(x), weight, bias)

    return read


def _embedding(rec: Recorder, fn: Any, operands: Operands) -> int:
    weight = operands[0]
    return rec.merge([]) if weight is None else weight_record(rec, "pos_enc", weight, [])


def _pooling(node_type: str) -> Reader:
    def read(rec: Recorder, fn: Any, operands: Operands) -> int:
        kernel = (1, *fn._saved_kernel_size)[-2:]
        node = Node(node_type, node_type, (1, 1, *kernel))
        return rec.add(Kind.KEEP, rec.records_in(operands), node)

    return read


def _adaptive_average(rec: Recorder, fn: Any, operands: Operands) -> int:
    return rec.add(Kind.KEEP, rec.records_in(operands), Node("glob_avg", "glob_avg"))


def _mean(rec: Recorder, fn: Any, operands: Operands) -> int:
    x = operands[0]
    parents = rec.records_in(x)
    # Negative dimensions are saved as the unsigned numbers of the same bits.
    dims = [d - (1 << 64) if d >= 1 << 63 else d for d in getattr(fn, "_saved_dim", None) or ()]
    keepdim = getattr(fn, "_saved_keepdim", False)
    if x is None or not dims or not over_positions(x, dims, keepdim):
        return rec.merge(parents)
    number = rec.add(Kind.KEEP, parents, Node("glob_avg", "glob_avg"))
    rec.records.flags[number] = "average"
    return number


def _softmax(rec: Recorder, fn: Any, operands: Operands) -> int:
    return rec.flag(rec.records_in(operands), "softmax")


def _attention(rec: Recorder, fn: Any, operands: Operands) -> int:
    parents = rec.records_in(operands)
    owners = [p.module for p in rec.parameters.values() if p.node in parents]
    # As in layers.multi_head_attention: fused there, it has no node in the published graphs.
    names = [getattr(module, "original_name", type(module).__name__) for module in owners]
    if "MultiheadAttention" in names:
        return rec.merge(parents)
    return rec.add(Kind.KEEP, parents, Node("msa", "msa"))


def _of_two(
    node_type: str, read_two: Callable[[Recorder, str, tuple[Tensor, Tensor], list[int]], int]
) -> Reader:
    def read(rec: Recorder, fn: Any, operands: Operands) -> int:
        parents = rec.records_in(operands)
        if len(parents) < 2 or parents[0] == parents[1]:
            return rec.merge(parents)
        a, b = (operand for operand in operands if operand is not None)
        return read_two(rec, node_type, (a, b), parents)

    return read


def _concatenation(rec: Recorder, fn: Any, operands: Operands) -> int:
    return rec.add(Kind.JOIN, rec.records_in(operands), Node("concat", "concat"))


_PRODUCT = _of_two("msa", product_record)

_READERS: dict[str, Reader] = {
    **dict.fromkeys(("Convolution", "MkldnnConvolution"), _convolution),
    "Addmm": _addmm,
    **dict.fromkeys(("Mm", "Bmm"), _PRODUCT),
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"), _norm("bn")),
    **dict.fromkeys(("NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm"), _norm("ln")),
    "Embedding": _embedding,
    **dict.fromkeys(("MaxPool2DWithIndices", "MaxPool3DWithIndices"), _pooling("max_pool")),
    **dict.fromkeys(("AvgPool2D", "AvgPool3D"), _pooling("avg_pool")),
    **dict.fromkeys(("AdaptiveAvgPool2D", "AdaptiveAvgPool3D"), _adaptive_average),
    "Mean": _mean,
    "Softmax": _softmax,
    **dict.fromkeys(
        (
            "ScaledDotProductFlashAttentionForCpu",
            "ScaledDotProductFlashAttention",
            "ScaledDotProductEfficientAttention",
            "ScaledDotProductCudnnAttention",
        ),
        _attention,
    ),
    "Add": _of_two("sum", sum_record),
    "Mul": _of_two("cse", scale_record),
    "Cat": _concatenation,
}
