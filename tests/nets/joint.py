"""Joint counts of what decides a DeepNets-1M network, in which every rule of the sampler shows.

``public_generator.json`` holds those of networks made by the public generator
(facebookresearch/ppuda 4673a42, ``experiments/net_generator.py train 10000 FOLDER``):

    python -m tests.nets.joint FOLDER/deepnets1m_train_meta.json
"""

from __future__ import annotations

import bisect
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ghn_fast.nets.space.genotypes import from_dict
from ghn_fast.nets.space.liveness import plan_network

SAVED = Path(__file__).with_name("public_generator.json")
PARAMETER_BOUNDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2, 3, 4, 5, 6, 7, 8, 9)
"""Millions of parameters at width 32."""

Net = Mapping[str, Any]
"""Arguments of a network, its genotype as a dictionary, and ``num_params`` by image data set."""


def joint_counts(nets: Iterable[Net]) -> dict[str, Counter[str]]:
    """{what: how often each combination of values occurs}."""
    tables: dict[str, Counter[str]] = {}
    for net in nets:
        for what, values in _observations(net):
            tables.setdefault(what, Counter())["/".join(map(str, values))] += 1
    return tables


def _observations(net: Net) -> Iterator[tuple[str, tuple[Any, ...]]]:
    genotype = net["genotype"]
    cells = {cell: [name for name, _ in genotype[cell]] for cell in ("normal", "reduce")}
    names = cells["normal"] + cells["reduce"]
    n_cells, steps = net["n_cells"], len(cells["normal"]) // 2
    is_vit = "msa" in names
    narrow = steps == 1 and net["C_mult"] == 1
    yield "cells and steps", (n_cells, steps)
    yield "depth and steps", (min(max(n_cells, 6), 11), steps > 2)
    if n_cells == 10:
        yield "steps of ten cells", (steps > 2,)
    yield "head", (is_vit, min(max(n_cells, 6), 11), net["glob_avg"])
    yield "layers of the head", (net["fc_layers"], net["glob_avg"])
    yield "stem", (net["stem_type"], net["stem_pool"], net["ks"])
    yield "norm", (net["norm"], min(n_cells, 6), steps)
    if n_cells <= 5 and steps <= 2:
        yield "norm of small networks", (net["norm"],)
    yield "preproc", (net["preproc"], is_vit, narrow)
    if narrow and is_vit:
        yield "preproc of narrow transformers", (net["preproc"],)
    yield "multiplier", (net["C_mult"], steps)
    yield "concat", (steps, *genotype["normal_concat"])
    yield "cut off", (plan_network(from_dict(genotype), n_cells) is None,)
    yield "same concat", (genotype["normal_concat"] == genotype["reduce_concat"],)
    yield "pooling alone", (steps, all(_is_plain(name) for name in cells["reduce"]))
    yield "convolutions and gates", (steps, any("conv" in n for n in names), "cse" in names, is_vit)
    for cell, ops in cells.items():
        large = ops.count("conv_5x5") + ops.count("conv_7x7")
        yield f"refused in {cell}", (steps, large, ops.count("cse"))
        yield f"none in {cell}", (steps, ops.count("none"))
        for position, (name, source) in enumerate(genotype[cell]):
            yield f"operations of {cell}", (steps == 1, name)
            yield f"sources of {cell}", (position, source)
    for images, parameters in net["num_params"].items():
        yield f"near the limit, {images}", (parameters > 7e6,)
        yield f"parameters, {images}", (bisect.bisect(PARAMETER_BOUNDS, parameters / 1e6),)


def _is_plain(name: str) -> bool:
    return name in ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")


def main() -> None:
    nets = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["train"]["nets"]
    tables = {what: dict(sorted(table.items())) for what, table in joint_counts(nets).items()}
    text = json.dumps({"networks": len(nets), **tables}, indent=1)
    SAVED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
