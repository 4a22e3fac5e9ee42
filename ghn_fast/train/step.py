"""One step of training a GHN, as a function for loops of one's own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.ghn import GHN
from ghn_fast.graph import GraphBatch


@dataclass
class StepResult:
    """What a step did.

    Attributes:
        loss: mean cross-entropy over the networks that counted; nan where none did.
        top1: their mean training accuracy, from 0 to 1.
        losses: of each network, in order; not finite for those that were left out.
        errors: {position of a network: why it was left out}.
        gradient_norm: of the GHN before clipping.
        limited: how many networks had their gradient shortened to ``network_clip``.
        updated: False if the step was skipped: no network with a finite loss, or a gradient that
            is not finite.
        seconds: {"predict", "networks", "backward", "update"}: how long each part took.
    """

    loss: float = float("nan")
    top1: float = float("nan")
    losses: list[float] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    gradient_norm: float = float("nan")
    limited: int = 0
    updated: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Outcome:
    """A network's loss and the gradients of its predicted parameters."""

    loss: float
    top1: float = float("nan")
    gradients: list[Tensor | None] = field(default_factory=list)
    norm: float = 0.0
    error: str | None = None


def train_step(
    ghn: GHN,
    models: Sequence[nn.Module],
    graphs: GraphBatch,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    label_smoothing: float = 0.0,
    grad_clip: float = 5.0,
    network_clip: float = 0.0,
    normalise_networks: bool = False,
    image_counts: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    workers: ThreadPoolExecutor | None = None,
) -> StepResult:
    """Predicts the networks' parameters, measures their loss and updates the GHN.

    The networks are run and differentiated one by one, up to their predicted parameters; only
    then follows one backward pass through the GHN. So the memory needed is that of one network
    (or of as many as there are workers), and a network whose loss is not finite, or that runs
    out of memory, is left out instead of spoiling the step.

    Args:
        ghn: in training mode.
        models: networks, for example from :func:`ghn_fast.nets.build_ghost`. Afterwards they have
            their own parameters again, so that keeping them costs no more than before.
        graphs: of the networks.
        images: (B, 3, H, W), as the networks take them.
        labels: (B,) int64.
        optimizer: of the GHN's parameters.
        label_smoothing: of the cross-entropy.
        grad_clip: the largest norm of the GHN's gradient; 0 does not limit it.
        network_clip: a network whose gradient (of its predicted parameters) is longer than so many
            times the step's median is shortened to that, so that a network that explodes does not
            decide the step alone; 0 does not limit it.
        normalise_networks: instead, scale every network's gradient to length 1 over their number,
            so that all of them count alike.
        image_counts: how many images each network gets, the first ones; all where left out.
        autocast: run the networks in this lower precision.
        workers: threads that share the networks; without them one after another.

    Raises:
        ValueError: the GHN is not in training mode.
    """
    if not ghn.training:
        raise ValueError("the GHN is in evaluation mode; call ghn.train() first")
    result = StepResult()
    optimizer.zero_grad(set_to_none=True)
    clock = _Clock(result.seconds)
    own = [dict(module._parameters) for model in models for module in model.modules()]
    ghn(models, graphs)
    predicted = [_detach_predicted(model) for model in models]
    clock.lap("predict")

    counts = image_counts if image_counts is not None else [len(images)] * len(models)

    def run(position: int) -> _Outcome:
        count = counts[position]
        return _run_network(
            models[position],
            predicted[position],
            images[:count],
            labels[:count],
            label_smoothing,
            autocast,
            1 / len(models),
        )

    outcomes = _map(run, len(models), workers)
    clock.lap("networks")
    _collect(result, outcomes)
    good = len(outcomes) - len(result.errors)
    if good > 0:
        if normalise_networks:
            _normalise_networks(outcomes)
        else:
            result.limited = _limit_networks(outcomes, network_clip)
        _backward(predicted, outcomes)
        clock.lap("backward")
        _update(result, ghn, optimizer, grad_clip, scale=len(outcomes) / good)
    modules = (module for model in models for module in model.modules())
    for module, parameters in zip(modules, own, strict=True):
        module._parameters.update(parameters)
    clock.lap("update")
    return result


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = now - self.last
        self.last = now


@dataclass
class _Predicted:
    """A predicted parameter: the tensor in the GHN's graph, and its leaf in the network."""

    source: Tensor
    leaf: Tensor


