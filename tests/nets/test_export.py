"""Exported files: complete, in the published format, and resumable at any moment."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ghn_fast.nets import DeepNets1M, export_nets, graph_of, sample_net_args
from ghn_fast.nets.published.export import PartialExportError, _Exporter
from ghn_fast.ops.shortest_paths import shortest_paths


class Interrupt(Exception):
    pass


def interrupt_after(networks: int) -> Any:
    def on_progress(done: int, total: int) -> None:
        if networks <= done < total:
            raise Interrupt

    return on_progress


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.nets.published.export.CHUNK_NETWORKS", 4)


@pytest.mark.parametrize("split", ["train", "search"])
def test_files_of_one_split(split: str, tmp_path: Path) -> None:
    paths = export_nets(tmp_path / "nets", {split: range(5, 12)}, seed=3, workers=2)
    assert sorted((tmp_path / "nets").iterdir()) == sorted(paths)
    nets = DeepNets1M(split, nets_dir=tmp_path / "nets")
    assert len(nets) == 7
    for index, graph in enumerate(nets):
        assert graph.net_args is not None
        drawn = sample_net_args(split, 3, 5 + index)
        changed = {"C", "fc_dim"} if split == "train" else {}
        assert {k: v for k, v in graph.net_args.items() if k not in changed} == {
            k: v for k, v in drawn.items() if k not in changed
        }
        ours = graph_of(graph.net_args)
        assert graph.nodes == ours.nodes
        assert graph.digest() == ours.digest()
        assert graph.unused.keys() == ours.unused.keys()


def test_evaluation_file(tmp_path: Path, small_chunks: None) -> None:
    seen = []
    splits = {"val": range(5), "wide": range(3), "dense": range(6), "bnfree": range(1)}
    export_nets(tmp_path, splits, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 15)
    assert seen[-1] == (15, 15)
    assert len(seen) > 6
    for split, indices in splits.items():
        for large in (False, True):
            published = DeepNets1M(split, nets_dir=tmp_path, large_images=large)
            sampled = DeepNets1M(split, large_images=large)
            assert len(published) == len(indices)
            for index in indices:
                assert published[index].digest() == sampled[index].digest()
                assert published.net_args(index) == sampled.net_args(index)


def test_all_indices_that_there_are(tmp_path: Path, small_chunks: None) -> None:
    with pytest.raises(Interrupt):
        export_nets(tmp_path, {"val": range(2**64)}, on_progress=interrupt_after(1))
    assert (tmp_path / "deepnets1m_eval.hdf5.partial").exists()


def test_stored_arrays(tmp_path: Path) -> None:
    path, meta_path = export_nets(tmp_path, {"deep": range(2)})
    meta = json.loads(meta_path.read_text())["deep"]
    with h5py.File(path) as file:
        assert file["deep"].attrs["seed"] == 0
        for index in range(2):
            graph = graph_of(sample_net_args("deep", 0, index))
            distances = shortest_paths(graph.num_nodes, graph.edges, 250)
            adjacency, rows = file[f"deep/{index}/adj"], file[f"deep/{index}/nodes"]
            assert (adjacency.dtype, rows.dtype) == ("uint8", "uint16")
            assert (adjacency[()] == distances.numpy()).all()
            assert meta["nets"][index]["num_nodes"] == graph.num_nodes
            primitives, names = meta["meta"]["primitives_ext"], meta["meta"]["unique_op_names"]
            cells = []
            for (primitive, cell, name), node in zip(rows[()].tolist(), graph.nodes, strict=True):
                pointwise = node.shape is not None and all(size == 1 for size in node.shape[2:])
                expected = "conv_1x1" if node.type == "conv" and pointwise else node.type
                assert primitives[str(primitive)] == expected
                stored = names[str(name)]
                assert node.name in (stored, f"cells.{cell}.{stored}")
                cells.append(cell)
            assert cells[0] == 0
            assert cells[-3:] == [meta["nets"][index]["n_cells"] - 1] * 3


def test_resumes_to_the_same_file(tmp_path: Path, small_chunks: None) -> None:
    splits = {"val": range(6), "test": range(9)}
    for stop in (0, 4, 10):
        with pytest.raises(Interrupt):
            export_nets(tmp_path / "resumed", splits, on_progress=interrupt_after(stop))
        with pytest.raises(FileNotFoundError):
            DeepNets1M("val", nets_dir=tmp_path / "resumed")
    seen = []
    resumed = export_nets(
        tmp_path / "resumed", splits, on_progress=lambda done, _: seen.append(done)
    )
    assert seen[0] >= 10
    at_once = export_nets(tmp_path / "at_once", splits)
    assert resumed[1].read_bytes() == at_once[1].read_bytes()
    for split in splits:
        pairs = [DeepNets1M(split, nets_dir=path[0].parent) for path in (resumed, at_once)]
        assert [a.digest() for a in pairs[0]] == [b.digest() for b in pairs[1]]


SCRIPT = """
import sys
from ghn_fast.nets.published import export
export.CHUNK_NETWORKS = 60
export.export_nets(sys.argv[1], {"train": range(600)})
"""


def test_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed at any moment leaves a file that can be continued."""
    monkeypatch.setattr("ghn_fast.nets.published.export.CHUNK_NETWORKS", 60)
    partial = tmp_path / "deepnets1m_train.hdf5.partial"
    for grown in (400_000, 1_200_000):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=tmp_path)
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.stat().st_size < grown:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    seen = []
    export_nets(tmp_path, {"train": range(600)}, on_progress=lambda done, _: seen.append(done))
    assert 0 < seen[0] < 600
    nets = DeepNets1M("train", nets_dir=tmp_path)
    for index in range(0, 600, 24):
        graph = nets[index]
        assert graph.net_args is not None
        assert graph.digest() == graph_of(graph.net_args).digest()


