"""Writing sampled networks in the published format of DeepNets-1M.

`deepnets1m_<file>.hdf5` holds `<split>/<index>/adj`, the (N, N) uint8 shortest path lengths up to
250, and `/nodes`, for each row of `adj` the numbers of its primitive, its cell and its name.
`deepnets1m_<file>_meta.json` holds the arguments of the networks and what the numbers mean. Rows
and columns are in topological order, and so are the nodes: row i is node i. (The public generator
writes nodes cell by cell, whatever their place in `adj`.)

Networks are written in chunks to files beside the final ones. After an interruption the same call
goes on after the last complete chunk.
"""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ghn_fast._core import core
from ghn_fast._system.files import lock, read_text, replace, sync, sync_folder, write_text
from ghn_fast.graph.types import NODE_TYPES
from ghn_fast.nets.generate.philox import check_item
from ghn_fast.nets.generate.sampler import (
    MIN_WIDTH,
    REFERENCE_FC_DIM,
    RULES,
    sample_net_args,
    wide_factor,
)
from ghn_fast.nets.measure.count import count_parameters
from ghn_fast.nets.published.files import ARGUMENTS, file_of, import_h5py
from ghn_fast.nets.space.genotypes import to_dict

MAX_DISTANCE = 250
"""Longer paths are 0 in the files; readers ignore those that they find too long."""
CHUNK_PAIRS = 1 << 26
"""How many distances make a chunk, about: 64 MB."""
CHUNK_NETWORKS = 2000
_END, _RESERVED = slice(28, 36), 4096
"""Where a file's first block has its length, and how much of it may be reserved only: HDF5 takes
room for what describes the content and for small arrays 2 KB at a time."""
_ROOM, _ROOM_OF_NETWORK = 16384, 1024
"""More than the bytes that HDF5 takes for a chunk beside its arrays: 2 KB, and 800 a network."""
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Errors of a disk that is full, a file that is too large and a quota that is used up."""
COMPRESSION = 1
"""Level of zlib: higher ones save a fifth of the room and take twice as long."""


class PartialExportError(ValueError):
    """Files of an unfinished export do not fit; the message names them and says what to do."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive networks of one split, made and ready to be written."""

    split: str
    start: int
    """number of the first one in the file"""
    num_nodes: np.ndarray
    rows: np.ndarray
    adjacencies: list[bytes]
    """the networks' distances, compressed"""
    lines: list[str]
    """for each network, its entry of the JSON"""


def export_nets(
    out: str | Path,
    splits: Mapping[str, range],
    seed: int = 0,
    workers: int = 1,
    on_progress: Callable[[int, int], object] | None = None,
) -> tuple[Path, Path]:
    """Writes networks of one or several splits; readers see complete files or none.

    Args:
        out: folder of the files.
        splits: the networks of each split, for example {"train": range(1_000_000)}. They are
            numbered from 0 in the file. "train" and "search" have files of their own; the others
            go to one file together.
        seed: of the networks.
        workers: threads that make networks while others are being written.
        on_progress: called with the numbers of networks written and to be written.

    Returns:
        The paths of the HDF5 and the JSON file.

    Raises:
        ValueError: splits that do not exist, do not belong into one file, or are empty; a seed or
            a number of a network out of range.
        FileExistsError: the file exists already.
        PartialExportError: an unfinished export of other networks lies there, or it is damaged.
        OSError: a file could not be written. What is complete is kept, as after an interruption.
    """
    exporter = _Exporter(Path(out), splits, seed, workers)
    return exporter.run(on_progress or (lambda done, total: None))


