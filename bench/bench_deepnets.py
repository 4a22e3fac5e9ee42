"""DeepNets-1M: architectures a second, as arguments, graphs with distances, modules and files.

Every benchmark notes `architectures/s`, and where it writes arrays `bytes/architecture` and `GB/s`;
`bench_copy_of_the_output` copies as many bytes: the time that writing the same output takes at the
speed of memory.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghn_fast._core import core
from ghn_fast.nets import (
    DeepNets1M,
    MetaBatches,
    build_ghost,
    export_nets,
    graph_of,
    sample_net_args,
)

COUNT = 2000
SPLITS = ("train", "deep", "dense")
THREADS = tuple(n for n in (1, 2, 4, 8, 16, 32) if n <= (os.cpu_count() or 1))


def note(benchmark: Any, count: int, arrays: tuple[np.ndarray, ...] = ()) -> None:
    """Notes what was made in a round: so many architectures, these arrays."""
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    written = sum(array.nbytes for array in arrays)
    if seconds:
        benchmark.extra_info["architectures/s"] = round(count / seconds, 1)
        if arrays:
            benchmark.extra_info["GB/s"] = round(written / seconds / 1e9, 2)
    if arrays:
        benchmark.extra_info["bytes/architecture"] = written // count


def make(split: str, count: int, threads: int) -> tuple[np.ndarray, ...]:
    arrays: tuple[np.ndarray, ...] = core.deepnets_batch(
        split, 0, range(count), 10, False, 50, False, threads
    )
    return arrays


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("threads", THREADS)
def bench_graphs_with_distances(benchmark: Any, split: str, threads: int) -> None:
    benchmark.group = f"graphs of {split}"
    arrays = benchmark.pedantic(make, (split, COUNT, threads), rounds=5, warmup_rounds=1)
    note(benchmark, COUNT, arrays)


@pytest.mark.parametrize("split", SPLITS)
def bench_copy_of_the_output(benchmark: Any, split: str) -> None:
    benchmark.group = f"graphs of {split}"
    arrays = make(split, COUNT, 1)
    benchmark.pedantic(lambda: [array.copy() for array in arrays], rounds=5, warmup_rounds=1)
    note(benchmark, COUNT, arrays)


@pytest.mark.parametrize("split", SPLITS)
def bench_parameters_multiply_adds_and_depth(benchmark: Any, split: str) -> None:
    benchmark.group = f"graphs of {split}"
    benchmark.pedantic(
        core.deepnets_measures, (split, 0, range(COUNT), 10, False, 1), rounds=5, warmup_rounds=1
    )
    note(benchmark, COUNT)


def bench_arguments(benchmark: Any) -> None:
    benchmark.group = "arguments"
    benchmark.pedantic(
        lambda: [sample_net_args("train", 0, index) for index in range(500)],
        rounds=5,
        warmup_rounds=1,
    )
    note(benchmark, 500)


def bench_graph_objects(benchmark: Any) -> None:
    benchmark.group = "objects"
    arguments = [sample_net_args("train", 0, index) for index in range(200)]
    benchmark.pedantic(
        lambda: [graph_of(net_args) for net_args in arguments], rounds=5, warmup_rounds=1
    )
    note(benchmark, 200)


def bench_ghosts(benchmark: Any) -> None:
    """Networks whose parameters take no memory, as training makes them.

    ``ms for the median network`` is the median over the networks of each one's median time.
    """
    benchmark.group = "objects"
    arguments = [sample_net_args("train", 0, index) for index in range(200)]
    seconds: list[list[float]] = [[] for _ in arguments]

    def build_all() -> None:
        for net_args, times in zip(arguments, seconds, strict=True):
            start = time.perf_counter()
            build_ghost(net_args, 10, False)
            times.append(time.perf_counter() - start)

    benchmark.pedantic(build_all, rounds=5, warmup_rounds=1)
    note(benchmark, 200)
    median = statistics.median(statistics.median(times[1:] or times) for times in seconds)
    benchmark.extra_info["ms for the median network"] = round(1e3 * median, 2)


def bench_meta_batches(benchmark: Any) -> None:
    benchmark.group = "meta-batches"
    stream = MetaBatches(DeepNets1M(), meta_batch=8)
    benchmark.pedantic(
        lambda: [stream.batch(step) for step in range(50)], rounds=5, warmup_rounds=1
    )
    note(benchmark, 400)


@pytest.mark.parametrize("workers", sorted({1, THREADS[-1]}))
def bench_export(benchmark: Any, workers: int, tmp_path: Path) -> None:
    benchmark.group = "files"
    pytest.importorskip("h5py")
    folders = iter(range(100))
    paths = benchmark.pedantic(
        lambda: export_nets(tmp_path / str(next(folders)), {"train": range(COUNT)}, 0, workers),
        rounds=3,
    )
    note(benchmark, COUNT)
    written = sum(path.stat().st_size for path in paths)
    benchmark.extra_info["bytes/architecture"] = written // COUNT


def bench_public_generator(benchmark: Any) -> None:
    """What the public generator does with an architecture that it accepts (needs `ppuda`)."""
    benchmark.group = "public generator"
    net = pytest.importorskip("ppuda.deepnets1m.net")
    graph = pytest.importorskip("ppuda.deepnets1m.graph")
    genotypes = pytest.importorskip("ppuda.deepnets1m.genotypes")
    arguments = []
    for index in range(20):
        net_args = {**sample_net_args("train", 0, index), "C": 32, "fc_dim": 256}
        arguments.append({**net_args, "genotype": genotypes.Genotype(*net_args["genotype"])})

    def generate() -> None:
        for net_args in arguments:
            models = [
                net.Network(num_classes=10, is_imagenet_input=large, **net_args)
                for large in (False, True)
            ]
            graph.Graph(models[0], ve_cutoff=250, list_all_nodes=True)

    benchmark.pedantic(generate, rounds=2)
    note(benchmark, len(arguments))