def _detach_predicted(model: nn.Module) -> list[_Predicted]:
    """Puts leaves in the places of the predicted parameters, so that gradients stop there."""
    predicted = []
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is None or tensor.grad_fn is None:
                continue
            leaf = tensor.detach().requires_grad_()
            module._parameters[name] = leaf  # type: ignore[assignment]
            predicted.append(_Predicted(tensor, leaf))
    return predicted


def _map(
    run: Callable[[int], _Outcome], count: int, workers: ThreadPoolExecutor | None
) -> list[_Outcome]:
    if workers is None:
        return [run(position) for position in range(count)]
    return list(workers.map(run, range(count)))


def _run_network(
    model: nn.Module,
    predicted: Sequence[_Predicted],
    images: Tensor,
    labels: Tensor,
    label_smoothing: float,
    autocast: torch.dtype | None,
    weight: float,
) -> _Outcome:
    """Loss and gradients of one network; its parameters are free for the next step afterwards."""
    try:
        with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        value = loss.item()
        if not torch.isfinite(loss):
            return _Outcome(value, error=f"the loss is {value}")
        (loss * weight).backward()
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return _Outcome(float("nan"), error=f"out of memory: {error}")
    gradients = [parameter.leaf.grad for parameter in predicted]
    norm = _norm(gradients)
    if not math.isfinite(norm):
        return _Outcome(value, error="a gradient is not finite")
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return _Outcome(value, accuracy, gradients, norm)


def _norm(gradients: Sequence[Tensor | None]) -> float:
    norms = torch._foreach_norm([gradient for gradient in gradients if gradient is not None])
    return torch.stack(norms).norm().item()


def _limit_networks(outcomes: Sequence[_Outcome], network_clip: float) -> int:
    """Shortens gradients in place; returns how many."""
    if network_clip <= 0:
        return 0
    good = [outcome for outcome in outcomes if outcome.error is None]
    limit = network_clip * statistics.median(outcome.norm for outcome in good)
    long = [outcome for outcome in good if outcome.norm > limit]
    for outcome in long:
        gradients = [gradient for gradient in outcome.gradients if gradient is not None]
        torch._foreach_mul_(gradients, limit / outcome.norm)
    return len(long)


def _normalise_networks(outcomes: Sequence[_Outcome]) -> None:
    """Scales gradients in place so that those of a network have length 1 over their number."""
    for outcome in outcomes:
        if outcome.error is None and outcome.norm > 0:
            gradients = [gradient for gradient in outcome.gradients if gradient is not None]
            torch._foreach_mul_(gradients, 1 / (len(outcomes) * outcome.norm))


def _is_out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)


def _collect(result: StepResult, outcomes: Sequence[_Outcome]) -> None:
    result.losses = [outcome.loss for outcome in outcomes]
    for position, outcome in enumerate(outcomes):
        if outcome.error is not None:
            result.errors[position] = outcome.error
    good = [outcome for outcome in outcomes if outcome.error is None]
    if good:
        result.loss = sum(outcome.loss for outcome in good) / len(good)
        result.top1 = sum(outcome.top1 for outcome in good) / len(good)


def _backward(predicted: Sequence[Sequence[_Predicted]], outcomes: Sequence[_Outcome]) -> None:
    """One backward pass through the GHN from the gradients of all networks that count."""
    sources: list[Tensor] = []
    gradients: list[Tensor] = []
    for parameters, outcome in zip(predicted, outcomes, strict=True):
        if outcome.error is not None:
            continue
        for parameter, gradient in zip(parameters, outcome.gradients, strict=True):
            if gradient is not None:
                sources.append(parameter.source)
                gradients.append(gradient)
    torch.autograd.backward(sources, gradients)


def _update(
    result: StepResult,
    ghn: GHN,
    optimizer: torch.optim.Optimizer,
    grad_clip: float,
    scale: float,
) -> None:
    """Clips and steps; ``scale`` makes up for the networks that were left out of the mean."""
    gradients = [parameter.grad for parameter in ghn.parameters() if parameter.grad is not None]
    if scale != 1:
        torch._foreach_mul_(gradients, scale)
    norm = nn.utils.clip_grad_norm_(ghn.parameters(), grad_clip if grad_clip > 0 else float("inf"))
    result.gradient_norm = norm.item()
    if torch.isfinite(norm):
        optimizer.step()
        result.updated = True
