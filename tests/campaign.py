"""Damages files at random and reads them: what must never happen, and how often it was tried.

    python -m tests.campaign --seconds 60
    python -m tests.campaign --seconds 60 --atheris

The first changes good files of every format that is read, by one to four changes each, all of them
functions of a seed. The second lets libFuzzer choose the changes by what they reach in the readers
(needs the package atheris). Of every file that comes of it the reader has to give what was in the
good one, other values (only where the format has no checksum), or one error of one line that names
the file, in seconds and within 4 GB. A process that ends otherwise is a finding, and its input is
kept. The figures are in docs/reliability.md, and so is the table of tests/bad_files.py and
tests/bad_data.py, which ``--table`` prints.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import multiprocessing
import os
import pickle
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

from ghn_fast.checkpoint import CheckpointError, load, load_ghn
from ghn_fast.checkpoint.tensor_pickle import load_tensor_pickle
from ghn_fast.data import DataError, ImageSource, load_images
from ghn_fast.data.cifar10 import _read_batch
from tests import bad_data, bad_files

MEMORY = 4 * 2**30
SLOW = 20.0
"""Seconds for one file: far more than the worst takes, on a machine with other work."""


@dataclass(frozen=True)
class Reader:
    """A way from bytes to values.

    Attributes:
        good: a file that it reads.
        read: a path to tensors.
        error: the only exception that it may raise.
        has_checksum: whether values that differ from the good file's are a finding.
    """

    good: Callable[[], bytes]
    read: Callable[[Path], list[torch.Tensor]]
    error: type[Exception] = CheckpointError
    has_checksum: bool = False


def _of_ghn(path: Path) -> list[torch.Tensor]:
    return list(load(path)[1].values())


def _of_run(path: Path) -> list[torch.Tensor]:
    return list(load_tensor_pickle(path)["ghn"].values())


def _of_batch(path: Path) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(part)) for part in _read_batch(path)]


def _of_parquet(path: Path) -> list[torch.Tensor]:
    folder = path.parent / "parquet"
    folder.mkdir(exist_ok=True)
    path.replace(folder / "train-0.parquet")
    found = load_images(folder)
    return [found.batch(torch.arange(len(found))), found.labels]


def _of_arrow(path: Path) -> list[torch.Tensor]:
    folder = path.parent / "arrow"
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text("{}")
    path.replace(folder / "data-0.arrow")
    found = load_images(folder)
    return [found.batch(torch.arange(len(found))), found.labels]


def _run() -> bytes:
    torch.manual_seed(0)
    ghn = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(ghn.parameters())
    ghn(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    state = {"ghn": ghn.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
    torch.save(state, file)
    return file.getvalue()


def _batch() -> bytes:
    content = {"data": np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072), "labels": [3, 4]}
    return pickle.dumps(content, protocol=2)


def _parquet() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        bad_data.parquet()(Path(folder))
        return (Path(folder) / "train-0.parquet").read_bytes()


def _arrow(**options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        bad_data.arrow(**options)(Path(folder))
        return (Path(folder) / "data-0.arrow").read_bytes()


def _pickled() -> bytes:
    return pickle.dumps(bad_files.state(), protocol=4)


READERS = {
    "torch.save": Reader(bad_files.saved, _of_ghn, has_checksum=True),
    "torch.save before its zip format": Reader(
        lambda: bad_files.saved(_use_new_zipfile_serialization=False), _of_ghn
    ),
    "joblib": Reader(_pickled, _of_ghn),
    "joblib, gzip": Reader(lambda: gzip.compress(_pickled(), mtime=0), _of_ghn, has_checksum=True),
    "joblib, bz2": Reader(lambda: bz2.compress(_pickled()), _of_ghn, has_checksum=True),
    "joblib, xz": Reader(lambda: lzma.compress(_pickled()), _of_ghn, has_checksum=True),
    "safetensors": Reader(bad_files.safetensors, _of_ghn),
    "checkpoint of a run": Reader(_run, _of_run, has_checksum=True),
    "batch of CIFAR-10": Reader(_batch, _of_batch, DataError),
    "Parquet": Reader(_parquet, _of_parquet, DataError),
    "Arrow": Reader(_arrow, _of_arrow, DataError),
    "Arrow, zstd": Reader(lambda: _arrow(compression="zstd"), _of_arrow, DataError),
}


def damaged(good: bytes, random: np.random.Generator) -> bytes:
    """A file with one to four changes, half of them near its beginning or its end."""
    content = bytearray(good)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(len(content) + 1))
        if random.random() < 0.5:
            place = int(random.choice([place % 2048, len(content) - 1 - place % 2048]))
        place = min(max(place, 0), max(len(content) - 1, 0))
        length = int(random.integers(1, 64))
        kind = random.integers(7)
        if kind == 0 and content:
            content[place] ^= 1 << int(random.integers(8))
        elif kind == 1 and content:
            content[place] = int(random.integers(256))
        elif kind == 2:
            number = int(random.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
            content[place : place + 4] = number.to_bytes(4, "little")
        elif kind == 3:
            number = int(random.choice([2**40, 2**61 - 1, 2**63 - 1, 2**63]))
            content[place : place + 8] = number.to_bytes(8, "little")
        elif kind == 4:
            del content[place : place + length]
        elif kind == 5:
            content[place:place] = content[place : place + length] * int(random.integers(1, 9))
        else:
            content = content[:place] if random.random() < 0.2 else content
            content[place : place + length] = random.bytes(length)
    return bytes(content)


class Judge:
    """Reads files and counts what came of them."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader = reader
        self.path = folder / "file"
        self.counts: Counter[str] = Counter()
        self.path.write_bytes(reader.good())
        self.wanted = reader.read(self.path)

    def __call__(self, content: bytes) -> None:
        self.path.write_bytes(content)
        start = time.perf_counter()
        try:
            outcome = self._compared(self.reader.read(self.path))
        except self.reader.error as error:
            outcome = "refused"
            message = str(error)
            assert message.isprintable(), message
            assert len(message) < 700, message
            assert str(self.path.parent) in message, message
        assert time.perf_counter() - start < SLOW, "it took too long"
        self.counts[outcome] += 1

    def _compared(self, found: list[torch.Tensor]) -> str:
        if len(found) == len(self.wanted) and all(map(torch.equal, found, self.wanted)):
            return "read right"
        assert not self.reader.has_checksum, "it was read wrongly"
        return "read with other values"


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)


