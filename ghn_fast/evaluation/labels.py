"""What has to be measured to know it of a network, as labels for its embedding (arXiv 2110.13100,
section 5.2), beside what costs nothing."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast._system.device import images_to_device
from ghn_fast._system.processes import Processes
from ghn_fast.data import Images, ImageSource
from ghn_fast.evaluation.accuracy import BATCH_SIZE, top1
from ghn_fast.evaluation.baselines import SGD_BATCH, train_network
from ghn_fast.evaluation.errors import EvaluationError
from ghn_fast.evaluation.results import Results, ResultsLog, ghn_digest, images_digest
from ghn_fast.evaluation.run import check_classes, evaluating, predicted_network, random_network
from ghn_fast.ghn import GHN
from ghn_fast.ghn.hub import weights_folder
from ghn_fast.nets import graph_of, sample_net_args
from ghn_fast.nets.stats import longest_path, parameters_and_multiply_adds

NOISE = 0.08
"""Standard deviation of the noise on pixels from 0 to 1, as in the public code for CIFAR-10."""
WINDOWS = 10
"""Parts of a training for each of which there is an accuracy."""
_SHIPPED = "ghn2-cifar10-labels.jsonl"
TIMED_RUNS, TIMED_SECONDS = 10, 1.0
"""Of inference: so many runs, or fewer, but two at least, where they take longer than that."""


@dataclass
class NetworkLabels:
    """One network.

    Attributes:
        split, index: which one, of seed 0.
        parameters, multiply_adds, depth: of the network as it is; edges on the longest path.
        predicted: top-1 in % with predicted parameters, by batch statistics.
        inference: microseconds for an image in batches of 64, the least of up to ten runs.
        trained, noisy: top-1 in % after training, of clean images and of the same with noise.
        curve: top-1 in % of the training images of each tenth of the training, while it learns.
    """

    split: str
    index: int
    parameters: int
    multiply_adds: int
    depth: int
    predicted: float
    inference: float
    trained: float
    noisy: float
    curve: list[float]

    @property
    def key(self) -> tuple[str, int]:
        return self.split, self.index


@dataclass(repr=False)
class Labels(Results[NetworkLabels]):
    """Labels of networks.

    Attributes:
        steps, batch_size: of training (:func:`ghn_fast.evaluation.train_network`).
        width: of the trained network, as a share of the width that it has in its split.
        noise: standard deviation, of pixels from 0 to 1.
        num_images: that are classified; none of them is trained with.
        device: that inference was timed on.
        ghn_digest: of the state of the GHN that predicted.
        images_digest: of the images, and of the training images.
        networks: in the order of their splits and indices.
    """

    network_type = NetworkLabels

    steps: int
    batch_size: int
    width: float
    noise: float
    num_images: int
    device: str
    ghn_digest: str
    images_digest: str
    networks: list[NetworkLabels] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Labels({len(self.networks)} networks, {self.steps} steps at {self.width:g} width)"


def load_labels(paths: Sequence[str | Path] = ()) -> Labels:
    """Labels of several files, such as those that the processes of a killed run left.

    Without any, those that ghn_fast has with it, of ``ghn2-cifar10``.

    Raises:
        EvaluationError: a file is none, or they are of different settings.

    Examples:
        >>> from ghn_fast.evaluation import load_labels
        >>> labels = load_labels()
        >>> sorted({network.split for network in labels.networks})
        ['test', 'val']
    """
    if not paths:
        with resources.as_file(weights_folder() / _SHIPPED) as shipped:
            return Labels.load(shipped)
    first, *others = (Labels.load(path) for path in paths)
    networks = {network.key: network for network in first.networks}
    for path, other in zip(paths[1:], others, strict=True):
        if other.settings() != first.settings():
            raise EvaluationError(f"{path} has labels of other settings than {paths[0]}")
        networks |= {network.key: network for network in other.networks}
    return first.with_networks([*networks.values()])


def measure_labels(
    ghn: GHN,
    images: Images,
    train: ImageSource,
    splits: Sequence[str] = ("val", "test"),
    *,
    num_nets: int = 500,
    steps: int = 150,
    width: float = 0.25,
    seconds: float = math.inf,
    device: torch.device | str | None = None,
    labels_file: str | Path | None = None,
    known: Labels | None = None,
    on_network: Callable[[NetworkLabels], object] | None = None,
) -> Labels:
    """Measures networks of DeepNets-1M, those of the splits in turn.

    Networks are timed and classify with predicted parameters as they are in their split, and are
    trained at a fraction of that width: many short trainings rank networks better than few long
    ones. In several processes (torchrun, or any initialised default process group) each takes
    every so-many-th network; all of them return the labels of all.

    Args:
        ghn: predicts parameters, where it is.
        images: to classify, which ``train`` is without.
        train: to train with.
        splits: of :class:`ghn_fast.DeepNets1M`.
        num_nets: the first so many of each.
        steps: of SGD, 96 images each.
        width: share of a network's width that it is trained at, to the nearest multiple of 8.
        seconds: after which no further network is begun.
        device: where networks run; that of the GHN where left out.
        labels_file: JSON lines, one for every network as soon as it is done; one that exists
            already is completed.
        known: measured with another GHN, whose networks are not trained and timed again.
        on_network: called after every network of this process.

    Raises:
        EvaluationError: the GHN is for another number of classes, or the file or ``known`` is of
            other settings.
        ValueError: an unknown split.

    Examples:
        >>> from ghn_fast.evaluation import measure_labels
        >>> ghn = ghn_fast.from_pretrained("ghn2-cifar10")
        >>> labels = measure_labels(ghn, images, images, ["test"], num_nets=1, steps=1)
        >>> labels.networks[0].key, len(labels.networks[0].curve)
        (('test', 0), 1)
    """
    start = time.monotonic()
    check_classes(ghn, images)
    place = torch.device(device) if device is not None else next(ghn.parameters()).device
    labels = Labels(
        steps,
        SGD_BATCH,
        width,
        NOISE,
        len(images),
        _device_name(place),
        ghn_digest(ghn),
        images_digest(images, train),
    )
    before = _of_networks(known, labels) if known is not None else {}
    processes = Processes.current()
    log = ResultsLog(labels, labels_file, processes)
    job = _Job(ghn, labels, images, with_noise(images, NOISE), train, place, before)
    wanted = [(split, index) for index in range(num_nets) for split in splits]
    todo = [key for key in wanted if key not in log.done]
    with evaluating(ghn):
        for key in todo[processes.rank :: processes.size]:
            if time.monotonic() - start >= seconds:
                break
            network = job.run_if_it_fits(*key)
            if network is None:
                continue
            log.add(network)
            if on_network is not None:
                on_network(network)
    return labels.with_networks(log.merged())


def _of_networks(known: Labels, labels: Labels) -> dict[tuple[str, int], NetworkLabels]:
    if replace(known, networks=[], ghn_digest="") != replace(labels, ghn_digest=""):
        raise EvaluationError(f"what is known is of other settings: {known.settings()}")
    return {network.key: network for network in known.networks}


def train_at_width(
    net_args: Mapping[str, Any],
    train: ImageSource,
    steps: int,
    width: float,
    seed: int,
    device: torch.device,
) -> tuple[nn.Module, list[float]]:
    """A network of a fraction of its width, trained, and its accuracy in tenths of the training."""
    model = random_network(narrowed(net_args, width), train, seed).to(device)
    correct: list[Tensor] = []
    train_network(
        model,
        train,
        steps,
        seed,
        on_step=lambda outputs, labels: correct.append(
            (outputs.argmax(dim=1) == labels).float().mean()
        ),
    )
    windows = torch.stack(correct).cpu().tensor_split(min(WINDOWS, steps))
    return model, [round(100 * float(window.mean()), 2) for window in windows]


def narrowed(net_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """The same network at a fraction of its width, which its 8 attention heads divide."""
    return {**net_args, "C": max(8, 8 * round(net_args["C"] * width / 8))}


def with_noise(images: Images, spread: float, seed: int = 0) -> Images:
    """Images with Gaussian noise of a standard deviation, pixels being from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.images.shape, generator=generator, device="cpu") * (255 * spread)
    pixels = (images.images + noise).round().clamp(0, 255).to(torch.uint8)
    return replace(images, images=pixels)


