"""What moves channels: where a value is split along its channels, and where they are shuffled.

A graph of :data:`~ghn_fast.graph.types.CHANNEL_NODE_TYPES` has two more nodes.

- ``split``: what follows takes parts of a value's channels, as the halves of a ShuffleNet unit. One
  node for all parts; it is left out where all of them go to one node, as queries, keys and values
  go to their attention and both halves to the product of a gate, since it would tell nothing.
- ``shuffle``: channels change places among each other, as in a channel shuffle.

And behind a shuffle each weight knows which channels it is for (:attr:`Node.origins`), as it does
behind a depthwise convolution that makes several channels of each.

What only turns the layout (maps to tokens, windows, heads) is no node. What tells them apart is not
the name of an operation: every value has a *probe*, which is a view of one number for each channel,
its index in the layer that made it, with strides of 0 along the batch and positions. The channels
of a (B, C, H, W) map have strides (0, 1, 0, 0). A view of the value is applied to the probe as
well. Where the result has fewer channels, the value was split. Where a reshape is possible only
once the channels are stored anew in the order in which they now lie, they were shuffled: for
``view(B, g, C / g, H, W).transpose(1, 2).flatten(1, 2)`` strides (0, 1, C / g, 0, 0) are to be
joined. What a probe is not followed through (matrix products) begins anew at the next layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghn_fast.graph.layout import Origins
from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.recorder import (
    Args,
    Func,
    Kind,
    Kwargs,
    Parameter,
    Recorder,
    Records,
    name_of,
)
from ghn_fast.graph.trace.written import memory_of

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
_CONCATENATIONS = frozenset(("cat", "concat", "concatenate"))
_PRODUCTS = frozenset(
    ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "einsum", "tensordot")
)
_LINEAR = frozenset(("linear", "addmm"))
_CONVOLUTIONS = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "convolution", "_convolution"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    )
)

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


class _Channels(NamedTuple):
    """What is known of a value's channels.

    Attributes:
        probe: of the value's shape; each element is its channel's index in the layer that made it.
        moved: whether channels were shuffled since, so that they are not where layers leave them.
    """

    probe: Tensor
    moved: bool = False

    @classmethod
    def fresh(cls, value: Tensor, dim: int) -> _Channels:
        """Of a value that a layer made, with channels along a dimension."""
        return cls.along(torch.arange(value.shape[dim], device="cpu"), value, dim)

    @classmethod
    def along(cls, origins: Tensor, value: Tensor, dim: int, moved: bool = False) -> _Channels:
        return cls(_probe(origins, value.shape, [int(d == dim) for d in range(value.dim())]), moved)

    def of(self, value: Tensor) -> _Channels:
        """The same channels of another value, which may have other positions."""
        offset = self.probe.storage_offset()
        return self._replace(probe=self.probe.as_strided(value.shape, self.probe.stride(), offset))

    def are_in(self, value: Tensor) -> bool:
        """Whether a value may have these channels in the same dimensions."""
        if value.dim() != self.probe.dim():
            return False
        sizes = zip(self.probe.shape, self.probe.stride(), value.shape, strict=True)
        return all(stride == 0 or before == after for before, stride, after in sizes)

    @property
    def number(self) -> int:
        return math.prod(size for size, _ in _steps(self.probe))

    def origins(self, dim: int | None = None) -> Tensor | None:
        """(C,) in the order of the places; None where not all lie along the one dimension."""
        dims = [d for d, stride in enumerate(self.probe.stride()) if stride > 0]
        dims = [d for d in dims if self.probe.shape[d] > 1]
        if len(dims) != 1 or dim not in (None, dims[0]):
            return None
        return self.probe.movedim(dims[0], 0).flatten(1)[:, 0] if self.probe.numel() else None


class _Follower:
    """Gives values their probes, splits and shuffles their records, weights their origins."""

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
        x, own = self._known(args, kwargs)
        if name in _LINEAR or name in _CONVOLUTIONS:
            setattr(made[0], self._mark, self._layer(name, args, kwargs, own, made[0]))
        elif x is not None and own is not None and name not in _PRODUCTS:
            if name in _VIEWS:
                self._move(func, args, kwargs, x, own, made)
            elif name in _SHUFFLES:
                self._shuffle(func, args, x, own, made[0])
            elif name in _CONCATENATIONS:
                self._concatenate(args, kwargs, own, made[0])
            else:
                self._keep(args, kwargs, x, own, made)
        return result

    def _of(self, value: Tensor) -> _Channels | None:
        return getattr(value, self._mark, None)

    def _known(self, args: Args, kwargs: Kwargs) -> tuple[Tensor | None, _Channels | None]:
        """The first argument whose channels are known."""
        for value in self.rec.tensors_in((args, kwargs)):
            own = self._of(value)
            if own is not None:
                return value, own
        return None, None

    def _layer(
        self, name: str, args: Args, kwargs: Kwargs, own: _Channels | None, made: Tensor
    ) -> _Channels:
        """Of what a layer makes: new channels, unless it mixes positions or is depthwise."""
        weight = args[1] if len(args) > 1 else kwargs.get("weight", made)
        is_linear = name in _LINEAR
        dim = made.dim() - 1 if is_linear else made.dim() - weight.dim() + 1
        is_like = own is not None and own.probe.dim() == made.dim()
        if own is not None and is_like and is_linear and own.probe.stride(-1) == 0:
            return own.of(made)
        origins = own.origins(dim) if own is not None and is_like else None
        if own is None or origins is None or "transpose" in name:
            return _Channels.fresh(made, dim)
        times, rest = divmod(made.shape[dim], len(origins))
        if weight.dim() > 2 and weight.shape[1] == 1 < len(origins) and not rest:
            if times == 1 and not own.moved:
                return _Channels.fresh(made, dim)
            origins = origins.repeat_interleave(times)
            self._note(args, kwargs, origins)
            return _Channels.along(origins, made, dim, moved=True)
        parameter = self.rec.parameter_of(weight)
        if parameter is not None and own.moved and weight.shape[1] == len(origins):
            self._note_of(parameter, 1, origins)
        return _Channels.fresh(made, dim)

    def _keep(
        self, args: Args, kwargs: Kwargs, x: Tensor, own: _Channels, made: Sequence[Tensor]
    ) -> None:
        """Operations that leave channels where they are."""
        for value in made:
            if value is not x and own.are_in(value):
                setattr(value, self._mark, own.of(value))
        origins = own.origins() if own.moved else None
        if origins is not None:
            self._note(args, kwargs, origins)

    def _shuffle(self, func: Func, args: Args, x: Tensor, own: _Channels, made: Tensor) -> None:
        """Shuffles by their name; what becomes positions is not followed further."""
        self.rec.tag(made, self._node("shuffle", x))
        origins = own.origins(1)
        if origins is not None and made.shape == x.shape:
            moved = func(origins.view(1, -1, 1, 1).float(), *args[1:]).long().flatten()
            setattr(made, self._mark, _Channels.along(moved, made, 1, moved=True))

    def _concatenate(self, args: Args, kwargs: Kwargs, own: _Channels, made: Tensor) -> None:
        """Channels keep their origins side by side; positions change nothing."""
        parts = [part for part in self.rec.tensors_in((args, kwargs)) if part.dim() == made.dim()]
        channels = [self._of(part) for part in parts]
        if own.are_in(made):
            setattr(made, self._mark, own.of(made))
            return
        unlike = [d for d in range(made.dim()) if made.shape[d] != parts[0].shape[d]]
        if len(unlike) != 1:
            return
        (dim,) = unlike
        found = [None if known is None else known.origins(dim) for known in channels]
        origins = [
            torch.arange(part.shape[dim], device="cpu") if known is None else known
            for part, known in zip(parts, found, strict=True)
        ]
        moved = any(known is not None and known.moved for known in channels)
        joined = torch.cat(origins)
        if len(joined) == made.shape[dim]:
            setattr(made, self._mark, _Channels.along(joined, made, dim, moved))

    def _move(
        self,
        func: Func,
        args: Args,
        kwargs: Kwargs,
        x: Tensor,
        own: _Channels,
        made: Sequence[Tensor],
    ) -> None:
        """Views; and what would be one if channels lay in their order."""
        views = _view(func, args, kwargs, x, own.probe)
        moved = own.moved
        if not views:
            views = _view(func, args, kwargs, x, _numbered(own.probe))
            if views and not _is_ordered(own.probe):
                self.rec.tag(made[0], self._node("shuffle", x))
                moved = True
        for part, probe in zip(made, views, strict=False):
            channels = _Channels(probe, moved)
            setattr(part, self._mark, channels)
            if channels.number < own.number:
                self.rec.tag(part, self._split(x))

    def _split(self, x: Tensor) -> int:
        """The record of all parts of a value."""
        number = self.rec.record_of(x)
        assert number is not None
        if number not in self._splits:
            self._splits[number] = self._node("split", x)
        return self._splits[number]

    def _node(self, node_type: str, x: Tensor) -> int:
        return self.rec.add(Kind.KEEP, self.rec.records_in(x), Node(node_type, node_type))

    def _note(self, args: Args, kwargs: Kwargs, origins: Tensor) -> None:
        """On the parameters of a call that have one row for each channel."""
        for value in self.rec.tensors_in((args, kwargs)):
            parameter = self.rec.parameter_viewed(value)
            if parameter is not None and parameter.tensor.shape[:1] == (len(origins),):
                self._note_of(parameter, 0, origins)

    def _note_of(self, parameter: Parameter, dim: int, origins: Tensor) -> None:
        if parameter.node is None:
            return
        nodes = self.rec.records.nodes
        node = nodes[parameter.node]
        if node is not None and node.parameter == parameter.name and node.origins is None:
            places = (origins % len(origins)).tolist()
            nodes[parameter.node] = replace(node, origins=Origins(dim, tuple(places)))


def _tensors(value: Any) -> Sequence[Tensor]:
    """What a call returned, where it is a tensor or several."""
    if isinstance(value, Tensor):
        return (value,)
    is_several = isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor)
    return [item for item in value if isinstance(item, Tensor)] if is_several else ()


def _probe(origins: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    return origins.as_strided(tuple(shape), tuple(strides))


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
    return made if all(memory_of(part) == memory_of(probe) for part in made) else ()


def _steps(probe: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the dimensions that channels lie along."""
    pairs = zip(probe.shape, probe.stride(), strict=True)
    return [(size, stride) for size, stride in pairs if size > 1 and stride > 0]


def _is_ordered(probe: Tensor) -> bool:
    strides = [stride for _, stride in _steps(probe)]
    return strides == sorted(strides, reverse=True)


def _numbered(probe: Tensor) -> Tensor:
    """The probe of the same channels once they are stored in the order in which they lie now."""
    strides, step = [], 1
    for size, stride in zip(reversed(probe.shape), reversed(probe.stride()), strict=True):
        strides.append(step if stride > 0 else 0)
        step *= size if stride > 0 else 1
    first = tuple(slice(None) if stride > 0 else 0 for stride in probe.stride())
    return _probe(probe[first].flatten().clone(), probe.shape, strides[::-1])
