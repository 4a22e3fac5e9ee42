"""Results of an evaluation, and the file that they are kept in while it goes on."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_type_hints

import torch

from ghn_fast._system.digests import content, state_digest
from ghn_fast._system.errors import shown
from ghn_fast._system.files import append_line, read_text, write_text
from ghn_fast._system.processes import Processes
from ghn_fast._system.typed import is_of
from ghn_fast.data import ImageSource
from ghn_fast.evaluation.errors import EvaluationError
from ghn_fast.ghn import GHN

DIGEST_IMAGES = 64
"""Evenly spaced images whose pixels tell one set of images from another."""


class Keyed(Protocol):
    """What was found for a network: a dataclass of what JSON has."""

    @property
    def key(self) -> Any:
        """Which network it is; keys are unique and can be sorted."""


N = TypeVar("N", bound=Keyed)
T = TypeVar("T")
R = TypeVar("R", bound="Results[Any]")


class Results(Generic[N]):
    """What was found for networks, and with which settings: a dataclass of both.

    A file of them has a JSON object a line, the first with the settings.
    """

    network_type: ClassVar[type]
    networks: list[N]

    def settings(self) -> dict[str, Any]:
        """All but the networks."""
        return {name: value for name, value in vars(self).items() if name != "networks"}

    def with_networks(self: R, networks: Sequence[Any]) -> R:
        """The same settings with other networks, in the order of their keys."""
        kind: Any = type(self)
        return kind(**self.settings(), networks=sorted(networks, key=lambda n: n.key))

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Reads what :meth:`save` or an evaluation that was interrupted wrote.

        Of a network that is there twice the first counts; an incomplete last line, of a process
        that was killed, does not.

        Raises:
            EvaluationError: it is no such file.
        """
        try:
            text = read_text(Path(path))
            first, *rest = [line for line in text.splitlines(keepends=True) if line[-1] == "\n"]
            networks: dict[Any, Any] = {}
            for line in rest:
                network = _typed(cls.network_type, line)
                networks.setdefault(network.key, network)
            return _typed(cls, first).with_networks([*networks.values()])
        except (OSError, ValueError, TypeError) as error:
            raise EvaluationError(f"{path} holds no evaluation results ({error})") from None

    def save(self, path: str | Path) -> None:
        """Writes them as :meth:`load` reads them."""
        lines = [self.settings(), *map(vars, self.networks)]
        write_text(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


@dataclass
class NetworkResult:
    """One network.

    Attributes:
        index: in its split.
        top1: percent of the images.
        parameters: how many numbers it has.
        seconds: for predicting and classifying.
        name: of a network of the zoo, or the family that it is of.
        left: how many of the numbers were not predicted, as the graph has no node for them or
            they do not reach the output.
    """

    index: int
    top1: float
    parameters: int
    seconds: float
    name: str = ""
    left: int = 0

    @property
    def key(self) -> int:
        return self.index


@dataclass(repr=False)
class EvaluationResult(Results[NetworkResult]):
    """The networks of a split, one by one and together.

    Attributes:
        split, seed, baseline, num_images, batch_size, norm: what was evaluated.
        sgd_steps: of training, with the baseline ``"sgd"``.
        ghn_digest: of the GHN's state, with the baseline ``"ghn"``.
        images_digest: of the images, and of the training images where they are used.
        networks: the results, in the order of the split.
    """

    network_type = NetworkResult

    split: str
    seed: int
    baseline: str
    num_images: int
    batch_size: int
    networks: list[NetworkResult] = field(default_factory=list)
    norm: str = "batch"
    sgd_steps: int = 0
    ghn_digest: str = ""
    images_digest: str = ""

    def __repr__(self) -> str:
        error = f" ± {self.standard_error:.1f}" if len(self.networks) > 1 else ""
        found = f": {self.mean:.1f}{error} %" if self.networks else ""
        return (
            f"EvaluationResult({self.split}, {self.baseline}, {len(self.networks)} networks{found})"
        )

    @property
    def top1(self) -> list[float]:
        """Of each network, in percent."""
        return [network.top1 for network in self.networks]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def std(self) -> float:
        """The sample standard deviation over the networks; nan for a single one."""
        return statistics.stdev(self.top1) if len(self.networks) > 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean over the networks; nan for a single one."""
        return self.std / math.sqrt(len(self.networks))

    @property
    def best(self) -> float:
        return max(self.top1)

    def summary(self) -> dict[str, float | None]:
        """The figures to report; None for those that a single network does not tell."""
        several = len(self.networks) > 1
        return {
            "networks": len(self.networks),
            "mean": self.mean,
            "standard_error": self.standard_error if several else None,
            "std": self.std if several else None,
            "best": self.best,
            "worst": min(self.top1),
        }


def ghn_digest(ghn: GHN) -> str:
    """Of all parameters and buffers that are kept."""
    return state_digest(ghn)[:16]


def images_digest(*sources: ImageSource) -> str:
    """Of all labels but few pixels, as images may have to be decoded for it.

    Pixels are normalised, so rounded: other processors may differ in their last bits.
    """
    digest = hashlib.sha256()
    for source in sources:
        count = len(source)
        few = min(count, DIGEST_IMAGES)
        places = torch.arange(few, device="cpu") * count // max(few, 1)
        pixels = source.batch(places).contiguous()
        digest.update(f"{count} {source.num_classes} {tuple(pixels.shape)}".encode())
        digest.update(content(source.labels))
        digest.update(content((pixels * 100).round().to(torch.int16)))
    return digest.hexdigest()[:16]


class ResultsLog(Generic[N]):
    """The results so far, on the disk too where there is a file.

    Every process but the first writes to a file of its own beside it, as appending to one file
    from several machines is not safe. At the end all become one.
    """

    def __init__(self, result: Results[N], path: str | Path | None, processes: Processes) -> None:
        self.result = result
        self.settings = result.settings()
        self.path = None if path is None else Path(path)
        self.processes = processes
        self.done = {network.key: network for network in self._read()}
        self._own: list[N] = []
        processes.gather(None)  # all have read before any writes
        if self.path is not None:
            self._own_path = self._path_of(processes.rank)
            if not self._own_path.exists():
                write_text(self._own_path, json.dumps(self.settings) + "\n")

    def add(self, network: N) -> None:
        self._own.append(network)
        if self.path is not None:
            append_line(self._own_path, json.dumps(vars(network)))

    def merged(self) -> list[N]:
        """Those of all processes; they are in one file afterwards."""
        found = dict(self.done)
        for part in self.processes.gather(self._own):
            found.update({network.key: network for network in part})
        whole = self.result.with_networks([*found.values()])
        if self.path is not None and self.processes.is_first:
            whole.save(self.path)
            for path in self._parts():
                path.unlink(missing_ok=True)
        return whole.networks

    def _path_of(self, rank: int) -> Path:
        assert self.path is not None
        return self.path if rank == 0 else self.path.with_suffix(f".part{rank}.jsonl")

    def _parts(self) -> list[Path]:
        assert self.path is not None
        name = re.compile(re.escape(self.path.stem) + r"\.part[0-9]+\.jsonl")
        return sorted(p for p in self.path.parent.glob("*.jsonl") if name.fullmatch(p.name))

    def _read(self) -> list[N]:
        if self.path is None:
            return []
        files = [path for path in (self.path, *self._parts()) if path.exists()]
        return [network for path in files for network in self._checked(path).networks]

    def _checked(self, path: Path) -> Results[N]:
        found = type(self.result).load(path)
        _drop_incomplete_line(path)
        if not found.settings()["images_digest"]:
            raise EvaluationError(
                f"{path} does not say of which GHN and images its results are, as an earlier "
                "version wrote it; move it away or pass another results_file"
            )
        for name, value in found.settings().items():
            if value != self.settings[name]:
                raise EvaluationError(
                    f"{path} has results for {name}={value!r}, not {self.settings[name]!r}; move "
                    "it away or pass another results_file"
                )
        return found


def _typed(kind: Callable[..., T], line: str) -> T:
    """A dataclass out of a line of JSON."""
    made, hints = kind(**json.loads(line)), get_type_hints(kind)
    for name, value in vars(made).items():
        if not is_of(value, hints[name]):
            raise TypeError(f"{name} is {shown(value)}")
    return made


def _drop_incomplete_line(path: Path) -> None:
    """What a killed process began to write, so that the next line is one of its own."""
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete and complete != content:
        write_text(path, complete.decode())
