"""How recurrent layers are read: they are no layers of the published definition.

Whatever the length of the sequence, a layer is one record that is contracted; its weights are
known as recurrent ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ghn_fast.graph.trace.recorder import Args, Func, Kwargs, Recorder, bind, name_of

_RNN_STATES = {"lstm": 2, "gru": 1, "rnn_tanh": 1, "rnn_relu": 1}


def layer(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``torch.lstm`` and its kin.

    Packed sequences (``torch.nn.utils.rnn``) come as their data and the sizes of their batches.
    """
    if rec.opaque:
        return rec.generic(func, args, kwargs)
    packed = isinstance(args[3], (list, tuple))
    x, sizes, states, weights = args[:4] if packed else (args[0], None, *args[1:3])
    _note_roles(rec, weights)
    number = rec.merge(rec.records_in(args))
    if rec.execute:
        return rec.tag(rec.run(func, args, kwargs), number)
    bidirectional = args[8 if packed else 7]
    first = states[0] if isinstance(states, (list, tuple)) else states
    out = (*x.shape[:-1], first.shape[-1] * (2 if bidirectional else 1))
    batch = () if x.dim() == 2 else (x.shape[0 if args[8] else 1],)
    if packed:
        batch = (int(sizes[0]),)
    layers = first.shape[0]
    gates = {"lstm": 4, "gru": 3}.get(name_of(func), 1)
    widths = [first.shape[-1], weights[0].shape[0] // gates][: _RNN_STATES[name_of(func)]]
    ends = (rec.fresh((layers, *batch, width), number, x.dtype) for width in widths)
    return rec.fresh(out, number, x.dtype), *ends


def _note_roles(rec: Recorder, weights: Iterable[Any]) -> None:
    for parameter in map(rec.parameter_of, weights):
        if parameter is not None:
            parameter.role = "recurrent_weight" if parameter.tensor.dim() > 1 else "recurrent_bias"


def cell(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``torch.lstm_cell`` and its kin: one step, after the input and the state the weights."""
    _note_roles(rec, args[2:])
    return rec.generic(func, args, kwargs)


def pack(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``torch._pack_padded_sequence``: how long the sequences are is known or asked for."""
    x, lengths = bind(("input", "lengths"), args, kwargs)
    parents = rec.records_in(x, lengths)
    if rec.execute or not parents or rec.shape_only(lengths):
        return rec.generic(func, args, kwargs)
    sizes = (lengths[None] > torch.arange(int(lengths.max()), device=lengths.device)[:, None]).sum(
        1
    )
    width = x.shape[2:]
    number = rec.merge(parents)
    return rec.fresh((int(lengths.sum()), *width), number, x.dtype), sizes


def unpack(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``torch._pad_packed_sequence``."""
    names = ("input", "batch_sizes", "batch_first", "padding_value", "total_length")
    x, sizes, batch_first, _, total = bind(names, args, kwargs)
    parents = rec.records_in(x, sizes)
    if rec.execute or not parents or rec.shape_only(sizes):
        return rec.generic(func, args, kwargs)
    steps, batch = max(len(sizes), total or 0), int(sizes[0])
    shape = (batch, steps) if batch_first else (steps, batch)
    lengths = (sizes[None] > torch.arange(batch, device=sizes.device)[:, None]).sum(1)
    return rec.fresh((*shape, *x.shape[1:]), rec.merge(parents), x.dtype), lengths
