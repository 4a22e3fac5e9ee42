"""How well networks classify with predicted parameters (arXiv 2110.13100, section 5.1)."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ghn_fast.data import ImageSource, ImageStream
from ghn_fast.files import append_line, write_text
from ghn_fast.ghn import GHN
from ghn_fast.graph import Graph
from ghn_fast.nets import adjust_net, build_ghost, build_net, sample_net_args
from ghn_fast.nets.deepnets1m import SIZES
from ghn_fast.nets.direct import graph_of
from ghn_fast.processes import Processes
from ghn_fast.transfer import images_to_device, to_device

WAYS = ("ghn", "random", "sgd")
NORMS = ("batch", "calibrated")
BATCH_SIZE = 64
CALIBRATION_BATCHES = 16
DIGEST_IMAGES = 64
"""Evenly spaced images whose pixels tell one set of images from another."""
SGD_LR, SGD_MOMENTUM, SGD_WEIGHT_DECAY, SGD_GRAD_CLIP = 0.025, 0.9, 3e-4, 5.0
"""Of the networks trained with SGD in arXiv 2110.13100, section 5.1; the batch has 96 images."""
SGD_BATCH = 96


class EvaluationError(ValueError):
    """An evaluation that cannot be done or resumed; the message says why."""


@dataclass
class NetworkResult:
    """One network.

    Attributes:
        index: in its split.
        top1: percent of the images.
        parameters: how many numbers it has.
        seconds: for predicting and classifying.
    """

    index: int
    top1: float
    parameters: int
    seconds: float


@dataclass
class EvaluationResult:
    """The networks of a split, one by one and together.

    Attributes:
        split, seed, baseline, num_images, batch_size, norm: what was evaluated.
        sgd_steps: of training, with the baseline ``"sgd"``.
        ghn_digest: of the GHN's state, with the baseline ``"ghn"``.
        images_digest: of the images, and of the training images where they are used.
        networks: the results, in the order of the split.
    """

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

    @property
    def top1(self) -> list[float]:
        """Of each network, in percent."""
        return [network.top1 for network in self.networks]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.top1)

    @property
    def std(self) -> float:
        """The sample standard deviation over the networks; 0 for a single one."""
        return statistics.stdev(self.top1) if len(self.networks) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean over the networks."""
        return self.std / math.sqrt(len(self.networks))

    @property
    def best(self) -> float:
        return max(self.top1)

    def summary(self) -> dict[str, float]:
        """The figures to report."""
        return {
            "networks": len(self.networks),
            "mean": self.mean,
            "standard_error": self.standard_error,
            "std": self.std,
            "best": self.best,
            "worst": min(self.top1),
        }

    def settings(self) -> dict[str, Any]:
        """What was evaluated, without the results."""
        return {name: value for name, value in asdict(self).items() if name != "networks"}

    @classmethod
    def load(cls, path: str | Path) -> EvaluationResult:
        """What :func:`evaluate` wrote: JSON lines, the first with the settings.

        Of a network that is there twice the first counts; an incomplete last line, of a process
        that was killed, does not.

        Raises:
            EvaluationError: it is no such file.
        """
        try:
            text = Path(path).read_text()
            first, *rest = [line for line in text.splitlines(keepends=True) if line[-1] == "\n"]
            networks: dict[int, NetworkResult] = {}
            for line in rest:
                network = NetworkResult(**json.loads(line))
                networks.setdefault(network.index, network)
            chosen = [networks[index] for index in sorted(networks)]
            return cls(**json.loads(first), networks=chosen)
        except (OSError, ValueError, TypeError) as error:
            raise EvaluationError(f"{path} holds no evaluation results ({error})") from None

    def save(self, path: str | Path) -> None:
        """Writes them as :meth:`load` reads them."""
        lines = [self.settings(), *(asdict(network) for network in self.networks)]
        write_text(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


def evaluate(
    ghn: GHN | None,
    split: str = "test",
    images: ImageSource | None = None,
    *,
    num_nets: int | None = 50,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    baseline: str = "ghn",
    norm: str = "batch",
    train: ImageSource | None = None,
    sgd_steps: int = 0,
    threads: int = 1,
    device: torch.device | str | None = None,
    results_file: str | Path | None = None,
    on_network: Callable[[NetworkResult], object] | None = None,
) -> EvaluationResult:
    """Classifies images with networks of a split of DeepNets-1M.

    Normalisation uses the statistics of each batch, as predicted parameters come without running
    ones, or of calibration images.

    In several processes (torchrun, or any initialised default process group) each takes every
    so-many-th network; all of them return the results of all.

    Args:
        ghn: predicts the parameters; may be None for the other baselines.
        split: a split of :class:`ghn_fast.DeepNets1M`.
        images: what to classify; the test images of CIFAR-10 where left out.
        num_nets: the first ones of the split; None for the published number.
        num_images: use only the first ones.
        batch_size: images in a batch.
        seed: of the split's networks; of their parameters too with the other baselines.
        baseline: ``"ghn"``, ``"random"`` for PyTorch's default initialisation, or ``"sgd"`` for
            ``sgd_steps`` of training from there.
        norm: ``"batch"`` or ``"calibrated"``: batch normalisation by statistics of each batch, or
            of the first 16 batches of the training images.
        train: training images, for ``"calibrated"`` and ``"sgd"``; those of CIFAR-10 where left
            out.
        sgd_steps: batches of 96 images to train with (see :func:`train_network`).
        threads: that share the networks on a CPU, with one core each; 0 for one per core. With 1
            networks follow one another, with all of PyTorch's threads.
        device: where the networks run; that of the GHN where left out.
        results_file: JSON lines, one for every network as soon as it is done; one that exists
            already is completed.
        on_network: called after every network of this process.

    Raises:
        EvaluationError: no GHN or one for another number of classes, an unknown baseline, or a
            results file of something else.
        ghn_fast.data.DataError: there are no images.
    """
    _check_choice("baseline", baseline, WAYS)
    _check_choice("norm", norm, NORMS)
    if baseline == "ghn" and ghn is None:
        raise EvaluationError("baseline='ghn' needs a GHN")
    if baseline == "sgd" and sgd_steps < 1:
        raise EvaluationError(f"baseline='sgd' needs sgd_steps, not {sgd_steps}")
    chosen = _images(images, num_images)
    if baseline == "ghn":
        _check_classes(ghn, chosen)
    uses_train = norm == "calibrated" or baseline == "sgd"
    train = _images(train, None, "train") if uses_train else None
    sgd_steps = sgd_steps if baseline == "sgd" else 0
    result = EvaluationResult(
        split,
        seed,
        baseline,
        len(chosen),
        batch_size,
        norm=norm,
        sgd_steps=sgd_steps,
        ghn_digest=_ghn_digest(ghn) if baseline == "ghn" and ghn is not None else "",
        images_digest=_images_digest(chosen, *(() if train is None else (train,))),
    )
    count = _network_count(split, num_nets)
    processes = Processes.current()
    log = _ResultsLog(result, results_file, processes)
    job = _Job(ghn, result, chosen, train, _device(ghn, device))
    todo = [index for index in range(count) if index not in log.done]
    with _evaluating(ghn), _threads(threads, job.device) as mapped:
        for network in mapped(job.run, todo[processes.rank :: processes.size]):
            log.add(network)
            if on_network is not None:
                on_network(network)
    result.networks = [network for network in log.merged() if network.index < count]
    return result


def evaluate_resnet50(
    ghn: GHN | None,
    images: ImageSource | None = None,
    *,
    num_images: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> float:
    """Top-1 in percent of torchvision's ResNet-50 with its stem fitted to small images.

    With its parameters as the GHN predicts them, or as PyTorch initialises them if it is None.

    Raises:
        EvaluationError: the GHN is for another number of classes.
    """
    from torchvision.models import resnet50

    chosen = _images(images, num_images)
    _check_classes(ghn, chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = adjust_net(resnet50(num_classes=chosen.num_classes))
    if ghn is not None:
        with _evaluating(ghn):
            _predict(ghn, model)
    return top1(model, chosen, batch_size)


@torch.no_grad()
def top1(
    model: nn.Module,
    data: ImageSource,
    batch_size: int = BATCH_SIZE,
    batch_statistics: bool = True,
) -> float:
    """Percent of the images that are classified correctly.

    Batch normalisation uses the statistics of each batch, or with ``batch_statistics=False`` the
    running ones that the model has.
    """
    device = next(model.parameters()).device
    model.eval()
    if batch_statistics:
        use_batch_statistics(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, len(data), batch_size):
        chosen = torch.arange(start, min(start + batch_size, len(data)))
        images = images_to_device(data.batch(chosen), device)
        labels = to_device(data.labels[start : start + batch_size], device)
        correct += (model(images).argmax(dim=1) == labels).sum()
    return 100.0 * int(correct) / len(data)


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Makes batch normalisation use each batch's own statistics and keep none; in place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


@torch.no_grad()
def calibrate(
    model: nn.Module,
    data: ImageSource,
    batches: int = CALIBRATION_BATCHES,
    batch_size: int = BATCH_SIZE,
) -> nn.Module:
    """Gives batch normalisation the mean statistics of the first images; in place.

    Everything else is left as it is, and in evaluation mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return model.eval()
    device = next(model.parameters()).device
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        size = norm.num_features
        norm.running_mean = torch.zeros(size, device=device)
        norm.running_var = torch.ones(size, device=device)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=device)
        norm.track_running_stats, norm.momentum = True, None  # None: a plain mean of all batches
        norm.train()
    for start in range(0, min(batches * batch_size, len(data)), batch_size):
        chosen = torch.arange(start, min(start + batch_size, len(data)))
        model(images_to_device(data.batch(chosen), device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def train_network(
    model: nn.Module, data: ImageSource, steps: int, seed: int, batch_size: int = SGD_BATCH
) -> nn.Module:
    """Trains a network as the SGD baseline of arXiv 2110.13100, section 5.1; in place.

    SGD with a learning rate of 0.025 that follows a cosine to 0, momentum 0.9, weight decay 3e-4
    and gradients clipped to a norm of 5; random crops and mirrored images. Dropout is not applied,
    so that the result is a function of the arguments.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), SGD_LR, momentum=SGD_MOMENTUM, weight_decay=SGD_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stream = ImageStream(data, min(batch_size, len(data)), seed)
    device = next(model.parameters()).device
    use_batch_statistics(model.eval())
    for step in range(steps):
        images, labels = stream[step]
        optimizer.zero_grad(set_to_none=True)
        images, labels = images_to_device(images, device), to_device(labels, device)
        F.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), SGD_GRAD_CLIP)
        optimizer.step()
        schedule.step()
    return model


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise EvaluationError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _check_classes(ghn: GHN | None, images: ImageSource) -> None:
    if ghn is not None and ghn.config.num_classes != images.num_classes:
        raise EvaluationError(
            f"the GHN predicts networks of {ghn.config.num_classes} classes, and the images have "
            f"{images.num_classes}; take images or a GHN of the same number"
        )


