"""What moves channels: where a value is split along its channels, and where they are shuffled.

A graph of :data:`~ghn_fast.graph.types.CHANNEL_NODE_TYPES` has two more nodes.

- ``split``: what follows takes parts of a value's channels, as the halves of a ShuffleNet unit. One
  node for all parts; it is left out where all of them go to one node, as queries, keys and values
  go to their attention and both halves to the product of a gate, since it would tell nothing.
- ``shuffle``: channels change places among each other, as in a channel shuffle.

What only turns the layout (maps to tokens, windows, heads) is no node. What tells them apart is not
the name of an operation: every value has a *probe*, a tensor without memory whose strides are the
number of channels that one step along a dimension passes, 0 for a batch and for positions. The
channels of a (B, C, H, W) map have strides (0, 1, 0, 0). A view of the value is applied to the
probe as well. Where the result has fewer channels, the value was split. Where a reshape is possible
only once the channels are numbered anew in the order in which they now lie, they were shuffled: for
``view(B, g, C / g, H, W).transpose(1, 2).flatten(1, 2)`` strides (0, 1, C / g, 0, 0) are to be
joined. What a probe is not followed through (matrix products) begins anew at the next layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.recorder import Args, Func, Kind, Kwargs, Recorder, Records, name_of

_VIEWS = frozenset(
    (
        *("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"),
        *("unbind", "select", "narrow", "slice", "__getitem__", "__get__", "view", "reshape"),
        *("flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim"),
        *("swapaxes", "swapdims", "moveaxis", "t", "expand", "_unsafe_view"),
    )
)
"""Functions that give views, or copies that could be views, of their first argument."""
_SHUFFLES = frozenset(
    ("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle")
)
_RESIZES = frozenset(("cat", "concat", "concatenate", "pixel_shuffle", "pixel_unshuffle"))
"""Functions whose result has another number of channels, in the same dimension."""
_PRODUCTS = frozenset(
    ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "einsum", "tensordot")
)
_LINEAR = frozenset(("linear", "addmm"))

Follow = Callable[[Func, Args, Kwargs, Any], Any]


def follower(rec: Recorder) -> Follow | None:
    """What a recorder does after each call; None where its nodes do not tell of channels."""
    return _Follower(rec).follow if "split" in rec.types else None


def drop_idle_splits(records: Records, kept: NDArray[np.int64], edges: NDArray[np.int64]) -> bool:
    """Makes splits whose parts all go to one node no nodes, and says whether there were any.

    Args:
        records: of the run.
        kept: those that are nodes now.
        edges: (E, 2) between these.
    """
    targets = np.bincount(edges[:, 0], minlength=len(kept)).tolist()
    idle = [
        record
        for record, count in zip(kept.tolist(), targets, strict=True)
        if count < 2 and (node := records.nodes[record]) is not None and node.type == "split"
    ]
    for record in idle:
        records.kinds[record] = int(Kind.CONTRACT)
    return bool(idle)


class _Follower:
    """Gives values their probes, and splits and shuffles their records."""

    def __init__(self, rec: Recorder) -> None:
        self.rec = rec
        self._mark = rec.mark("channels")
        self._splits: dict[int, int] = {}

    def follow(self, func: Func, args: Args, kwargs: Kwargs, result: Any) -> Any:
        """The result of a call that has been read."""
        made = _tensors(result)
        if not made or self.rec.opaque:
            return result
        name = name_of(func)
        x, probe = self._known(args, kwargs)
        if name in _LINEAR or name.lstrip("_").startswith("conv"):
            self._set(made[0], _layer_probe(name, args, kwargs, probe, made[0]))
        elif x is not None and probe is not None:
            if name in _VIEWS:
                self._move(func, args, kwargs, x, probe, made)
            elif name not in _PRODUCTS:
                self._keep(name, x, probe, made)
        return result

    def _known(self, args: Args, kwargs: Kwargs) -> tuple[Tensor | None, Tensor | None]:
        """The first argument that has a probe, and the probe."""
        for value in self.rec.tensors_in((args, kwargs)):
            probe = getattr(value, self._mark, None)
            if probe is not None:
                return value, probe
        return None, None

    def _set(self, value: Tensor, probe: Tensor) -> None:
        setattr(value, self._mark, probe)

    def _keep(self, name: str, x: Tensor, probe: Tensor, made: Sequence[Tensor]) -> None:
        """Operations that leave channels where they are, and those that shuffle by their name."""
        if name in _SHUFFLES:
            self._tag(made[0], self._node("shuffle", x))
        for value in made:
            if value is not x and _has_channels(probe, value, name in _RESIZES):
                self._set(value, _probe(value.shape, probe.stride()))

    def _move(
        self,
        func: Func,
        args: Args,
        kwargs: Kwargs,
        x: Tensor,
        probe: Tensor,
        made: Sequence[Tensor],
    ) -> None:
        """Views; and what would be one if channels lay in their order."""
        moved = _view(func, args, kwargs, x, probe)
        if not moved:
            moved = _view(func, args, kwargs, x, _numbered(probe))
            if moved and not _is_ordered(probe):
                self._tag(made[0], self._node("shuffle", x))
        for part, own in zip(made, moved, strict=False):
            self._set(part, own)
            if _channels(own) < _channels(probe):
                self._tag(part, self._split(x))

    def _split(self, x: Tensor) -> int:
        """The record of all parts of a value."""
        number = self.rec.record_of(x)
        assert number is not None
        if number not in self._splits:
            self._splits[number] = self._node("split", x)
        return self._splits[number]

    def _node(self, node_type: str, x: Tensor) -> int:
        return self.rec.add(Kind.KEEP, self.rec.records_in(x), Node(node_type, node_type))

    def _tag(self, value: Tensor, number: int) -> None:
        self.rec.tag(value, number)


def _tensors(value: Any) -> Sequence[Tensor]:
    """What a call returned, where it is a tensor or several."""
    if isinstance(value, Tensor):
        return (value,)
    is_several = isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor)
    return [item for item in value if isinstance(item, Tensor)] if is_several else ()


def _probe(shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    return torch.empty_strided(tuple(shape), tuple(strides), device="meta")


def _layer_probe(
    name: str, args: Args, kwargs: Kwargs, probe: Tensor | None, made: Tensor
) -> Tensor:
    """Of what a layer makes: new channels, unless it mixes positions."""
    if name in _LINEAR:
        if probe is not None and probe.dim() == made.dim() and probe.stride(-1) == 0:
            return _probe(made.shape, probe.stride())
        channels = made.dim() - 1
    else:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        channels = made.dim() - weight.dim() + 1
    return _probe(made.shape, [int(dim == channels) for dim in range(made.dim())])


def _view(func: Func, args: Args, kwargs: Kwargs, x: Tensor, probe: Tensor) -> Sequence[Tensor]:
    """What a call makes of a probe in its first argument's place; empty if that is no view."""
    if args and args[0] is x:
        args = (probe, *args[1:])
    elif kwargs.get("input") is x:
        kwargs = {**kwargs, "input": probe}
    else:
        return ()
    try:
        made = _tensors(func(*args, **kwargs))
    except (RuntimeError, IndexError, NotImplementedError):
        return ()
    memory = probe.untyped_storage()._cdata
    return made if all(part.untyped_storage()._cdata == memory for part in made) else ()


def _steps(probe: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the dimensions that channels lie along."""
    pairs = zip(probe.shape, probe.stride(), strict=True)
    return [(size, stride) for size, stride in pairs if size > 1 and stride > 0]


def _channels(probe: Tensor) -> int:
    return math.prod(size for size, _ in _steps(probe))


def _is_ordered(probe: Tensor) -> bool:
    strides = [stride for _, stride in _steps(probe)]
    return strides == sorted(strides, reverse=True)


def _numbered(probe: Tensor) -> Tensor:
    """The probe of channels that are numbered in the order in which they lie now."""
    strides, step = [], 1
    for size, stride in zip(reversed(probe.shape), reversed(probe.stride()), strict=True):
        strides.append(step if stride > 0 else 0)
        step *= size if stride > 0 else 1
    return _probe(probe.shape, strides[::-1])


def _has_channels(probe: Tensor, value: Tensor, any_number: bool) -> bool:
    """Whether a value has channels in the dimensions of a probe, and as many."""
    if value.dim() != probe.dim():
        return False
    sizes = zip(probe.shape, probe.stride(), value.shape, strict=True)
    return any_number or all(stride == 0 or before == after for before, stride, after in sizes)
