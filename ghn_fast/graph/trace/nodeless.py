"""How calls that make no node are read: only the shape of their result matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn_fast.graph.trace import shapes
from ghn_fast.graph.trace.flattened import note_flattening
from ghn_fast.graph.trace.recorder import (
    LARGE,
    Args,
    AsksValues,
    Func,
    Kind,
    Kwargs,
    NeedsValues,
    Recorder,
    bind,
    in_place,
    name_of,
)

_META = torch.device("meta")


def unary(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Activations, dropout and the like: the shape of their input."""
    x = args[0] if args else kwargs["input"]
    number = rec.record_of(x)
    parameter = rec.parameter_of(x)
    if number is None or rec.execute or not (parameter or rec.shape_only(x)):
        return rec.generic(func, args, kwargs)
    if rec.is_static(number) and not x.is_contiguous():
        return rec.generic(func, args, kwargs)  # the order in memory stays what it is
    parents = rec.records_in(args[1:], kwargs)
    if parents:
        number = rec.merge([number, *parents])
    if in_place(func) or kwargs.get("inplace"):
        if parents:
            rec.mutate(x, number)
        return x
    return rec.fresh(x.shape, number, x.dtype)


def reshape(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``reshape``, ``view`` and ``flatten``; maps that are flattened are noted."""
    x = args[0] if args else kwargs["input"]
    result = _reshaped(rec, func, args, kwargs, x)
    rec.note_copy(x, result)
    return result if rec.opaque or result is x else note_flattening(rec, x, result)


def _reshaped(rec: Recorder, func: Func, args: Args, kwargs: Kwargs, x: Tensor) -> Any:
    """A view where the layout allows it, else what a copy would give."""
    number = rec.record_of(x)
    if name_of(func) != "reshape":
        return rec.generic(func, args, kwargs)
    if number is None or rec.execute or not x.is_meta or x.is_contiguous() or x.numel() == 0:
        return rec.generic(func, args, kwargs)
    given: Any = args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:]
    size = tuple(kwargs.get("shape", given))
    known = math.prod(length for length in size if length != -1)
    return rec.fresh(
        [x.numel() // known if length == -1 else length for length in size], number, x.dtype
    )


def contiguous(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``contiguous``: the same values, perhaps in another order in memory."""
    result = unary(rec, func, args, kwargs)
    rec.note_copy(args[0], result)
    return result


def binary(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Arithmetic on two values or a value and a number."""
    a, b = bind(("input", "other"), args, kwargs)
    parents = rec.records_in(a, b)
    if parents:
        result = binary_result(rec, func, args, kwargs, a, b, rec.merge(parents))
        if len(parents) == 1 and rec.is_static(parents[0]):
            _note_product(rec, name_of(func), a, b, result)
        return result
    made = isinstance(a, Tensor) and isinstance(b, Tensor) and not in_place(func)
    if made and not rec.execute and math.prod(shapes.broadcast(a.shape, b.shape)) > LARGE:
        return rec.large_constant(func, args, kwargs)
    return rec.generic(func, args, kwargs)


_PRODUCTS = ("mul", "multiply", "__rmul__", "div", "true_divide")


def _note_product(rec: Recorder, name: str, a: Any, b: Any, result: Tensor) -> None:
    """Notes a product or quotient of what is made of a parameter and a constant number."""
    if name not in _PRODUCTS:
        return
    x, other = (a, b) if isinstance(a, Tensor) and rec.record_of(a) is not None else (b, a)
    if isinstance(other, Tensor):
        known = other.numel() == 1 and not rec.shape_only(other)
        other = other.item() if known else None
    if not isinstance(other, Real) or not math.isfinite(other) or other == 0:
        return
    if "div" not in name:
        rec.note_factor(x, result, float(other))
    elif x is a:
        rec.note_factor(x, result, 1 / float(other))


def binary_result(
    rec: Recorder, func: Func, args: Args, kwargs: Kwargs, a: Any, b: Any, number: int
) -> Any:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    first = a if isinstance(a, Tensor) else b
    changes = in_place(func)
    plain = first.is_floating_point() and (
        a.dtype == b.dtype if both else isinstance(a if first is b else b, (int, float))
    )
    runs = rec.execute or rec.is_static(number) or not plain or "out" in kwargs
    if runs or (changes and not rec.shape_only(first)):
        return _run_binary(rec, func, args, kwargs, number)
    if changes:
        rec.mutate(first, number)
        return first
    # A table of positions says how many there should be.
    pair = (b, a) if rec.parameter_of(a) else (a, b)
    out = shapes.broadcast(pair[0].shape, pair[1].shape) if both else first.shape
    return rec.fresh(out, number, first.dtype)


def _run_binary(rec: Recorder, func: Func, args: Args, kwargs: Kwargs, number: int) -> Any:
    result = rec.perform(func, args, kwargs)
    if in_place(func):
        rec.mutate(args[0], number)
        return args[0]
    return rec.tag(result, number)


def to(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``Tensor.to`` and its kin: the shape, perhaps in another type; devices do not matter."""
    result = _converted(rec, func, args, kwargs)
    rec.note_conversion(args[0], result)
    return result


def _converted(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    number = rec.record_of(x)
    if number is None or rec.execute or not rec.shape_only(x):
        return rec.generic(func, args, kwargs)
    if rec.is_static(number) and not x.is_contiguous():
        return rec.generic(func, args, kwargs)
    dtype = _target_dtype(rec, name_of(func), args[1:], kwargs, x.dtype)
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


def constant(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``zeros``, ``full``, ...: a constant, with values unless it is large."""
    if rec.execute:
        return rec.constant(func(*args, **kwargs))
    if _elements(kwargs.get("size", args)) <= LARGE:
        return func(*args, **kwargs)
    return rec.large_constant(func, args, {**kwargs, "device": _META})


def constant_like(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``zeros_like``, ``new_ones``, ...: a constant of that size, on the model's device."""
    x = args[0] if args else kwargs["input"]
    if rec.execute:
        return rec.constant(func(*args, **kwargs))
    if _elements_like(name_of(func), x, args[1:], kwargs) > LARGE:
        return rec.large_constant(func, args, {**kwargs, "device": _META})
    if x.is_meta:
        kwargs.setdefault("device", rec.device)
    return func(*args, **kwargs)


def _elements_like(name: str, x: Tensor, args: Args, kwargs: Kwargs) -> int:
    if name.endswith("_like"):
        return x.numel()
    return 0 if name == "new_tensor" else _elements(kwargs.get("size", args))


def _elements(size: Any) -> int:
    """Of a size that is given as a sequence or as several numbers."""
    if isinstance(size, Sequence) and size and isinstance(size[0], Sequence):
        size = size[0]
    return math.prod(size) if all(isinstance(length, int) for length in size) else 0


def one_hot(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Without values where it is large: a position table that is read by a product makes it so."""
    x, num_classes = bind(("input", "num_classes"), args, kwargs)
    if rec.execute or num_classes is None or num_classes * x.numel() <= LARGE:
        return rec.generic(func, args, kwargs)
    parents = rec.records_in(x)
    if not parents:
        return rec.large_constant(func, args, kwargs)
    return rec.tag(rec.run(func, args, kwargs), rec.merge(parents))


def as_other(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Of the other tensor the shape alone matters: nothing of it is in the result."""
    x, other = bind(("self", "other"), args, kwargs)
    shaped = getattr(Tensor, name_of(func).removesuffix("_as"))
    handle = rec.generic if shaped is Tensor.expand else partial(reshape, rec)
    return handle(shaped, (x, other.shape), {})


def look(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Questions about a tensor that need no values."""
    return func(*args, **kwargs)


def values(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Questions about a tensor's values, which only constants and parameters have."""
    parents = rec.records_in(args)
    rec.asked = rec.asked or bool(parents)
    if rec.execute:
        rec.taken += parents if name_of(func) in _ARRAYS else ()
    elif any(rec.shape_only(tensor) for tensor in rec.tensors_in(args)):
        raise AsksValues(f"the model asks for the value of an activation ({name_of(func)})")
    result = func(*args, **kwargs)
    # What the model writes to an array would be written to the tensor.
    return result.copy() if isinstance(result, np.ndarray) and rec.owns(args[0]) else result


_ARRAYS = frozenset(("numpy", "__array__", "tolist"))


def from_data(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """A tensor made of numbers or of an array, perhaps of what the model took out of tensors."""
    if not rec.execute or rec.records_in(args, kwargs):
        return rec.generic(func, args, kwargs)
    return rec.tag(func(*args, **kwargs), rec.outside())


def unbind(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Also what a loop over a tensor does."""
    rec.looped = rec.looped or rec.input in rec.records_in(args, kwargs)
    return rec.generic(func, args, kwargs)


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
    result = rec.run(func, (x, tuple(expanded)), {})
    # What is added to a layer's output at some positions only is no bias of the layer.
    is_part = result.numel() != x.numel() and result.shape[-1:] == x.shape[-1:]
    number = rec.add(Kind.CONTRACT, parents) if is_part else rec.merge(parents)
    return rec.tag(result, number)


def _selected(rec: Recorder, mask: Tensor) -> tuple[Tensor, ...]:
    """Where a mask holds, for each dimension; everywhere if it has no values.

    All is as possible an outcome as any, and one that everything computed from it agrees on.
    """
    if not rec.shape_only(mask):
        return mask.nonzero(as_tuple=True)
    everywhere = torch.empty(mask.numel(), dtype=torch.int64, device="meta")
    return (everywhere,) * mask.dim()


def set_item(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """Assignment to a part: the whole depends on both; of shapes there is nothing to compute."""
    parents = rec.records_in(args)
    if not parents or rec.execute or rec.known(args):
        return rec.generic(func, args, kwargs)
    rec.mutate(args[0], rec.merge(parents))
    return None


def select(rec: Recorder, func: Func, args: Args, kwargs: Kwargs) -> Any:
    """``nonzero``, ``where`` with one argument and ``masked_select``, see :func:`_selected`."""
    x = args[0] if args else kwargs["input" if "input" in kwargs else "condition"]
    parents = rec.records_in(args, kwargs)
    rec.asked = rec.asked or (rec.execute and bool(parents))
    if not parents or rec.execute or not rec.shape_only(x) or (func in _WHERE and len(args) > 1):
        return rec.generic(func, args, kwargs)
    number = rec.merge(parents)
    if name_of(func) == "masked_select":
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
