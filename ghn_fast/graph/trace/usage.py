"""How a weight is used: which of its stored dimensions are outputs, inputs and a kernel.

``x @ w``, ``einsum`` and kernels that are permuted before a convolution hold the weights of linear
layers and convolutions in another order than ``nn.Linear`` and ``nn.Conv2d`` do. What is multiplied
tells the roles of the operand's dimensions (:class:`Use`); its strides tell which dimensions of the
parameter these are, whatever views lie between.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ghn_fast.graph.layout import Layout, Storage
from ghn_fast.graph.trace.recorder import Place


class Use(NamedTuple):
    """The roles of an operand's dimensions.

    Attributes:
        order: the dimensions that are outputs, those that are inputs, and those of the kernel.
        stack: the dimensions over which there is a matrix for each index.
    """

    order: tuple[tuple[int, ...], ...]
    stack: tuple[int, ...] = ()


def as_layer(weight: Tensor) -> Use:
    """Of weights as ``nn.Linear`` and ``nn.Conv2d`` have them: (out, in, \\*kernel)."""
    return Use(tuple((dim,) for dim in range(weight.dim())))


def from_right(weight: Tensor) -> Use:
    """Of ``x @ weight``: (\\*stack, in, out)."""
    return _matrix(weight, weight.dim() - 1, weight.dim() - 2)


def from_left(weight: Tensor) -> Use:
    """Of ``weight @ x``: (\\*stack, out, in)."""
    return _matrix(weight, weight.dim() - 2, weight.dim() - 1)


def _matrix(weight: Tensor, out: int, into: int) -> Use:
    return Use(((out,), (into,)), tuple(range(weight.dim() - 2)))


def contracted(weight: Tensor, inputs: Sequence[int]) -> Use:
    """Of a product over the dimensions ``inputs`` of a weight; the others are outputs."""
    out = tuple(dim for dim in range(weight.dim()) if dim not in inputs)
    return _unless_stacked(out, tuple(inputs))


def by_letters(weight: str, x: str, result: str) -> Use | None:
    """Of an ``einsum`` of a weight and a value; None where a letter has no such role."""
    if "." in weight or len(set(weight)) < len(weight):
        return None
    inputs = tuple(
        weight.index(letter) for letter in x if letter in weight and letter not in result
    )
    out = tuple(weight.index(letter) for letter in result if letter in weight and letter not in x)
    stack = tuple(dim for dim, c in enumerate(weight) if c in x and c in result)
    if not inputs or len({*inputs, *out, *stack}) < len(weight):
        return None
    return Use((out, inputs), stack) if stack else _unless_stacked(out, inputs)


def _unless_stacked(out: tuple[int, ...], inputs: tuple[int, ...]) -> Use:
    """A weight that begins with one of several dimensions of outputs, as the matrices of experts
    and heads (E, out, in) do, is a stack of matrices."""
    if len(out) > 1 and 0 in out:
        return Use((tuple(dim for dim in out if dim), inputs), (0,))
    return Use((out, inputs))


def storage_of(parameter: Tensor, operand: Place, use: Use) -> Storage | None:
    """How a parameter is stored that is used as an operand.

    Args:
        parameter: as it is stored.
        operand: where it lies in the parameter's memory.
        use: of the operand.

    Returns:
        None where the parameter is stored as it is used, or where it is not known which of its
        dimensions the operand's are.
    """
    shape, strides = tuple(parameter.shape), parameter.stride()
    is_plain = (shape, strides) == (tuple(operand.sizes), operand.strides) and not use.stack
    if is_plain and all(dims == (dim,) for dim, dims in enumerate(use.order)):
        return None
    atoms = _atoms(_by_stride(shape, strides), _by_stride(*operand))
    return None if atoms is None else _storage(shape, atoms, use)


def _storage(shape: tuple[int, ...], atoms: Sequence[Atom], use: Use) -> Storage | None:
    own = [[n for n, atom in enumerate(atoms) if atom[1] == dim] for dim in range(len(shape))]
    sizes = tuple(tuple(atoms[n][0] for n in parts) if len(parts) > 1 else (-1,) for parts in own)
    # The atoms in the order of the stored dimensions; a single dimension has none.
    split: list[int | None] = []
    for parts in own:
        split += parts or [None]
    places: dict[int | None, list[int]] = defaultdict(list)
    for n, (_, _, dim) in enumerate(atoms):
        places[dim].append(split.index(n))
    stack = [*places[None], *(place for dim in use.stack for place in places[dim])]
    order = [[place for dim in dims for place in places[dim]] for dims in use.order]
    order[-1] += [place for place, n in enumerate(split) if n is None]
    layout = Layout(sizes, tuple(map(tuple, order)), tuple(sorted(stack)))
    return None if _is_as_stored(layout, shape) else Storage(shape, (layout,))


_Dims = list[tuple[int, int, int]]
"""(stride, size, dimension), innermost first, without single ones."""
Atom = tuple[int, int, int | None]
"""A size, the stored dimension that it is a part of, and the operand's."""


def _atoms(stored: _Dims, operand: _Dims) -> list[Atom] | None:
    """The common parts of the stored dimensions and the operand's, outermost first."""
    if _is_dense(stored) and _is_dense(operand) and _count(stored) == _count(operand):
        return _refined(stored, operand)
    by_stride = {stride: (size, dim) for stride, size, dim in stored}
    found: dict[int, int] = {}
    for stride, size, dim in operand:
        whole, there = by_stride.get(stride, (0, 0))
        if size > whole:
            return None
        found[there] = dim
    if len(found) < len(operand):
        return None
    return [(size, dim, found.get(dim)) for _, size, dim in reversed(stored)]


def _by_stride(sizes: Sequence[int], strides: Sequence[int]) -> _Dims:
    dims = zip(strides, sizes, range(len(sizes)), strict=True)
    return sorted(entry for entry in dims if entry[1] > 1)


def _is_dense(dims: _Dims) -> bool:
    size = 1
    for stride, length, _ in dims:
        if stride != size:
            return False
        size *= length
    return True


def _count(dims: _Dims) -> int:
    return math.prod(size for _, size, _ in dims)


def _refined(stored: _Dims, operand: _Dims) -> list[Atom] | None:
    atoms: list[Atom] = []
    for (_, a, dim), (_, b, other) in _steps(stored, operand):
        if a % b and b % a:
            return None
        atoms.append((min(a, b), dim, other))
    return atoms[::-1]


def _steps(
    stored: _Dims, operand: _Dims
) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Pairs of what is left of the innermost dimensions of two dense layouts of equal size."""
    a, b = list(stored[::-1]), list(operand[::-1])
    while a and b:
        yield a[-1], b[-1]
        taken = min(a[-1][1], b[-1][1])
        for dims in (a, b):
            stride, size, dim = dims.pop()
            if size > taken:
                dims.append((stride * taken, size // taken, dim))


def _is_as_stored(layout: Layout, shape: tuple[int, ...]) -> bool:
    """Whether a weight is stored as it is used, but for single dimensions at the end."""
    split = layout.split(shape)
    places = [place for group in layout.order for place in group if split[place] > 1]
    if layout.stack or any(len(parts) > 1 for parts in layout.sizes) or places != sorted(places):
        return False
    return _stripped(layout.shape(shape)) == _stripped(shape)


def _stripped(shape: Sequence[int]) -> tuple[int, ...]:
    last = max((dim for dim, size in enumerate(shape) if size > 1), default=-1)
    return tuple(shape[: last + 1])
