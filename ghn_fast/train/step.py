"""One step of training a GHN, as a function for loops of one's own."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast._system.processes import ALONE, Processes
from ghn_fast.ghn import GHN
from ghn_fast.ghn.place.leaves import Leaves
from ghn_fast.graph import Graph, GraphBatch
from ghn_fast.train.denormals import flushed_denormals


@dataclass
class StepResult:
    """What a step did, over all processes that share it.

    Attributes:
        loss: mean cross-entropy over the networks that counted; nan where none did.
        top1: their mean training accuracy, from 0 to 1.
        losses: of each network, process by process, in the order in which each was given its own;
            not finite for those left out.
        own_top1: the training accuracy of each network of this process; nan for those left out.
        errors: {position of a network in ``losses``: why it was left out}.
        gradient_norm: of the GHN before clipping.
        limited: how many networks had their gradient shortened to ``network_clip``.
        images: that networks were run on, each as often as there were networks for it.
        skipped: why the GHN was not updated; None where it was.
        seconds: {"predict", "networks", "backward", "others", "exchange", "update"}: how long each
            part took in this process; "others" is waiting until all have run their networks,
            "exchange" adding up the gradients, "wait", where networks come one by one, waiting for
            them.
    """

    loss: float = float("nan")
    top1: float = float("nan")
    losses: list[float] = field(default_factory=list)
    own_top1: list[float] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    gradient_norm: float = float("nan")
    limited: int = 0
    images: int = 0
    skipped: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def updated(self) -> bool:
        return self.skipped is None


@dataclass
class _Summary:
    """What the other processes need to know of a network."""

    loss: float
    top1: float = float("nan")
    norm: float = 0.0
    images: int = 0
    error: str | None = None


@dataclass
class _Outcome(_Summary):
    """A network's gradients, and its measurements while they may still be on their way.

    ``measured`` is (3,): loss, top-1 and norm of the gradients, on the network's device.
    """

    gradients: list[Tensor | None] = field(default_factory=list)
    measured: Tensor | None = None

    def summary(self) -> _Summary:
        return _Summary(self.loss, self.top1, self.norm, self.images, self.error)


@flushed_denormals()
@torch.enable_grad()
def train_step(
    ghn: GHN,
    models: Sequence[nn.Module],
    graphs: GraphBatch,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    targets: Tensor | Sequence[Tensor] | None = None,
    label_smoothing: float = 0.0,
    predicted_decay: float = 0.0,
    grad_clip: float = 5.0,
    network_clip: float = 0.0,
    normalise_networks: bool = False,
    autocast: torch.dtype | None = None,
    workers: ThreadPoolExecutor | None = None,
    accumulate: int = 1,
    processes: Processes = ALONE,
) -> StepResult:
    """Predicts the networks' parameters, measures their loss and updates the GHN.

    The networks are run and differentiated one by one, up to their predicted parameters; only
    then follows one backward pass through the GHN. So the memory needed is that of one network
    (or of as many as there are workers), and a network whose loss is not finite, or that runs
    out of memory, is left out instead of spoiling the step. Where the GHN itself runs out of
    memory, the networks it was predicting are left out, or the step is skipped.

    Denormal numbers are zero meanwhile (:func:`ghn_fast.train.denormals.flushed_denormals`).

    On a GPU the host waits twice: for what was measured of the networks, once for each part, and
    for the norm of the GHN's gradient.

    Args:
        ghn: in training mode.
        models: networks, for example from :func:`ghn_fast.nets.build_ghost`. Afterwards, and after
            an error, they have their own parameters again, so that keeping them costs no more than
            before.
        graphs: of the networks.
        images: (B, 3, H, W), as the networks take them, or one such batch for each network; for
            speed channels last on a CPU, but not on a GPU
            (:func:`ghn_fast.train.images_to_device`).
        labels: (B,) int64, or as many for each network as it has images.
        optimizer: of the GHN's parameters.
        targets: (B, C) shares of the classes, or as many for each network, that the cross-entropy
            is with instead of the labels, as :func:`ghn_fast.train.teacher.mixed_targets` gives
            them; the accuracy stays that by the labels.
        label_smoothing: of the labels, or of the targets, in the cross-entropy.
        predicted_decay: the weight, beside a network's cross-entropy, of the sum of the norms of
            its predicted parameters (3e-5 in the code of arXiv 2303.04143). ``StepResult.loss``
            is without it.
        grad_clip: the largest norm of the GHN's gradient; 0 does not limit it.
        network_clip: a network whose gradient (of its predicted parameters) is longer than so many
            times the median is shortened to that, so that a network that explodes does not
            decide the step alone; 0 does not limit it. The median is that of the networks that
            are predicted together, in all processes.
        normalise_networks: instead, scale every network's gradient to length 1, so that all of
            them count alike.
        autocast: run the networks in this lower precision, whatever the step is called in.
        workers: threads that share the networks; without them one after another.
        accumulate: predict the networks in so many parts, one after another, whose gradients add
            up: the same step with the GHN's memory of one part, but that ``network_clip`` compares
            the networks of a part.
        processes: that share the step, each with networks of its own; the gradient is that of the
            mean loss over all networks of all processes. All of them have to call this function,
            with the same GHN (:meth:`Processes.broadcast`).

    Raises:
        ValueError: the GHN is not in training mode, or there is another number of batches of
            images or labels than of networks, or (on CPUs) labels are not the networks' classes.

    Examples:
        >>> from ghn_fast.nets import build_ghost
        >>> graph = ghn_fast.DeepNets1M(split="train")[0]
        >>> model = build_ghost(graph.net_args, 10, is_imagenet_input=False)
        >>> ghn = ghn_fast.ghn2(num_classes=10, hid=8, max_shape=(8, 8, 7, 7)).train()
        >>> optimizer = torch.optim.AdamW(ghn.parameters(), lr=1e-3)
        >>> pixels, labels = loader[0]
        >>> batch = ghn_fast.GraphBatch([graph])
        >>> ghn_fast.train_step(ghn, [model], batch, [pixels], [labels], optimizer).updated
        True
    """
    x, y = (_for_each(tensors, len(models)) for tensors in (images, labels))
    t = y if targets is None else _for_each(targets, len(models))
    objective = _Objective(label_smoothing, predicted_decay, autocast)
    step = _Step(ghn, optimizer, grad_clip, processes)
    clock = step.clock
    summaries: list[list[_Summary]] = [[] for _ in range(processes.size)]
    is_whole = True

    def run(position: int, leaves: Sequence[Tensor]) -> _Outcome:
        return objective.run(models[position], leaves, x[position], y[position], t[position])

    with _own_parameters(models), ghn.without_autocast():
        for part in _parts(len(models), accumulate):
            chosen = [models[position] for position in part]
            leaves, failure = _predict(ghn, chosen, graphs, part)
            clock.lap("predict")
            if leaves is not None:
                outcomes = _run_all(run, part, leaves.by_model, workers)
            else:
                outcomes = [_Outcome(float("nan"), error=failure) for _ in part]
            _read(outcomes)
            clock.lap("networks")
            together = processes.gather([outcome.summary() for outcome in outcomes])
            for summary, found in zip(summaries, together, strict=True):
                summary += found
            clock.lap("others")
            if normalise_networks:
                _normalise_networks(outcomes)
            else:
                all_found = [summary for found in together for summary in found]
                step.result.limited += _limit_networks(outcomes, all_found, network_clip)
            is_whole &= _backward(ghn, leaves, outcomes)
            clock.lap("backward")
        return step.finish(summaries, all(processes.gather(is_whole)))


class Arrival(NamedTuple):
    """A network of a step, and its own images (B, 3, H, W) and labels (B,).

    ``targets`` are those of :func:`train_step`; the labels where there are no others.
    """

    model: nn.Module
    graph: Graph
    images: Tensor
    labels: Tensor
    targets: Tensor


@flushed_denormals()
@torch.enable_grad()
def train_step_as_they_come(
    ghn: GHN,
    networks: Iterable[Arrival],
    optimizer: torch.optim.Optimizer,
    *,
    label_smoothing: float = 0.0,
    predicted_decay: float = 0.0,
    grad_clip: float = 5.0,
    autocast: torch.dtype | None = None,
    processes: Processes = ALONE,
) -> StepResult:
    """:func:`train_step` for networks that are not known beforehand.

    Each is predicted, run and differentiated down to the GHN before the next one is asked for, so
    that several processes can take a step's networks from one heap, each as soon as it is free.
    Every network's gradient is scaled to length 1 (``normalise_networks``).
    """
    objective = _Objective(label_smoothing, predicted_decay, autocast)
    step = _Step(ghn, optimizer, grad_clip, processes)
    clock = step.clock
    outcomes: list[_Outcome] = []
    is_whole = True
    for model, graph, images, labels, targets in networks:
        clock.lap("wait")
        with _own_parameters([model]), ghn.without_autocast():
            leaves, failure = _predict(ghn, [model], GraphBatch([graph]), range(1))
            clock.lap("predict")
            if leaves is None:
                outcomes.append(_Outcome(float("nan"), error=failure))
                continue
            (own,) = leaves.by_model
            outcome = objective.run(model, own, images, labels, targets)
            _read([outcome])
            clock.lap("networks")
            _normalise_networks([outcome])
            is_whole &= _backward(ghn, leaves, [outcome])
            outcome.gradients = []
            outcomes.append(outcome)
            clock.lap("backward")
    clock.lap("wait")
    found = processes.gather(([outcome.summary() for outcome in outcomes], is_whole))
    summaries, whole = zip(*found, strict=True)
    clock.lap("others")
    return step.finish(summaries, all(whole))


class _Step:
    """A step that has begun, from no gradients on."""

    def __init__(
        self,
        ghn: GHN,
        optimizer: torch.optim.Optimizer,
        grad_clip: float,
        processes: Processes,
    ) -> None:
        if not ghn.training:
            raise ValueError("the GHN is in evaluation mode; call ghn.train() first")
        self.ghn, self.optimizer = ghn, optimizer
        self.grad_clip, self.processes = grad_clip, processes
        self.result = StepResult()
        optimizer.zero_grad(set_to_none=True)
        self.clock = _Clock(self.result.seconds)

    def finish(self, summaries: Sequence[Sequence[_Summary]], is_whole: bool) -> StepResult:
        """Adds up the gradients of all processes and updates the GHN, unless something failed."""
        result, processes = self.result, self.processes
        _collect(result, [summary for found in summaries for summary in found])
        result.own_top1 = [summary.top1 for summary in summaries[processes.rank]]
        good = len(result.losses) - len(result.errors)
        if not is_whole:
            result.skipped = "memory ran out in the GHN's backward pass"
        elif good == 0:
            result.skipped = "no network has a finite loss and gradient"
        else:
            processes.sum_gradients(self.ghn)
            self.clock.lap("exchange")
            self._update(scale=1 / good)
        self.clock.lap("update")
        return result

    def _update(self, scale: float) -> None:
        """Clips and steps; ``scale`` makes the sum over networks that count a mean."""
        parameters = list(self.ghn.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)
        limit = self.grad_clip if self.grad_clip > 0 else float("inf")
        self.result.gradient_norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if math.isfinite(self.result.gradient_norm):
            self.optimizer.step()
        else:
            self.result.skipped = "the gradient is not finite"


@contextmanager
def _own_parameters(models: Sequence[nn.Module]) -> Iterator[None]:
    """Afterwards, whatever happens, the models have the parameters that they had before."""
    modules = [module for model in models for module in model.modules()]
    own = [dict(module._parameters) for module in modules]
    try:
        yield
    finally:
        for module, parameters in zip(modules, own, strict=True):
            module._parameters.update(parameters)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def _parts(count: int, accumulate: int) -> list[range]:
    """Positions in so many parts of nearly equal length."""
    bounds = [count * part // accumulate for part in range(accumulate + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def _predict(
    ghn: GHN, models: Sequence[nn.Module], graphs: GraphBatch, part: range
) -> tuple[Leaves | None, str | None]:
    """The predicted parameters of the models, or why there are none."""
    if not models:
        return None, None
    whole = len(part) == len(graphs)
    batch = graphs if whole else GraphBatch([graphs[position] for position in part])
    try:
        return ghn.attach_leaves(models, batch), None
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return None, f"the GHN ran out of memory: {error}"


def _for_each(tensors: Tensor | Sequence[Tensor], networks: int) -> Sequence[Tensor]:
    """One tensor for each network."""
    if isinstance(tensors, Tensor):
        return [tensors] * networks
    if len(tensors) != networks:
        raise ValueError(f"{len(tensors)} batches of images or labels for {networks} networks")
    return tensors


def _run_all(
    run: Callable[[int, Sequence[Tensor]], _Outcome],
    part: range,
    leaves: Sequence[Sequence[Tensor]],
    workers: ThreadPoolExecutor | None,
) -> list[_Outcome]:
    """Runs the networks of a part; after an error no worker is left with one of them."""
    if workers is None:
        return list(map(run, part, leaves))
    runs = [workers.submit(run, *each) for each in zip(part, leaves, strict=True)]
    try:
        return [future.result() for future in runs]
    finally:
        for future in runs:
            future.cancel()
        wait(runs)


@dataclass(frozen=True)
class _Objective:
    """What networks are differentiated by; its values are arguments of :func:`train_step`."""

    label_smoothing: float
    predicted_decay: float
    autocast: torch.dtype | None

    @flushed_denormals()
    @torch.enable_grad()
    def run(
        self,
        model: nn.Module,
        leaves: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        targets: Tensor,
    ) -> _Outcome:
        """Loss and gradients of one network, whose parameters are free afterwards."""
        lower, device = self.autocast, images.device.type
        try:
            with torch.autocast(device, dtype=lower, enabled=lower is not None):
                logits = model(images)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            wanted = targets.to(logits.dtype) if targets.is_floating_point() else targets
            loss = self._cross_entropy(logits, wanted)
            loss.backward()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            return _Outcome(float("nan"), images=len(images), error=f"out of memory: {error}")
        if self.predicted_decay > 0:
            _add_decay(leaves, self.predicted_decay)
        gradients = [leaf.grad for leaf in leaves]
        top1 = (logits.argmax(dim=1) == labels).to(loss.dtype).mean()
        measured = torch.stack((loss.detach(), top1, _norm(gradients)))
        return _Outcome(float("nan"), images=len(images), gradients=gradients, measured=measured)

    def _cross_entropy(self, logits: Tensor, wanted: Tensor) -> Tensor:
        try:
            return F.cross_entropy(logits, wanted, label_smoothing=self.label_smoothing)
        except IndexError as error:  # on CPUs; looking beforehand would have the host wait for GPUs
            raise ValueError(
                f"labels go from {wanted.min()} to {wanted.max()}, and the network has "
                f"{logits.shape[1]} classes, numbered from 0: make it and the GHN for as many as "
                "the data set has"
            ) from error


@torch.no_grad()
def _add_decay(leaves: Sequence[Tensor], decay: float) -> None:
    """Adds the gradient of ``decay`` times the sum of the norms of the leaves."""
    pairs = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    norms = torch._foreach_norm([leaf for leaf, _ in pairs])
    # A parameter that is zero has the subgradient zero.
    torch._foreach_clamp_min_(norms, torch.finfo(torch.float32).tiny)
    directions = torch._foreach_div([leaf for leaf, _ in pairs], norms)
    torch._foreach_add_([gradient for _, gradient in pairs], directions, alpha=decay)


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    norms = torch._foreach_norm([gradient for gradient in gradients if gradient is not None])
    return torch.stack(norms).norm()


def _read(outcomes: Sequence[_Outcome]) -> None:
    """Fetches what was measured of all networks at once: the host waits for a GPU here only.

    A network whose loss or gradient is not finite is marked as left out.
    """
    there = [outcome for outcome in outcomes if outcome.measured is not None]
    if not there:
        return
    table = torch.stack([outcome.measured for outcome in there if outcome.measured is not None])
    for outcome, (loss, top1, norm) in zip(there, table.tolist(), strict=True):
        outcome.loss = loss
        if not math.isfinite(loss):
            outcome.error = f"the loss is {loss}"
        elif not math.isfinite(norm):
            outcome.error = "a gradient is not finite"
        else:
            outcome.top1, outcome.norm = top1, norm


def _limit_networks(
    outcomes: Sequence[_Outcome], together: Sequence[_Summary], network_clip: float
) -> int:
    """Shortens this process's gradients in place; returns how many of all are too long."""
    good = [summary.norm for summary in together if summary.error is None]
    if network_clip <= 0 or not good:
        return 0
    limit = network_clip * statistics.median(good)
    for outcome in outcomes:
        if outcome.error is None and outcome.norm > limit:
            gradients = [gradient for gradient in outcome.gradients if gradient is not None]
            torch._foreach_mul_(gradients, limit / outcome.norm)
    return sum(norm > limit for norm in good)


