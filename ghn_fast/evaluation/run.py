"""How well networks classify with predicted parameters (arXiv 2110.13100, section 5.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ghn_fast._system.processes import Processes
from ghn_fast._system.random import seeded
from ghn_fast._system.restored import restored
from ghn_fast._system.workers import one_core_workers
from ghn_fast.data import ImageSource
from ghn_fast.data.images import check_source
from ghn_fast.evaluation.accuracy import BATCH_SIZE, calibrate, top1
from ghn_fast.evaluation.baselines import train_network
from ghn_fast.evaluation.errors import EvaluationError
from ghn_fast.evaluation.results import (
    EvaluationResult,
    NetworkResult,
    ResultsLog,
    ghn_digest,
    images_digest,
)
from ghn_fast.ghn import GHN
from ghn_fast.graph import NODE_TYPES, Graph
from ghn_fast.nets import (
    build_ghost,
    build_net,
    check_image_size,
    graph_of,
    sample_net_args,
)
from ghn_fast.nets.deepnets1m import SIZES
from ghn_fast.nets.families import FAMILIES, family_split, sample_member
from ghn_fast.nets.families import SPLITS as FAMILIES_SPLITS
from ghn_fast.nets.zoo import build_zoo_net, zoo_names
from ghn_fast.prediction import predict

ZOO = "zoo"
FAMILIES_SIZE = 100
"""Networks of the families that are evaluated where no number is given."""
WAYS = ("ghn", "random", "sgd")
NORMS = ("batch", "calibrated")


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
    """Classifies images with networks of a split.

    Normalisation uses the statistics of each batch, as predicted parameters come without running
    ones, or of calibration images.

    In several processes (torchrun, or any initialised default process group) each takes every
    so-many-th network; all of them return the results of all.

    Args:
        ghn: predicts the parameters; may be None for the other baselines.
        split: a split of :class:`ghn_fast.DeepNets1M` or of :mod:`ghn_fast.nets.families`, that
            of one family such as ``"families/test/residual"``, or ``"zoo"``, the networks of
            :mod:`ghn_fast.nets.zoo`. Those of families and the zoo are for 32 x 32 images.
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
        TypeError: a loader was passed for images, or something else that is none.
        ValueError: there are no images.
        EvaluationError: no GHN or one for another number of classes, an unknown baseline, images
            of a size that the networks cannot have, or a results file of something else.
        ghn_fast.data.DataError: there are no images.

    Examples:
        >>> result = ghn_fast.evaluate(
        ...     ghn_fast.from_pretrained("ghn2-cifar10"), split="test", images=images, num_nets=1
        ... )
        >>> len(result.networks)
        1
    """
    _check_ghn(ghn)
    _check_choice("baseline", baseline, WAYS)
    _check_choice("norm", norm, NORMS)
    if baseline == "ghn" and ghn is None:
        raise EvaluationError("baseline='ghn' needs a GHN")
    if baseline == "sgd" and sgd_steps < 1:
        raise EvaluationError(f"baseline='sgd' needs sgd_steps, not {sgd_steps}")
    chosen = _images(images, num_images)
    if baseline == "ghn":
        check_classes(ghn, chosen)
    _check_size(chosen)
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
        ghn_digest=ghn_digest(ghn) if baseline == "ghn" and ghn is not None else "",
        images_digest=images_digest(chosen, *(() if train is None else (train,))),
    )
    count = _network_count(split, num_nets, chosen.is_large)
    processes = Processes.current()
    log = ResultsLog(result, results_file, processes)
    job = _Job(ghn, result, chosen, train, _device(ghn, device))
    todo = [index for index in range(count) if index not in log.done]
    with evaluating(ghn), _threads(threads, job.device) as mapped:
        for network in mapped(job.run, todo[processes.rank :: processes.size]):
            log.add(network)
            if on_network is not None:
                on_network(network)
    result.networks = [network for network in log.merged() if network.index < count]
    return result


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise EvaluationError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _check_ghn(ghn: object) -> None:
    if ghn is not None and not isinstance(ghn, GHN):
        raise EvaluationError(
            f"a GHN is evaluated, by the networks that it predicts, not a {type(ghn).__name__}; "
            "ghn_fast.evaluation.top1(model, images) measures a network"
        )


def check_classes(ghn: GHN | None, images: ImageSource) -> None:
    _check_ghn(ghn)
    if ghn is not None and ghn.config.num_classes != images.num_classes:
        raise EvaluationError(
            f"the GHN predicts networks of {ghn.config.num_classes} classes, and the images have "
            f"{images.num_classes}; take images or a GHN of the same number"
        )


def _check_size(images: ImageSource) -> None:
    size = images.batch(torch.arange(1, device="cpu")).shape[-1]
    try:
        check_image_size(size, images.is_large)
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def _network_count(split: str, num_nets: int | None, is_large: bool) -> int:
    sizes = {**SIZES, **dict.fromkeys(FAMILIES_SPLITS, FAMILIES_SIZE), ZOO: len(zoo_names())}
    given, (split, family) = split, family_split(split)
    if split not in sizes:
        raise EvaluationError(f"unknown split {given!r}; there are {', '.join(sizes)}")
    if family is not None and family not in FAMILIES:
        raise EvaluationError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    if is_large and split not in SIZES:
        raise EvaluationError(f"the networks of split {split!r} are for 32 x 32 images")
    if num_nets is None:
        return sizes[split]
    return min(num_nets, sizes[split]) if split in ("predefined", ZOO) else num_nets


def _images(images: ImageSource | None, num_images: int | None, split: str = "test") -> ImageSource:
    if images is None:
        from ghn_fast.data import load_cifar10

        images = load_cifar10(split=split)
    check_source(images)
    return images.first(num_images)


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
        result = self.result
        made = self._made(index)
        model = made.model.to(self.device)
        if result.baseline == "sgd":
            assert self.train is not None
            train_network(model, self.train, result.sgd_steps, result.seed + index)
        if result.norm == "calibrated":
            assert self.train is not None
            calibrate(model, self.train, batch_size=result.batch_size)
        is_batch = result.norm == "batch"
        accuracy = top1(model, self.images, result.batch_size, batch_statistics=is_batch)
        parameters = dict(model.named_parameters())
        size = sum(parameter.numel() for parameter in parameters.values())
        left = sum(parameters[name].numel() for name in made.left if name in parameters)
        seconds = time.perf_counter() - start
        return NetworkResult(index, accuracy, size, seconds, made.name, left)

    @property
    def _node_types(self) -> tuple[str, ...]:
        return NODE_TYPES if self.ghn is None else self.ghn.node_types

    def _made(self, index: int) -> _Made:
        """Network ``index`` with the parameters that are to be evaluated."""
        split, seed, classes = self.result.split, self.result.seed, self.images.num_classes
        is_large = self.images.is_large
        if split in SIZES:
            net_args = sample_net_args(split, seed, index, is_large)
            if self.ghn is not None and self.result.baseline == "ghn":
                return _Made(predicted_network(self.ghn, net_args, is_large))
            return _Made(random_network(net_args, self.images, seed + index))
        with seeded(seed + index):
            if split == ZOO:
                name = zoo_names()[index]
                model, graph = build_zoo_net(name, classes), None
            else:
                whole, family = family_split(split)
                types = self._node_types
                member = sample_member(
                    whole, seed, index, classes, family, with_values=True, types=types
                )
                name, model, graph = member.family, member.model, member.graph
        if self.result.baseline != "ghn":
            return _Made(model, name)
        assert self.ghn is not None
        graph = self.ghn.graph_of(model, graph)
        return _Made(_predict(self.ghn, model, graph), name, (*graph.other, *graph.unused))


class _Made(NamedTuple):
    """A network, its name, and its parameters that were not predicted."""

    model: nn.Module
    name: str = ""
    left: Sequence[str] = ()


def predicted_network(ghn: GHN, net_args: dict[str, Any], is_large: bool) -> nn.Module:
    num_classes = ghn.config.num_classes
    if isinstance(net_args["genotype"], str):
        with seeded(0):
            model = build_net(net_args, num_classes, is_large)
        return _predict(ghn, model)
    ghost = build_ghost(net_args, num_classes, is_large)
    with torch.device(_device(ghn)):
        return predict(ghost, ghn, graph=graph_of(net_args, num_classes, is_large), fill=True)


def random_network(net_args: dict[str, Any], images: ImageSource, seed: int) -> nn.Module:
    with seeded(seed):
        return build_net(net_args, images.num_classes, images.is_large)


@torch.no_grad()
def _predict(ghn: GHN, model: nn.Module, graph: Graph | None = None) -> nn.Module:
    ghn(model, graph)
    return model


@contextmanager
def evaluating(ghn: GHN | None) -> Iterator[None]:
    """The GHN in evaluation mode."""
    if ghn is None:
        yield
        return
    with restored(ghn):
        ghn.eval()
        yield


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
    with one_core_workers(count) as workers:
        yield workers.map


def _device(ghn: GHN | None, device: torch.device | str | None = None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if ghn is None else next(ghn.parameters()).device
