"""From decoded blocks to parameters in Triton: all of them in one launch, or in two.

A table on the device tells each program which part of which parameter is its own, where that lies
and where its block lies, so that it makes no difference how many parameters there are: those of a
model, or of a whole meta-batch. Each value is written once; blocks are small and come from the
second-level cache. A second launch is made for parameters of short rows, whose programs are tall.

What it costs (H100 SXM: 3.35 TB/s): the bytes of the parameters, 102 MB or 30 microseconds for
ResNet-50 and 1.2 GB or 0.37 ms for ViT-L/16. Besides the store an element takes one load and about
ten instructions, at most a third of the time of its store; the positions of columns in the block,
with their divisions, are computed once for all rows of a program. On an H200 ResNet-50 takes 1.0 ms
(``bench/bench_tile.py``; a copy of its parameters 0.11 ms): it grows by about
5 microseconds with each parameter, for which the host makes the table, not with the bytes.

The backward pass gives each part of a block to one program, which sums over all that was made from
it: every gradient is read once, and no sum depends on the order in which programs run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import triton
import triton.language as tl

from ghn_fast._system.device import to_device
from ghn_fast.kernels.activations import sigmoid, tanh

# Numbers of a tensor in a table: its address, five sizes and five strides.
_TENSOR = tl.constexpr(11)

# Of an entry: the block, the parameter, the parameter's dtype, the rule and the scale's bits.
FILL_FIELDS = 25

# Of a block: its values, its gradient, and the range of entries that are made from it.
BLOCK_FIELDS = 24

# Of an entry of the backward pass: the parameter's gradient, its dtype, the rule, the scale's bits.
GRADIENT_FIELDS = 14

WIDE = (16, 256)
TALL = (256, 16)
WIDE_BACKWARD = (4, 256)
TALL_BACKWARD = (64, 16)
# Rows of at most so many columns are given to tall programs.
_SHORT = 32

# Positions along a row, and those of the program behind its end, are int32.
_LARGEST = 2**31 - 512

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def split(columns, two, three, four):
    """Positions along the last four dimensions, of the given sizes but for the first."""
    d = columns % four
    columns = columns // four
    c = columns % three
    columns = columns // three
    return columns // two, columns % two, c, d


@triton.jit
def place(a, b, c, d, tensor):
    """Offsets of positions along the last four dimensions of a tensor in a table."""
    return (
        a.to(tl.int64) * tl.load(tensor + 7)
        + b.to(tl.int64) * tl.load(tensor + 8)
        + c.to(tl.int64) * tl.load(tensor + 9)
        + d.to(tl.int64) * tl.load(tensor + 10)
    )


@triton.jit
def size(tensor, dim: tl.constexpr):
    """Of one dimension; rows are of less than 2^31 elements, and not more rows than that."""
    return tl.load(tensor + 1 + dim).to(tl.int32)


@triton.jit
def load_any(address, offsets, mask, kind):
    """Values of one of the dtypes float32, float64, float16 and bfloat16, as float32."""
    if kind == 0:
        values = tl.load(address.to(tl.pointer_type(tl.float32)) + offsets, mask=mask, other=0.0)
    elif kind == 1:
        double = address.to(tl.pointer_type(tl.float64))
        values = tl.load(double + offsets, mask=mask, other=0.0).to(tl.float32)
    elif kind == 2:
        half = address.to(tl.pointer_type(tl.float16))
        values = tl.load(half + offsets, mask=mask, other=0.0).to(tl.float32)
    else:
        narrow = address.to(tl.pointer_type(tl.bfloat16))
        values = tl.load(narrow + offsets, mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def store_any(address, offsets, values, mask, kind):
    """The opposite of :func:`load_any`."""
    if kind == 0:
        tl.store(address.to(tl.pointer_type(tl.float32)) + offsets, values, mask=mask)
    elif kind == 1:
        double = address.to(tl.pointer_type(tl.float64))
        tl.store(double + offsets, values.to(tl.float64), mask=mask)
    elif kind == 2:
        half = address.to(tl.pointer_type(tl.float16))
        tl.store(half + offsets, values.to(tl.float16), mask=mask)
    else:
        narrow = address.to(tl.pointer_type(tl.bfloat16))
        tl.store(narrow + offsets, values.to(tl.bfloat16), mask=mask)


@triton.jit
def fill_part(
    table,
    parts,
    TYPE: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Fills one part of a parameter: some output channels by some of all that is behind them.

    Args:
        table: (entries, FIELDS) int64.
        parts: (programs, 2) int32, the entry and the number of the part in its parameter.
        TYPE: dtype of the blocks.
    """
    entry = table + tl.load(parts + 2 * tl.program_id(0)).to(tl.int64) * FIELDS
    part = tl.load(parts + 2 * tl.program_id(0) + 1)
    target = entry + _TENSOR
    two, three, four = size(target, 2), size(target, 3), size(target, 4)
    width = size(target, 1) * two * three * four
    across = tl.cdiv(width, COLUMNS)
    rows = (part // across) * ROWS + tl.arange(0, ROWS)
    columns = (part % across) * COLUMNS + tl.arange(0, COLUMNS)
    valid = (rows < size(target, 0))[:, None] & (columns < width)[None, :]
    a, b, c, d = split(columns, two, three, four)
    target_columns = place(a, b, c, d, target)
    source_columns = place(
        a % size(entry, 1), b % size(entry, 2), c % size(entry, 3), d % size(entry, 4), entry
    )
    source_rows = (rows % size(entry, 0)).to(tl.int64) * tl.load(entry + 6)
    target_rows = rows.to(tl.int64) * tl.load(target + 6)
    block = tl.load(entry).to(tl.pointer_type(TYPE))
    values = tl.load(
        block + source_rows[:, None] + source_columns[None, :], mask=valid, other=0.0
    ).to(tl.float32)
    rule = tl.load(target + _TENSOR + 1)
    if rule == 0:
        scale = tl.load(target + _TENSOR + 2).to(tl.int32).to(tl.float32, bitcast=True)
        values = values * scale
    elif rule == 1:
        values = 2.0 * sigmoid(0.5 * values)
    else:
        values = tanh(0.2 * values)
    store_any(
        tl.load(target),
        target_rows[:, None] + target_columns[None, :],
        values,
        valid,
        tl.load(target + _TENSOR),
    )


@triton.jit
def sum_part(
    blocks,
    table,
    parts,
    TYPE: tl.constexpr,
    BLOCK_FIELDS: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of one part of a block: the sum over all that was made from it.

    Args:
        blocks: (blocks, BLOCK_FIELDS) int64.
        table: (entries, FIELDS) int64, those of each block one after the other.
        parts: (programs, 2) int32, the block and the number of the part in it.
        TYPE: dtype of the blocks and of their gradients.
    """
    block = blocks + tl.load(parts + 2 * tl.program_id(0)).to(tl.int64) * BLOCK_FIELDS
    part = tl.load(parts + 2 * tl.program_id(0) + 1)
    result = block + _TENSOR
    one, two, three, four = size(block, 1), size(block, 2), size(block, 3), size(block, 4)
    height, width = size(block, 0), one * two * three * four
    across = tl.cdiv(width, COLUMNS)
    rows = (part // across) * ROWS + tl.arange(0, ROWS)
    columns = (part % across) * COLUMNS + tl.arange(0, COLUMNS)
    valid = (rows < height)[:, None] & (columns < width)[None, :]
    a, b, c, d = split(columns, two, three, four)
    values = tl.zeros([ROWS, COLUMNS], tl.float32)
    if tl.load(block) != 0:
        source_rows = rows.to(tl.int64) * tl.load(block + 6)
        values = tl.load(
            tl.load(block).to(tl.pointer_type(TYPE))
            + source_rows[:, None]
            + place(a, b, c, d, block)[None, :],
            mask=valid,
            other=0.0,
        ).to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    first = tl.load(block + 2 * _TENSOR).to(tl.int32)
    last = tl.load(block + 2 * _TENSOR + 1).to(tl.int32)
    entry = table + first.to(tl.int64) * FIELDS
    for _ in range(first, last):
        address, kind = tl.load(entry), tl.load(entry + _TENSOR)
        times_one = tl.cdiv(size(entry, 1), one)
        times_two = tl.cdiv(size(entry, 2), two)
        times_three = tl.cdiv(size(entry, 3), three)
        times_four = tl.cdiv(size(entry, 4), four)
        repeats = times_one * times_two * times_three * times_four
        repeated = tl.zeros([ROWS, COLUMNS], tl.float32)
        for repeat in range(0, tl.cdiv(size(entry, 0), height) * repeats):
            shift_a, shift_b, shift_c, shift_d = split(
                repeat % repeats, times_two, times_three, times_four
            )
            row = rows + repeat // repeats * height
            shifted_a, shifted_b = a + shift_a * one, b + shift_b * two
            shifted_c, shifted_d = c + shift_c * three, d + shift_d * four
            there = (shifted_a < size(entry, 1)) & (shifted_b < size(entry, 2))
            there = there & (shifted_c < size(entry, 3)) & (shifted_d < size(entry, 4))
            offsets = place(shifted_a, shifted_b, shifted_c, shifted_d, entry)
            repeated += load_any(
                address,
                (row.to(tl.int64) * tl.load(entry + 6))[:, None] + offsets[None, :],
                valid & (row < size(entry, 0))[:, None] & there[None, :],
                kind,
            )
        rule = tl.load(entry + _TENSOR + 1)
        if rule == 0:
            scale = tl.load(entry + _TENSOR + 2).to(tl.int32).to(tl.float32, bitcast=True)
            total += repeated * scale
        elif rule == 1:
            gate = sigmoid(0.5 * values)
            total += repeated * gate * (1.0 - gate)
        else:
            bounded = tanh(0.2 * values)
            total += repeated * 0.2 * (1.0 - bounded * bounded)
        entry += FIELDS
    offsets = rows.to(tl.int64)[:, None] * tl.load(result + 6) + place(a, b, c, d, result)[None, :]
    there = tl.load(result).to(tl.pointer_type(TYPE)) + offsets
    tl.store(there, total.to(TYPE), mask=valid)


TensorInfo = Sequence[int]
"""A tensor on the device: its address, five sizes and five strides in elements."""


def fill(
    blocks: Sequence[TensorInfo],
    parameters: Sequence[TensorInfo],
    types: Sequence[int],
    rules: Sequence[int],
    scales: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fills parameters, each from a block.

    Args:
        blocks, parameters: for each parameter its block and itself.
        types: of the parameters: 0 float32, 1 float64, 2 float16, 3 bfloat16.
        rules: 0 scale, 1 norm_weight, 2 bias.
        scales: used for the first rule.
        dtype: of the blocks: float32, float16 or bfloat16.
        device: where all of them are.
    """
    columns = [_column(types), _column(rules), _column(_bits(scales))]
    table = np.concatenate([_tensors(blocks), _tensors(parameters), *columns], axis=1)
    _check_countable(table[:, 12:17])
    heights, widths = _extents(table[:, 12:17])
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        on_device = _upload(table, device)
        for shape, parts in _parts(heights, widths, WIDE, TALL):
            fill_part[(len(parts),)](
                on_device,
                _upload(parts, device),
                TYPE=_TYPES[dtype],
                FIELDS=FILL_FIELDS,
                ROWS=shape[0],
                COLUMNS=shape[1],
                num_stages=1,
            )


def fill_backward(
    values: Sequence[TensorInfo],
    gradients: Sequence[TensorInfo],
    owners: Sequence[int],
    parameter_gradients: Sequence[TensorInfo],
    types: Sequence[int],
    rules: Sequence[int],
    scales: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Writes the gradients of all blocks from those of the parameters made from them.

    Args:
        values, gradients: for each block its values (address 0 where they do not matter) and its
            gradient; blocks that nothing is made from get zeros.
        owners: for each parameter its block.
        parameter_gradients: of the parameters.
        types, rules, scales: for each parameter, as for :func:`fill`.
        dtype: of the blocks.
        device: where all of them are.
    """
    order = np.argsort(np.asarray(owners, dtype=np.int64), kind="stable")
    columns = [_column(types), _column(rules), _column(_bits(scales))]
    table = np.concatenate([_tensors(parameter_gradients), *columns], axis=1)[order]
    _check_countable(table[:, 1:6])
    bounds = np.searchsorted(np.asarray(owners)[order], np.arange(len(values) + 1))
    spans = np.stack((bounds[:-1], bounds[1:]), axis=1)
    tensors = [_tensors(values), _tensors(gradients)]
    blocks = np.concatenate([*tensors, spans], axis=1)
    _check_countable(blocks[:, 1:6])
    heights, widths = _extents(blocks[:, 1:6])
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        blocks_on_device, table_on_device = _upload(blocks, device), _upload(table, device)
        for shape, parts in _parts(heights, widths, WIDE_BACKWARD, TALL_BACKWARD):
            sum_part[(len(parts),)](
                blocks_on_device,
                table_on_device,
                _upload(parts, device),
                TYPE=_TYPES[dtype],
                BLOCK_FIELDS=BLOCK_FIELDS,
                FIELDS=GRADIENT_FIELDS,
                ROWS=shape[0],
                COLUMNS=shape[1],
                num_stages=1,
            )


def _tensors(infos: Sequence[TensorInfo]) -> np.ndarray:
    return np.asarray(infos, dtype=np.int64).reshape(-1, _TENSOR.value)


def _column(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)[:, None]


def _bits(scales: Sequence[float]) -> np.ndarray:
    return np.asarray(scales, dtype=np.float32).view(np.int32)


def _extents(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of tensors of these sizes: output channels, and all that is behind them."""
    return sizes[:, 0], sizes[:, 1:].prod(axis=1)


def _check_countable(sizes: np.ndarray) -> None:
    largest = max(int(extent.max(initial=0)) for extent in _extents(sizes))
    if largest > _LARGEST:
        raise ValueError(
            f"a tensor of {largest} rows, or elements in a row, is too large for the Triton "
            f"kernels, which count to {_LARGEST}; pass backend='reference'"
        )


def _parts(
    heights: np.ndarray, widths: np.ndarray, wide: tuple[int, int], tall: tuple[int, int]
) -> list[tuple[tuple[int, int], np.ndarray]]:
    """The parts that tensors are divided into, by the shape of the parts: (programs, 2) int32."""
    launches = []
    for shape, chosen in ((wide, widths > _SHORT), (tall, widths <= _SHORT)):
        counts = -(-heights // shape[0]) * -(-widths // shape[1]) * chosen
        if counts.any():
            numbers = np.repeat(np.arange(len(counts)), counts)
            firsts = np.repeat(np.cumsum(counts) - counts, counts)
            parts = np.stack((numbers, np.arange(len(numbers)) - firsts), axis=1)
            launches.append((shape, parts.astype(np.int32)))
    return launches


def _upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device, which the host does not wait for."""
    return to_device(torch.from_numpy(np.ascontiguousarray(array)), device)