def _normalise_networks(outcomes: Sequence[_Outcome]) -> None:
    """Scales gradients in place so that those of each network have length 1."""
    for outcome in outcomes:
        if outcome.error is None and outcome.norm > 0:
            gradients = [gradient for gradient in outcome.gradients if gradient is not None]
            torch._foreach_mul_(gradients, 1 / outcome.norm)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)


def _collect(result: StepResult, outcomes: Sequence[_Summary]) -> None:
    result.losses = [outcome.loss for outcome in outcomes]
    result.images = sum(outcome.images for outcome in outcomes)
    for position, outcome in enumerate(outcomes):
        if outcome.error is not None:
            result.errors[position] = outcome.error
    good = [outcome for outcome in outcomes if outcome.error is None]
    if good:
        result.loss = sum(outcome.loss for outcome in good) / len(good)
        result.top1 = sum(outcome.top1 for outcome in good) / len(good)


def _backward(ghn: GHN, leaves: Leaves | None, outcomes: Sequence[_Outcome]) -> bool:
    """One backward pass through the GHN from the gradients of all networks that count.

    Returns:
        False if memory ran out, so that the gradients are incomplete.
    """
    if leaves is None or all(outcome.error is not None for outcome in outcomes):
        return True
    for tensors, outcome in zip(leaves.by_model, outcomes, strict=True):
        if outcome.error is not None:
            for tensor in tensors:
                tensor.grad = None
    try:
        leaves.backward()
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        ghn.zero_grad(set_to_none=True)
        return False
    return True
