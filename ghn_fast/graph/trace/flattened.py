"""Flattened maps: where they come from, and what a linear layer over one is.

A linear layer over a flattened map of C x h x w is a convolution over the map with an h x w
kernel. What was merged to a vector, and in which order, is read from sizes and strides where it
happens; activations and dropout after it keep the record, and so the note.
"""

from __future__ import annotations

from torch import Tensor

from ghn_fast.graph.layout import Layout
from ghn_fast.graph.trace.recorder import Kind, Recorder

_MAP_DIMS = (3, 4)
"""Of a map without its batch: channels and two or three of space."""


def note_flattening(rec: Recorder, x: Tensor, result: Tensor) -> Tensor:
    """The result of reshaping ``x``, with a note on its record if a map was flattened."""
    if not rec.records.maps and (x.dim() <= _MAP_DIMS[0] or result.dim() >= x.dim()):
        return result
    number = rec.record_of(x)
    if number is None or rec.is_static(number):
        return result
    merged = _merged(x, result)
    is_map = len(merged) in _MAP_DIMS and x.dim() > len(merged)
    layout = _convolution_over(rec, number, x, merged) if is_map else None
    if layout is None and number not in rec.records.maps:
        return result
    flat = rec.add(Kind.CONTRACT, (number,))
    if layout is not None:
        rec.records.maps[flat] = layout
    tagged: Tensor = rec.tag(result, flat)
    return tagged


def over_map(rec: Recorder, x: Tensor) -> Layout | None:
    """How the weight (out, in) of a linear layer on ``x`` is the kernel of a convolution."""
    number = rec.record_of(x)
    return None if number is None else rec.records.maps.get(number)


def _merged(x: Tensor, result: Tensor) -> range:
    """The dimensions of ``x`` that make the last one of the result."""
    last, size = result.shape[-1] if result.dim() else 1, 1
    first = x.dim()
    while first > 0 and size < last:
        first -= 1
        size *= x.shape[first]
    # Single channels go with their map, but the first dimension is the batch.
    while 1 < first < x.dim() and x.shape[first - 1] == 1 and x.dim() - first < _MAP_DIMS[0]:
        first -= 1
    return range(first, x.dim()) if size == last else range(0)


def _convolution_over(rec: Recorder, number: int, x: Tensor, merged: range) -> Layout | None:
    """The layout of a linear layer over merged dimensions, the channels being the outermost in
    memory; None if they are not what the map's layer made, or there is one position only."""
    sizes = [x.shape[dim] for dim in merged]
    order = sorted(range(len(sizes)), key=lambda dim: -x.stride(merged[dim]))
    channels, kernel = order[0], order[1:]
    made = _channels(rec, number)
    if all(sizes[dim] == 1 for dim in kernel) or made not in (None, sizes[channels]):
        return None
    sizes[channels] = -1
    return Layout(((-1,), tuple(sizes)), ((0,), *((1 + dim,) for dim in order)))


def _channels(rec: Recorder, number: int) -> int | None:
    """How many channels a value has by the layer that made it; None if that is not known."""
    records = rec.records
    while True:
        node, parents = records.nodes[number], records.parents[number]
        if node is not None and node.parameter is not None and node.shape:
            return node.shape[0]
        if not parents or (node is not None and node.type == "concat"):
            return None
        number = parents[0]