def test_file_shorter_than_it_says(tmp_path: Path, small_chunks: None) -> None:
    """As a process leaves it that is killed after HDF5 cut off what was reserved only."""
    with pytest.raises(Interrupt):
        export_nets(tmp_path, {"train": range(9)}, on_progress=interrupt_after(1))
    partial = tmp_path / "deepnets1m_train.hdf5.partial"
    with h5py.File(partial, "r+", libver=("v110", "v110")) as file:
        file["train/8/nodes"] = np.zeros(1500, np.uint8)
    content = partial.read_bytes()
    partial.write_bytes(content.rstrip(b"\0"))
    assert len(content) - partial.stat().st_size >= 1500
    with pytest.raises(OSError, match="truncated file"):
        h5py.File(partial)
    seen = []
    export_nets(tmp_path, {"train": range(9)}, on_progress=lambda done, _: seen.append(done))
    assert 0 < seen[0] < 9
    graph = DeepNets1M("train", nets_dir=tmp_path)[8]
    assert graph.net_args is not None
    assert graph.digest() == graph_of(graph.net_args).digest()


@pytest.mark.parametrize("can_reserve", [True, False])
def test_a_full_disk_keeps_what_is_complete(
    tmp_path: Path,
    small_chunks: None,
    full_disk: Callable[[int], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    can_reserve: bool,
) -> None:
    """HDF5 makes a RuntimeError of it, as of a damaged file."""
    if not can_reserve:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    splits = {"val": range(20)}
    with pytest.raises(Interrupt):
        export_nets(tmp_path, splits, on_progress=interrupt_after(4))
    partial = tmp_path / "deepnets1m_eval.hdf5.partial"
    progress = tmp_path / "deepnets1m_eval_progress.json.partial"
    kept = progress.read_bytes()
    for _ in range(2):
        size = partial.stat().st_size + 1000
        with full_disk(size), pytest.raises(OSError, match=r"too large: '.*\.partial'") as caught:
            export_nets(tmp_path, splits)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(partial))
        assert progress.read_bytes() == kept
        if not can_reserve:  # HDF5 may leave a file that nothing opens
            return
    seen = []
    export_nets(tmp_path, splits, on_progress=lambda done, _: seen.append(done))
    assert seen[0] == 4
    assert [net.digest() for net in DeepNets1M("val", nets_dir=tmp_path)] == [
        net.digest() for net in DeepNets1M("val", num_nets=20)
    ]