class _Exporter:
    def __init__(self, out: Path, splits: Mapping[str, range], seed: int, workers: int) -> None:
        _check(splits, seed)
        self.splits = splits
        self.seed = seed
        self.workers = workers
        self.total = sum(map(_count, splits.values()))
        name = file_of(next(iter(splits)))
        self.path = out / f"deepnets1m_{name}.hdf5"
        self.meta_path = out / f"deepnets1m_{name}_meta.json"
        self.partial = out / f"{self.path.name}.partial"
        self.lines = out / f"{self.meta_path.name}.partial"
        self.progress = out / f"deepnets1m_{name}_progress.json.partial"
        self._refuse_existing()
        out.mkdir(parents=True, exist_ok=True)

    def _refuse_existing(self) -> None:
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already; remove it to write it anew")

    def run(self, on_progress: Callable[[int, int], object]) -> tuple[Path, Path]:
        with self.lines.open("ab") as lines:
            try:
                lock(lines)
            except BlockingIOError:
                raise PartialExportError(f"another process is writing {self.path}") from None
            if self.path.exists():  # another one has finished it since this one was made
                self.lines.unlink(missing_ok=True)
                self._refuse_existing()
            while not self._write_all(lines, on_progress):
                warnings.warn(
                    f"{self.partial} was damaged by a process that was killed while it closed the "
                    "file; the export starts anew",
                    stacklevel=3,
                )
                self.progress.unlink()
            self._finish()
        return self.path, self.meta_path

    def _write_all(self, lines: IO[bytes], on_progress: Callable[[int, int], object]) -> bool:
        """Goes on to the end; False if what was there turns out to be damaged."""
        first, size = self._resume()
        done = first
        lines.truncate(size)
        on_progress(done, self.total)
        for chunk in self._chunks(done):
            try:
                size += self._write(chunk, lines)
            except (RuntimeError, KeyError):  # from HDF5, of what it reads
                if done == 0 or done > first:
                    raise
                return False
            done += len(chunk.lines)
            self._commit(done, size)
            on_progress(done, self.total)
        return True

    def _chunks(self, done: int) -> Iterator[Chunk]:
        """The chunks that are still to be written; each is made while the one before is used."""
        with ThreadPoolExecutor(self.workers) as compressors, ThreadPoolExecutor(1) as maker:
            parts = self._parts(done)
            made: Future[Chunk] | None = None
            for part in parts:
                coming = maker.submit(self._make, compressors, *part)
                if made is not None:
                    yield made.result()
                made = coming
            if made is not None:
                yield made.result()

    def _parts(self, done: int) -> Iterator[tuple[str, int, int]]:
        """Split, first and last + 1 number in the file of the chunks that are still to be made."""
        before = 0
        for split, indices in self.splits.items():
            start = max(done - before, 0)
            while start < _count(indices):
                size = self._chunk_size(split, indices[start])
                stop = min(start + size, _count(indices))
                yield split, start, stop
                start = stop
            before += _count(indices)

    def _chunk_size(self, split: str, index: int) -> int:
        sample = core.deepnets_batch(
            split, self.seed, range(index, index + 8), 10, False, MAX_DISTANCE, False, 1
        )
        return max(1, min(CHUNK_NETWORKS, 8 * CHUNK_PAIRS // int((sample[0] ** 2).sum())))

    def _make(self, compressors: Executor, split: str, start: int, stop: int) -> Chunk:
        indices = self.splits[split][start:stop]
        num_nodes, _, _, _, _, distances, rows = core.deepnets_batch(
            split, self.seed, indices, 10, False, MAX_DISTANCE, True, self.workers
        )
        ends = np.cumsum(num_nodes**2)
        parts = (distances[b:e] for b, e in zip(ends - num_nodes**2, ends, strict=True))
        adjacencies = list(compressors.map(_compressed, parts))
        lines = [
            json.dumps(self._entry(split, index, int(nodes)))
            for index, nodes in zip(indices, num_nodes, strict=True)
        ]
        return Chunk(split, start, num_nodes, rows, adjacencies, lines)

    def _entry(self, split: str, index: int, num_nodes: int) -> dict[str, Any]:
        """What the JSON says of a network; widths of "train" are drawn by its readers."""
        net_args = sample_net_args(split, self.seed, index)
        reference = {**net_args, "C": MIN_WIDTH, "fc_dim": REFERENCE_FC_DIM}
        entry = {name: reference[name] for name in ARGUMENTS}
        entry["genotype"] = to_dict(net_args["genotype"])
        if split != "train":
            # Readers multiply the widths of "wide".
            entry["C"] = net_args["C"] // (wide_factor(False) if split == "wide" else 1)
        entry["num_nodes"] = num_nodes
        entry["num_params"] = {
            data: count_parameters(reference, 10, data == "imagenet")
            for data in ("cifar10", "imagenet")
        }
        return entry

    def _write(self, chunk: Chunk, lines: IO[bytes]) -> int:
        """Writes a chunk to the disk; returns the length of its JSON."""
        text = "".join(line + "\n" for line in chunk.lines).encode()
        with _failures_of_system(self.partial):
            with self._open(_room(chunk)) as file:
                group = file[chunk.split]
                ends = np.cumsum(chunk.num_nodes)
                for i, count in enumerate(chunk.num_nodes.tolist()):
                    rows = chunk.rows[ends[i] - count : ends[i]]
                    _write_network(group, str(chunk.start + i), rows, chunk.adjacencies[i])
            sync(self.partial)
        with _failures_of_system(self.lines):
            lines.write(text)
            lines.flush()
            os.fsync(lines.fileno())
        return len(text)

    def _create(self) -> None:
        """An empty file."""
        # Files that begin with a newer version's block cannot be opened again after a crash.
        h5py = import_h5py()
        with (
            _failures_of_system(self.partial),
            h5py.File(self.partial, "w", libver=("v108", "v108")) as file,
        ):
            file.attrs["title"] = "DeepNets-1M"
            for split, indices in self.splits.items():
                group = file.create_group(split)
                group.attrs["seed"] = np.uint64(self.seed)
                group.attrs["first"] = np.uint64(indices.start)

    def _open(self, room: int) -> Any:
        h5py = import_h5py()
        try:
            self._prepare(room)
            # Since 1.10 a data set of one chunk takes little more room than the chunk.
            file = h5py.File(self.partial, "r+", libver=("v110", "v110"))
        except OSError as error:
            if error.errno is not None:
                raise
            raise PartialExportError(
                f"{self.partial} cannot be opened: {error}; {self._start_anew()}"
            ) from None
        # What describes the file's content stays in memory until the chunk is complete: a process
        # that is killed leaves the file as it was.
        config = file.id.get_mdc_config()
        config.evictions_enabled = False
        config.incr_mode = config.decr_mode = config.flash_incr_mode = 0
        file.id.set_mdc_config(config)
        return file

    def _prepare(self, room: int) -> None:
        """Makes the file as long as it says, and reserves room behind its end.

        Closing a file, HDF5 cuts off what is reserved only, then writes the length into the first
        block: a process killed between the two leaves a file that nothing opens. So does HDF5 that
        finds the disk full.
        """
        with self.partial.open("r+b") as file:
            end = int.from_bytes(file.read(_END.stop)[_END], "little")
            length = file.seek(0, os.SEEK_END)
            if 0 < end - length <= _RESERVED:
                length = file.truncate(end)
            if length < end or not hasattr(os, "posix_fallocate"):
                return
            try:
                os.posix_fallocate(file.fileno(), end, room)
            except OSError as error:
                file.truncate(length)
                if error.errno in _FULL:  # and not of a file system that cannot reserve
                    raise

    # Progress.

    def _settings(self) -> dict[str, Any]:
        splits = {name: [r.start, r.stop] for name, r in self.splits.items()}
        return {"seed": self.seed, "splits": splits}

    def _resume(self) -> tuple[int, int]:
        """How many networks are complete, and the length of their JSON; makes empty files."""
        if not self.progress.exists():
            self._create()
            self._commit(0, 0)
        state = json.loads(read_text(self.progress))
        if {name: state[name] for name in ("seed", "splits")} != self._settings():
            raise PartialExportError(
                f"{self.progress} belongs to an export of other networks (seed {state['seed']}, "
                f"{state['splits']}); finish it first, or {self._start_anew()}"
            )
        if not self.partial.exists() or self.lines.stat().st_size < state["bytes"]:
            raise PartialExportError(f"{self.partial} is incomplete; {self._start_anew()}")
        return state["done"], state["bytes"]

    def _start_anew(self) -> str:
        names = ", ".join(path.name for path in (self.partial, self.lines, self.progress))
        return f"remove {names} to start anew"

    def _commit(self, done: int, size: int) -> None:
        state = {**self._settings(), "done": done, "bytes": size}
        write_text(self.progress, json.dumps(state))

    def _finish(self) -> None:
        """The HDF5 file gets its name last: where it is, all is complete."""
        with _failures_of_system(self.meta_path):
            replace(self.meta_path, self._write_meta)
        self.partial.replace(self.path)
        sync_folder(self.path.parent)
        for path in (self.lines, self.progress):
            path.unlink()

    def _write_meta(self, path: Path) -> None:
        with (
            self.lines.open(encoding="utf-8") as lines,
            path.open("w", encoding="utf-8", newline="\n") as meta,
        ):
            for i, (split, indices) in enumerate(self.splits.items()):
                meta.write(f'{", " if i else "{"}{json.dumps(split)}: {{"nets": [')
                for k in range(_count(indices)):
                    meta.write((", " if k else "") + lines.readline().rstrip("\n"))
                meta.write(f'], "meta": {json.dumps(_numbers(split))}}}')
            meta.write("}")


@contextmanager
def _failures_of_system(path: Path) -> Iterator[None]:
    """A failed write, as to a full disk, is an OSError that names the file.

    HDF5 makes a RuntimeError of it, whose text has the number, or that of what it came from has.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        told = re.search(r"errno = ([1-9]\d*)", f"{error} {error.__context__}")
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def _check(splits: Mapping[str, range], seed: int) -> None:
    unknown = [split for split in splits if split not in RULES]
    if unknown or not splits:
        raise ValueError(
            f"cannot export {', '.join(unknown) or 'nothing'}; there are {', '.join(RULES)}"
        )
    if len({file_of(split) for split in splits}) > 1:
        raise ValueError(
            f"{', '.join(splits)} do not belong into one file: 'train' and 'search' have their own"
        )
    for split, indices in splits.items():
        if not 0 <= indices.start < indices.stop or indices.step != 1:
            raise ValueError(f"no networks to export in {indices} of split {split!r}")
        check_item(seed, indices.stop - 1)


def _count(indices: range) -> int:
    """As ``len``, which knows no more than 2**63 - 1."""
    return indices.stop - indices.start


def _numbers(split: str) -> dict[str, dict[int, str]]:
    """What the numbers in a split's `nodes` mean."""
    primitives = dict(enumerate((*NODE_TYPES, "conv_1x1")))
    names = core.deepnets_published_names(2 * RULES[split].steps[2])
    return {"primitives_ext": primitives, "unique_op_names": dict(enumerate(names))}


def _room(chunk: Chunk) -> int:
    arrays = sum(map(len, chunk.adjacencies)) + chunk.rows.nbytes
    return arrays + _ROOM + _ROOM_OF_NETWORK * len(chunk.lines)


def _compressed(distances: np.ndarray) -> bytes:
    return zlib.compress(distances.tobytes(), COMPRESSION)


def _write_network(group: Any, name: str, rows: np.ndarray, adjacency: bytes) -> None:
    """Through the low-level interface, as the other one takes several times as long."""
    from h5py import h5d, h5g, h5p, h5s, h5t

    if name in group:
        del group[name]  # left behind by an interrupted chunk
    network = h5g.create(group.id, name.encode())
    shape = (len(rows), len(rows))
    chunked = h5p.create(h5p.DATASET_CREATE)
    chunked.set_chunk(shape)
    chunked.set_deflate(COMPRESSION)
    dataset = h5d.create(network, b"adj", h5t.STD_U8LE, h5s.create_simple(shape), chunked)
    dataset.write_direct_chunk((0, 0), adjacency)
    dataset = h5d.create(network, b"nodes", h5t.STD_U16LE, h5s.create_simple(rows.shape))
    dataset.write(h5s.ALL, h5s.ALL, rows)
