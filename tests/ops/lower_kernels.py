"""Compiles the Triton kernels for GPUs that need not be there, and prints what came out as JSON.

Run in a process of its own, without Triton's interpreter: python lower_kernels.py 80 90

Another Triton than the environment's may come first: with the oldest that is supported, what
PyTorch 2.6 brings, this prints the same for the GPUs that it knows:

    pip install --no-deps --target OLD triton==3.2.0
    PYTHONPATH=OLD:. python lower_kernels.py 75 80 90
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ghn_fast.kernels import tile
from ghn_fast.kernels.gated_gnn import passes, schedule
from ghn_fast.kernels.gated_gnn.widths import Widths

POINTERS = {
    **dict.fromkeys(("distances", "heard", "hearers"), "*u8"),
    **dict.fromkeys(("node_offsets", "ends", "reaches", "lowest", "highest", "parts"), "*i32"),
    **dict.fromkeys(("matrix_offsets", "keys", "order", "table", "blocks"), "*i64"),
}
WEIGHTS = re.compile(r"(w|b)(1|2|_ih)(_ve)?")

Kernel = tuple[str, Any, dict[str, Any], str]


def kernels() -> Iterator[Kernel]:
    """Name, kernel, constants and dtype of weights, as the launches choose them."""
    for block in (512, 4096):
        yield (
            f"find_levels {block}",
            schedule.find_levels,
            {"BLOCK": block, "num_warps": schedule.warps_of(block), "num_stages": 1},
            "*fp32",
        )
    sizes = {"ROWS": schedule.SORT_ROWS, "COLUMNS": schedule.SORT_COLUMNS, "num_stages": 1}
    yield "sort_distances", schedule.sort_distances, sizes, "*fp32"
    for hid, width, width_ve, dtype in (
        (32, 16, 16, "*fp32"),
        (32, 32, 0, "*bf16"),
        (384, 192, 192, "*fp32"),
    ):
        widths = Widths(hid, width, width_ve)
        for kernel, ascending in ((passes.forward_pass, True), (passes.backward_pass, False)):
            name = f"{kernel.__name__} {hid} {width_ve} {dtype}"
            yield name, kernel, widths.options(ascending), dtype
    for kernel, shapes, fields in (
        (tile.fill_part, (tile.WIDE, tile.TALL), {"FIELDS": tile.FILL_FIELDS}),
        (
            tile.sum_part,
            (tile.WIDE_BACKWARD, tile.TALL_BACKWARD),
            {"FIELDS": tile.GRADIENT_FIELDS, "BLOCK_FIELDS": tile.BLOCK_FIELDS},
        ),
    ):
        for rows, columns in shapes:
            constants = {"TYPE": tl.float32, "ROWS": rows, "COLUMNS": columns, "num_stages": 1}
            yield f"{kernel.__name__} {rows} {columns}", kernel, {**constants, **fields}, "*fp32"


def lower(architecture: int, kernel: Any, constants: dict[str, Any], dtype: str) -> dict[str, Any]:
    constants = dict(constants)
    options = {
        name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants
    }
    signature = {
        name: dtype if WEIGHTS.fullmatch(name) else POINTERS.get(name, "*fp32")
        for name in kernel.arg_names
    }
    source = _source(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = compiled.asm["ptx"]
    return {
        "bytes": len(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "barriers": len(re.findall(r"\bbar(rier)?\.", ptx)),
        # What would break the reading of values that the same program has written, or float32.
        "forbidden": sorted(set(re.findall(r"ld\.global\S*\.nc\S*|cp\.async\S*|\S*tf32\S*", ptx))),
    }


def _source(kernel: Any, signature: dict[str, str], constants: dict[str, Any]) -> ASTSource:
    if "constexprs" in inspect.signature(ASTSource).parameters:
        whole = {**signature, **dict.fromkeys(constants, "constexpr")}
        return ASTSource(fn=kernel, signature=whole, constexprs=constants)
    return ASTSource(fn=kernel, signature=signature, constants=constants)  # before Triton 3.3


def main() -> None:
    lowered = {
        f"sm_{architecture} {name}": lower(int(architecture), *rest)
        for architecture in sys.argv[1:]
        for name, *rest in kernels()
    }
    print(json.dumps({"triton": triton.__version__, "lowered": lowered}))


if __name__ == "__main__":
    main()
