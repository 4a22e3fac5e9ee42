"""The rules: which function or module makes which node of the graph.

One table. A row names the functions, the node type they make and how such a call is read (in
:mod:`~ghn_fast.graph.trace.layers`, :mod:`~ghn_fast.graph.trace.operators` and
:mod:`~ghn_fast.graph.trace.nodeless`). Functions that are in no row are contracted: their inputs
are joined to their outputs. The node types are those of arXiv 2110.13100, section 2, with the
choices of the published graphs: a linear layer is ``conv``, every embedding is ``pos_enc``, the
bias of a normalisation belongs to its weight's node.

:func:`register` adds a module of one's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.graph.trace import layers, nodeless, operators, recurrent
from ghn_fast.graph.trace.recorder import Handler, Rules
from ghn_fast.graph.types import NODE_TYPE_INDEX

Row = tuple[Handler, Sequence[Callable[..., Any] | None]]


def _tensor(*names: str) -> list[Callable[..., Any] | None]:
    """Methods and functions of that name, those that this version of PyTorch has."""
    found = []
    for name in names:
        found += [getattr(torch, name, None), getattr(Tensor, name, None), getattr(F, name, None)]
        found += [getattr(torch._C._nn, name, None)]
    return found


def _properties(*names: str) -> list[Callable[..., Any] | None]:
    return [getattr(getattr(Tensor, name, None), "__get__", None) for name in names]


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias")
_INSTANCE_NORM = _BATCH_NORM
_LAYER_NORM = ("input", "normalized_shape", "weight", "bias")
_GROUP_NORM = ("input", "num_groups", "weight", "bias")
_RMS_NORM = ("input", "normalized_shape", "weight")

LAYERS: tuple[Row, ...] = (
    # conv (sep_conv with groups, dil_conv with groups and dilation), then bias
    (layers.convolution(), [torch.conv1d, torch.conv2d, torch.conv3d]),
    (
        layers.convolution(transposed=True),
        [torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d],
    ),
    (layers.linear("conv"), [F.linear, torch._C._nn.linear]),
    (layers.bilinear("conv"), [F.bilinear, torch.bilinear]),
    (layers.addmm("conv"), _tensor("addmm", "baddbmm")),
    # normalisations
    (layers.normalisation("bn", _BATCH_NORM), [F.batch_norm]),
    (layers.normalisation("ln", _INSTANCE_NORM), [F.instance_norm]),
    (layers.normalisation("ln", _LAYER_NORM), [F.layer_norm]),
    (layers.normalisation("ln", _GROUP_NORM), [F.group_norm]),
    (layers.normalisation("rmsnorm", _RMS_NORM), [F.rms_norm]),
    (layers.embedding("pos_enc"), [F.embedding]),
    # contracted, but their parameters are known by what they are
    (recurrent.layer, [torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu]),
    (
        recurrent.cell,
        [torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell],
    ),
    (recurrent.pack, [torch._pack_padded_sequence]),
    (recurrent.unpack, [torch._pad_packed_sequence]),
)

OPERATIONS: tuple[Row, ...] = (
    (operators.pooling("max_pool", 1), _tensor("max_pool1d", "_max_pool1d")),
    (operators.pooling("max_pool", 2), _tensor("max_pool2d", "_max_pool2d")),
    (operators.pooling("max_pool", 3), _tensor("max_pool3d", "_max_pool3d")),
    (operators.pooling("max_pool", 2), [F.max_pool2d_with_indices]),
    (operators.pooling("avg_pool", 1), [F.avg_pool1d]),
    (operators.pooling("avg_pool", 2), [F.avg_pool2d]),
    (operators.pooling("avg_pool", 3), [F.avg_pool3d]),
    # glob_avg, unless it is computed for a gate
    (operators.adaptive_average("glob_avg", 1), [F.adaptive_avg_pool1d]),
    (operators.adaptive_average("glob_avg", 2), [F.adaptive_avg_pool2d]),
    (operators.adaptive_average("glob_avg", 3), [F.adaptive_avg_pool3d]),
    (operators.mean("glob_avg"), [torch.mean, Tensor.mean]),
    # msa: the product of a softmax with values, or all of it in one call
    (operators.softmax, [torch.softmax, Tensor.softmax, F.softmax]),
    (operators.product("msa"), [*_tensor("matmul", "bmm", "mm"), Tensor.__rmatmul__]),
    (operators.grouped("msa"), _tensor("grouped_mm", "_grouped_mm")),
    (operators.tensordot("msa"), [torch.tensordot]),
    (operators.einsum("msa"), [torch.einsum]),
    (
        operators.matrix_function,
        [
            *_tensor("matrix_exp", "inverse", "qr", "cholesky", "matrix_power", "orgqr"),
            *(torch.linalg.householder_product, torch.linalg.matrix_exp, torch.linalg.solve),
            *(torch.linalg.inv, torch.linalg.qr, torch.linalg.cholesky, torch.linalg.matrix_power),
        ],
    ),
    (operators.fused_attention("msa"), [F.scaled_dot_product_attention]),
    (layers.multi_head_attention("msa"), [F.multi_head_attention_forward]),
    # cse: the product of a tensor with a gate that is computed from its own global average
    (operators.multiplication("cse"), _tensor("mul", "mul_", "multiply", "__rmul__")),
    # sum and concat: with at least two inputs that come from different nodes
    (operators.addition("sum"), _tensor("add", "add_", "__radd__")),
    (operators.concatenation("concat"), [torch.cat, torch.concat, torch.concatenate]),
)

CONTRACTED: tuple[Row, ...] = (
    # rot_emb, in graphs of language models
    (operators.negation, _tensor("neg")),
    (
        nodeless.unary,
        _tensor(
            *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "celu"),
            *("selu", "gelu", "silu", "mish", "sigmoid", "sigmoid_", "hardsigmoid", "hardswish"),
            *("hardtanh", "hardtanh_", "tanh", "tanh_", "softplus", "softsign", "logsigmoid"),
            *("prelu", "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d"),
            *("alpha_dropout", "feature_alpha_dropout", "clone", "log_softmax"),
            *("exp", "log", "sqrt", "rsqrt", "abs", "clamp", "clamp_", "clip", "sin"),
            *("cos", "square", "normalize", "hardshrink", "threshold", "rrelu", "floor"),
            *("local_response_norm", "roll", "flip", "channel_shuffle", "native_channel_shuffle"),
        ),
    ),
    (nodeless.contiguous, _tensor("contiguous")),
    (nodeless.reshape, _tensor("reshape", "view", "flatten")),
    (nodeless.as_other, _tensor("expand_as", "view_as", "reshape_as")),
    (nodeless.binary, _tensor("sub", "sub_", "div", "div_", "true_divide")),
    (nodeless.to, _tensor("to", "type_as", "cpu", "cuda", *nodeless._DTYPE_METHODS)),
    (nodeless.get_item, [Tensor.__getitem__]),
    (nodeless.unbind, _tensor("unbind")),
    (nodeless.set_item, [Tensor.__setitem__]),
    (nodeless.select, _tensor("nonzero", "where", "masked_select")),
    (nodeless.unique, [torch.unique, Tensor.unique]),
    (
        nodeless.constant,
        [torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn],
    ),
    (nodeless.from_data, [torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy]),
    (
        nodeless.constant_like,
        _tensor(
            *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
            *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
        ),
    ),
    (nodeless.one_hot, _tensor("one_hot")),
    (nodeless.device, _properties("device")),
    (
        nodeless.look,
        [
            *_properties("shape", "dtype", "ndim", "layout", "requires_grad", "is_leaf", "names"),
            *_properties("is_sparse", "is_quantized", "is_nested", "is_mkldnn", "itemsize"),
            *_properties("is_meta", "is_cuda", "is_cpu", "is_mps", "is_xpu", "nbytes", "grad_fn"),
            *_tensor("size", "dim", "numel", "stride", "is_floating_point", "is_complex"),
            *_tensor("is_contiguous", "ndimension", "element_size", "nelement", "get_device"),
            *_tensor("storage_offset", "__len__", "is_tensor", "is_storage", "is_same_size"),
        ],
    ),
    (
        nodeless.values,
        [
            *_tensor("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
            *_tensor("__bool__", "__float__", "__int__", "__index__", "__array__"),
            *_tensor("__contains__", "bincount", "data_ptr"),
        ],
    ),
)


_AFFINE = ("input", "weight", "bias")

OPERATORS: tuple[tuple[Handler, str], ...] = (
    # those of torch.ops.aten whose arguments are others than the function's of that name
    (layers.convolution(taken_apart=True), "convolution"),
    (layers.convolution(taken_apart=True), "_convolution"),  # of torch.jit.trace
    (layers.normalisation("bn", _AFFINE), "batch_norm"),
    (layers.normalisation("ln", _AFFINE), "instance_norm"),
    (layers.embedding("pos_enc", ("weight", "input")), "embedding"),
    (layers.normalisation("ln", _LAYER_NORM, taken_apart=True), "native_layer_norm"),
    (layers.normalisation("ln", _AFFINE, taken_apart=True), "native_group_norm"),
    *(
        (layers.normalisation("bn", _AFFINE, taken_apart=True), name)
        for name in (
            *("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"),
            *("_native_batch_norm_legit_no_training", "_batch_norm_impl_index"),
        )
    ),
    (operators.adaptive_average("glob_avg", 2), "_adaptive_avg_pool2d"),
    (operators.adaptive_average("glob_avg", 3), "_adaptive_avg_pool3d"),
    (operators.softmax, "_softmax"),
)


def function_rules() -> Rules:
    """The table, by function."""
    return _function_rules("torchvision" in sys.modules)


@lru_cache(maxsize=2)
def _function_rules(vision: bool) -> Rules:
    table: Rules = {}
    for handler, functions in (*LAYERS, *OPERATIONS, *CONTRACTED):
        for function in functions:
            if function is not None:
                table[function] = handler
    table |= _operator_rules(table)
    if vision:
        table[torch.ops.torchvision.nms] = nodeless.suppress
    return table


def _operator_rules(table: Rules) -> Rules:
    """Those of ``torch.ops.aten``, by name; most have the arguments of the function so called."""
    named = {getattr(function, "__name__", ""): handler for function, handler in table.items()}
    named |= {name: handler for handler, name in OPERATORS}
    return {f"aten.{name}": handler for name, handler in named.items()}


MODULES: dict[type[nn.Module], str] = {}
"""Modules that are one layer whatever they compute inside, by :func:`register`."""


def register(module_class: type[nn.Module], node_type: str) -> None:
    """Treats a module of one's own as a single layer of the graph.

    Its largest parameter (the one called ``weight`` if there is one) becomes a node of that type,
    a vector called ``bias`` the node after it (for normalisation layers, part of it); a module
    without parameters becomes an operation. What it computes inside is not looked at.

    Args:
        module_class: also applies to its subclasses.
        node_type: one of :data:`ghn_fast.graph.types.NODE_TYPES`.

    Raises:
        TypeError: ``module_class`` is not a class of modules.
        ValueError: an unknown node type.

    Examples:
        >>> from ghn_fast.graph import register
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return x.mul(2) @ self.weight.exp().T + self.bias
        >>> register(Scaled, "conv")
        >>> [n.type for n in ghn_fast.Graph.from_model(Scaled(3, 2), torch.zeros(1, 3)).nodes]
        ['input', 'conv', 'bias']
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise TypeError(f"a subclass of torch.nn.Module is needed, not {module_class!r}")
    if node_type not in NODE_TYPE_INDEX:
        known = ", ".join(NODE_TYPE_INDEX)
        raise ValueError(f"unknown node type {node_type!r}; known types: {known}")
    MODULES[module_class] = node_type


ROLES: tuple[tuple[str, str], ...] = (
    # what a parameter without a node looks like, by its name; the first that matches
    (r"cls_token|class_token|dist_token|class_embedding|reg(ister)?_tokens?|cls", "class_token"),
    (r"mask_token|query_tokens?|queries|latent|probe|token", "token"),
    (
        r"rel(ative)?_?(pos|h$|w$|embed)|relative|attention_bias|rpb|rel_",
        "relative_position_bias",
    ),
    (r"layer_?scale", "layer_scale"),
    (r"logit_scale|temperature|tau", "scalar"),
    (r"gat(e|ing)|alpha", "gate"),
    (r"scale|gamma|lambda|ls_?\d?$|\bgain\b|skipinit", "scale"),
    (r"pos(ition)?|embed", "table"),
    (r"bias|beta", "bias"),
)