def test_what_another_process_has_finished_meanwhile_stays(tmp_path: Path) -> None:
    late = _Exporter(tmp_path, {"val": range(2)}, seed=0, workers=1)
    paths = export_nets(tmp_path, {"val": range(3)})
    with pytest.raises(FileExistsError, match="exists already"):
        late.run(lambda done, total: None)
    assert {*tmp_path.iterdir()} == {*paths}
    assert len(DeepNets1M("val", nets_dir=tmp_path)) == 3


def test_one_process_at_a_time(tmp_path: Path, small_chunks: None) -> None:
    def export_again(done: int, total: int) -> None:
        with pytest.raises(PartialExportError, match="another process is writing"):
            export_nets(tmp_path, {"val": range(9)})

    export_nets(tmp_path, {"val": range(9)}, on_progress=export_again)
    assert len(DeepNets1M("val", nets_dir=tmp_path)) == 9


def test_refusals(tmp_path: Path, small_chunks: None) -> None:
    for splits, message in (
        ({}, "cannot export nothing"),
        ({"predefined": range(2)}, "cannot export predefined"),
        ({"train": range(2), "val": range(2)}, "do not belong into one file"),
        ({"train": range(0)}, "no networks to export"),
        ({"train": range(2**64 - 1, 2**64 + 1)}, "index must be from 0 to"),
    ):
        with pytest.raises(ValueError, match=message):
            export_nets(tmp_path, splits)
    with pytest.raises(Interrupt):
        export_nets(tmp_path, {"train": range(9)}, on_progress=interrupt_after(1))
    with pytest.raises(PartialExportError, match="belongs to an export of other networks"):
        export_nets(tmp_path, {"train": range(9)}, seed=1)
    partial = tmp_path / "deepnets1m_train.hdf5.partial"
    content = partial.read_bytes()
    partial.write_bytes(content[:200])
    with pytest.raises(PartialExportError, match=r"cannot be opened: .*; remove deepnets1m_train"):
        export_nets(tmp_path, {"train": range(9)})
    partial.unlink()
    with pytest.raises(PartialExportError, match="is incomplete; remove"):
        export_nets(tmp_path, {"train": range(9)})
    partial.write_bytes(content)
    export_nets(tmp_path, {"train": range(9)})
    with pytest.raises(FileExistsError, match="exists already"):
        export_nets(tmp_path, {"train": range(9)})


def test_public_reader(tmp_path: Path) -> None:
    """The public code reads the same graphs, with each distance at the right node."""
    loader = pytest.importorskip("ppuda.deepnets1m.loader")
    export_nets(tmp_path, {"test": range(4)})
    nets = loader.DeepNets1M(split="test", nets_dir=str(tmp_path), virtual_edges=50)
    for index in range(4):
        theirs, ours = nets[index], DeepNets1M("test")[index]
        assert theirs.node_feat[:, 0].tolist() == ours.node_types.tolist()
        assert (theirs._Adj.numpy() == ours.distances.numpy()).all()
        assert theirs.net_args["C"] == ours.net_args["C"]
        weights = [info for cell in theirs.node_info for info in cell]
        assert {(place, name) for place, name, *_ in weights if "pool" not in name} == {
            (place, node.name) for place, node in enumerate(ours.nodes) if node.parameter
        }
        assert weights[-2][4]
        assert weights[-1][5]