def _mutate(name: str, seconds: float, seed: int, folder: Path, results: Any) -> None:
    _limited()
    judge = Judge(READERS[name], folder)
    good, end, number = READERS[name].good(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        content = damaged(good, np.random.default_rng([seed, number]))
        (folder / "kept").write_bytes(content)
        judge(content)
        number += 1
    results.put(judge.counts)


def _fuzz(name: str, seconds: float, seed: int, folder: Path, results: Any) -> None:
    """libFuzzer ends the process itself, so the counts are put into a file on the way."""
    import atheris

    _limited()
    judge = Judge(READERS[name], folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(READERS[name].good())

    def one(content: bytes) -> None:
        judge(content)
        if sum(judge.counts.values()) % 20 == 0:
            (folder / "counts").write_text(repr(dict(judge.counts)))

    for function in _traced():
        atheris.instrument_func(function)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-max_len=200000"]
    options += [f"-artifact_prefix={folder}/", "-rss_limit_mb=4096", "-timeout=20", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _traced() -> Iterator[Callable[..., Any]]:
    """The functions whose branches guide libFuzzer."""
    from ghn_fast._system import plain_pickle
    from ghn_fast.checkpoint import files, tensor_pickle
    from ghn_fast.ghn import published

    for module in (plain_pickle, tensor_pickle, files, published):
        kinds = [value for value in vars(module).values() if isinstance(value, type)]
        for owner in (module, *(kind for kind in kinds if kind.__module__ == module.__name__)):
            yield from (value for value in vars(owner).values() if isinstance(value, FunctionType))


def campaign(
    seconds: float, seed: int = 0, fuzz: bool = False, names: list[str] | None = None
) -> dict[str, Counter[str]]:
    """Tries every reader for so long, each in a process of its own.

    Returns:
        Of each reader how often each outcome was. A finding is an outcome of its own.
    """
    context = multiprocessing.get_context("spawn")
    counts = {}
    for name in names or READERS:
        with tempfile.TemporaryDirectory() as folder:
            results = context.Queue()
            arguments = (name, seconds, seed, Path(folder), results)
            child = context.Process(target=_fuzz if fuzz else _mutate, args=arguments)
            child.start()
            child.join()
            counts[name] = _collected(Path(folder), results, child.exitcode, name)
    return counts


def _collected(folder: Path, results: Any, code: int | None, name: str) -> Counter[str]:
    if code == 0 and not (folder / "counts").exists():
        found: Counter[str] = results.get()
        return found
    written = folder / "counts"
    counts = Counter(eval(written.read_text(), {}) if written.exists() else {})
    artifacts = [*folder.glob("crash-*"), *folder.glob("timeout-*"), *folder.glob("oom-*")]
    if code != 0:
        counts["finding"] += 1
        kept = Path(tempfile.mkdtemp()) / re.sub(r"\W", "-", name)
        for file in artifacts or [folder / "kept"]:
            kept.write_bytes(file.read_bytes())
        print(f"{name}: the process ended with {code}; its input is {kept}", file=sys.stderr)
    return counts


def table() -> list[tuple[str, str]]:
    """Every bad input of the tests with the message that it gets."""
    rows = []
    with tempfile.TemporaryDirectory() as top:
        for number, name in enumerate(bad_files.CHECKPOINTS):
            folder = Path(top) / str(number)
            folder.mkdir()
            path = bad_files.write(name, folder)
            rows.append((name, _message(load_ghn, path, "bad.pt")))
        for number, (name, (write, _)) in enumerate(bad_data.DATA.items()):
            folder = Path(top) / f"data{number}"
            folder.mkdir()
            write(folder)
            rows.append((name, _message(_of_any_split, folder, "bad")))
    return rows


def _of_any_split(folder: Path) -> list[ImageSource]:
    return [load_images(folder, split) for split in ("train", "val", "test")]


def _message(read: Callable[[Path], object], path: Path, shown: str) -> str:
    try:
        read(path)
    except (CheckpointError, DataError) as error:
        message = str(error).replace(str(path), shown)
        return message if len(message) < 200 else f"{message[:150]} ... {message[-40:]}"
    raise AssertionError("it was read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="let libFuzzer choose the changes")
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--table", action="store_true", help="print the table of bad inputs")
    options = parser.parse_args()
    if options.table:
        for name, message in table():
            escaped = message.replace("|", "\\|").replace("<", "&lt;")
            print(f"| {name} | {escaped} |")
        return
    outcomes = ("refused", "read right", "read with other values", "finding")
    print(f"| format | files | {' | '.join(outcomes)} |\n| --- |{' ---: |' * 5}")
    found = campaign(options.seconds, options.seed, options.atheris, options.reader)
    for name, counts in found.items():
        numbers = " | ".join(f"{counts[outcome]:,}" for outcome in outcomes)
        print(f"| {name} | {sum(counts.values()):,} | {numbers} |")
    if any(counts["finding"] for counts in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main()