@torch.inference_mode()
def inference_time(model: nn.Module, images: Tensor, runs: int = TIMED_RUNS) -> float:
    """Seconds for an image, the least of several runs: what else a machine does only adds."""
    model(images)
    taken = [_seconds(model, images)]
    while len(taken) < 2 or (len(taken) < runs and sum(taken) < TIMED_SECONDS):
        taken.append(_seconds(model, images))
    return min(taken) / len(images)


def _seconds(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


@dataclass
class _Job:
    """Measures single networks."""

    ghn: GHN
    labels: Labels
    images: Images
    noisy: Images
    train: ImageSource
    device: torch.device
    known: Mapping[tuple[str, int], NetworkLabels]

    def run_if_it_fits(self, split: str, index: int) -> NetworkLabels | None:
        """None, with a warning, where a GPU's memory runs out: others may have taken it."""
        try:
            return self.run(split, index)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"no memory for {split}:{index}, which is left out; a later run tries it again",
                stacklevel=3,
            )
            return None
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what one network took is not what the next one takes

    def run(self, split: str, index: int) -> NetworkLabels:
        net_args = sample_net_args(split, 0, index)
        if (split, index) in self.known:
            predicted = top1(self._predicted(net_args), self.images)
            return replace(self.known[split, index], predicted=round(predicted, 2))
        graph = graph_of(net_args, self.images.num_classes)
        parameters, multiply_adds = parameters_and_multiply_adds(
            net_args, self.images.num_classes, large_images=False
        )
        predicted, inference = self._as_it_is(net_args)
        labels = self.labels
        model, curve = train_at_width(
            net_args, self.train, labels.steps, labels.width, index, self.device
        )
        return NetworkLabels(
            split,
            index,
            parameters,
            multiply_adds,
            longest_path(graph),
            predicted=round(predicted, 2),
            inference=round(1e6 * inference, 2),
            trained=round(top1(model, self.images), 2),
            noisy=round(top1(model, self.noisy), 2),
            curve=curve,
        )

    def _as_it_is(self, net_args: dict[str, Any]) -> tuple[float, float]:
        """The accuracy with predicted parameters, and the time that an image takes."""
        model = self._predicted(net_args)
        accuracy = top1(model, self.images)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
        first = torch.arange(min(BATCH_SIZE, len(self.images)), device="cpu")
        batch = self.images.batch(first)
        return accuracy, inference_time(model, images_to_device(batch, self.device))

    def _predicted(self, net_args: dict[str, Any]) -> nn.Module:
        return predicted_network(self.ghn, net_args, is_large=False).to(self.device).eval()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