def _ghn_digest(ghn: GHN) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(ghn.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_content(value))
    return digest.hexdigest()[:16]


def _images_digest(*sources: ImageSource) -> str:
    """Of all labels but few pixels, as images may have to be decoded for it.

    Pixels are normalised, so rounded: other processors may differ in their last bits.
    """
    digest = hashlib.sha256()
    for source in sources:
        count = len(source)
        few = min(count, DIGEST_IMAGES)
        places = torch.arange(few) * count // max(few, 1)
        pixels = source.batch(places).contiguous()
        digest.update(f"{count} {source.num_classes} {tuple(pixels.shape)}".encode())
        digest.update(_content(source.labels))
        digest.update(_content((pixels * 100).round().to(torch.int16)))
    return digest.hexdigest()[:16]


def _content(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _network_count(split: str, num_nets: int | None) -> int:
    if split not in SIZES:
        raise EvaluationError(f"unknown split {split!r}; there are {', '.join(SIZES)}")
    if num_nets is None:
        return SIZES[split]
    return min(num_nets, SIZES[split]) if split == "predefined" else num_nets


def _images(images: ImageSource | None, num_images: int | None, split: str = "test") -> ImageSource:
    if images is None:
        from ghn_fast.data import load_cifar10

        images = load_cifar10(split=split)
    return images.first(num_images)


class _ResultsLog:
    """The results so far, on the disk too where there is a file.

    Every process but the first writes to a file of its own beside it, as appending to one file
    from several machines is not safe. At the end all become one.
    """

    def __init__(
        self, result: EvaluationResult, path: str | Path | None, processes: Processes
    ) -> None:
        self.settings = result.settings()
        self.path = None if path is None else Path(path)
        self.processes = processes
        self.done = {network.index: network for network in self._read()}
        self._own: list[NetworkResult] = []
        processes.gather(None)  # all have read before any writes
        if self.path is not None:
            self._own_path = self._path_of(processes.rank)
            if not self._own_path.exists():
                write_text(self._own_path, json.dumps(self.settings) + "\n")

    def add(self, network: NetworkResult) -> None:
        self._own.append(network)
        if self.path is not None:
            append_line(self._own_path, json.dumps(asdict(network)))

    def merged(self) -> list[NetworkResult]:
        """Those of all processes; they are in one file afterwards."""
        found = dict(self.done)
        for part in self.processes.gather(self._own):
            found.update({network.index: network for network in part})
        networks = [found[index] for index in sorted(found)]
        if self.path is not None and self.processes.is_first:
            EvaluationResult(**self.settings, networks=networks).save(self.path)
            for path in self._parts():
                path.unlink(missing_ok=True)
        return networks

    def _path_of(self, rank: int) -> Path:
        assert self.path is not None
        return self.path if rank == 0 else self.path.with_suffix(f".part{rank}.jsonl")

    def _parts(self) -> list[Path]:
        assert self.path is not None
        return sorted(self.path.parent.glob(f"{self.path.stem}.part*.jsonl"))

    def _read(self) -> list[NetworkResult]:
        if self.path is None:
            return []
        files = [path for path in (self.path, *self._parts()) if path.exists()]
        return [network for path in files for network in self._checked(path).networks]

    def _checked(self, path: Path) -> EvaluationResult:
        _drop_incomplete_line(path)
        found = EvaluationResult.load(path)
        if not found.images_digest:
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


def _drop_incomplete_line(path: Path) -> None:
    """What a killed process began to write, so that the next line is one of its own."""
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete and complete != content:
        write_text(path, complete.decode())


@dataclass
class _Job:
    """Evaluates single networks."""

    ghn: GHN | None
    result: EvaluationResult
    images: ImageSource
    train: ImageSource | None
    device: torch.device

    def run(self, index: int) -> NetworkResult:
        start = time.perf_counter()
        result, large = self.result, self.images.is_large
        net_args = sample_net_args(result.split, result.seed, index, large)
        model = self._network(net_args, index)
        if result.norm == "calibrated":
            assert self.train is not None
            calibrate(model, self.train, batch_size=result.batch_size)
        is_batch = result.norm == "batch"
        accuracy = top1(model, self.images, result.batch_size, batch_statistics=is_batch)
        size = sum(parameter.numel() for parameter in model.parameters())
        return NetworkResult(index, accuracy, size, time.perf_counter() - start)

    def _network(self, net_args: dict[str, Any], index: int) -> nn.Module:
        if self.result.baseline == "ghn":
            assert self.ghn is not None
            return _predicted_network(self.ghn, net_args, self.images.is_large).to(self.device)
        seed = self.result.seed + index
        model = _random_network(net_args, self.images, seed).to(self.device)
        if self.result.baseline == "sgd":
            assert self.train is not None
            train_network(model, self.train, self.result.sgd_steps, seed)
        return model


def _predicted_network(ghn: GHN, net_args: dict[str, Any], is_large: bool) -> nn.Module:
    num_classes = ghn.config.num_classes
    if isinstance(net_args["genotype"], str):
        with _RANDOM:
            model = build_net(net_args, num_classes, is_large)
        return _predict(ghn, model)
    ghost = build_ghost(net_args, num_classes, is_large)
    graph = graph_of(net_args, num_classes, is_large)
    return _predict(ghn, ghost.to_empty(device=_device(ghn)), graph)


_RANDOM = threading.Lock()
"""PyTorch initialises from a generator that all threads share."""


def _random_network(net_args: dict[str, Any], images: ImageSource, seed: int) -> nn.Module:
    with _RANDOM, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_net(net_args, images.num_classes, images.is_large)


@torch.no_grad()
def _predict(ghn: GHN, model: nn.Module, graph: Graph | None = None) -> nn.Module:
    ghn(model, graph)
    return model


@contextmanager
def _evaluating(ghn: GHN | None) -> Iterator[None]:
    """The GHN in evaluation mode."""
    if ghn is None:
        yield
        return
    training = ghn.training
    ghn.eval()
    try:
        yield
    finally:
        ghn.train(training)


Run = Callable[[int], NetworkResult]


@contextmanager
def _threads(
    count: int, device: torch.device
) -> Iterator[Callable[[Run, Sequence[int]], Iterable[NetworkResult]]]:
    """A function that maps, in threads of one core each; results come in their order."""
    count = count or torch.get_num_threads()
    if count == 1 or device.type != "cpu":
        yield lambda run, indices: map(run, indices)
        return
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        yield workers.map


def _device(ghn: GHN | None, device: torch.device | str | None = None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if ghn is None else next(ghn.parameters()).device
