"""Runs the pictures, solves, and writes what was solved to the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast._system.batches import batches_of, logits_of, run, split_batch
from ghn_fast._system.restored import restored
from ghn_fast.graph import Graph, TraceError

HELD_OUT = 0.2
"""Share of the pictures by which the ridge and the scale are chosen."""
RIDGES = tuple(10 ** (half / 2) for half in range(-10, 3))
"""Tried as multiples of the mean variance of the features."""
MOST_HELD_OUT, MOST_FEATURES, MOST_LOGITS = 4096, 2**24, 2**21
"""Pictures that are kept at most, and numbers of their features and logits."""
SCALES, HALVINGS = (1e-2, 1e3), 16
"""Of the logits; found to a relative 2e-4."""
ABSENT_LOGIT = -10.0
"""Of classes without a picture, where the others' logits have a mean of 0."""


@dataclass(frozen=True)
class HeadReport:
    """What :func:`fit_head_` did.

    Attributes:
        layer: the output layer's name.
        classes, features: its outputs and inputs.
        pictures: how many it was fitted to; ``held_out`` of them were left out of the fit that
            chose ``ridge`` and ``scale`` and that the figures below are of, and are in the final.
        ridge: of the final fit, as ``alpha`` of scikit-learn's ``Ridge``.
        scale: by which its weight and bias were multiplied, so that a softmax is calibrated.
        accuracy: top-1 on the held-out pictures, percent; NaN without any.
        balanced_accuracy: the mean of the classes' accuracies, percent.
        loss: cross-entropy of the held-out pictures, all classes weighing alike unless asked.
        absent: classes that the pictures do not have; their logits are 10 below the others' mean
            (without a bias those of a mean picture), so that they are not predicted.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> report = ghn_fast.fit_head_(model, loader)
        >>> report.layer, report.classes, report.features
        ('fc', 10, 512)
    """

    layer: str
    classes: int
    features: int
    pictures: int
    held_out: int
    ridge: float
    scale: float
    accuracy: float = float("nan")
    balanced_accuracy: float = float("nan")
    loss: float = float("nan")
    absent: tuple[int, ...] = ()

    def __str__(self) -> str:
        fitted = (
            f"{self.layer} ({self.features} features, {self.classes} classes) fitted to "
            f"{self.pictures:,} pictures"
        )
        if not self.held_out:
            return fitted
        present = self.classes - len(self.absent)
        return (
            f"{fitted}: {self.accuracy:.1f} % of {self.held_out:,} held-out ones "
            f"(chance is {100 / max(present, 1):.1f} %)"
        )


@torch.no_grad()
def fit_head_(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    ridge: float | None = None,
    held_out: float = HELD_OUT,
    balance: bool = True,
    layer: str | None = None,
) -> HeadReport:
    """Fits a classifier's output layer to pictures and labels in one pass, in place.

    The layer's weight W and bias b minimise ``|F W + b - Y|^2 + ridge |W|^2``, with the features F
    that the layer is fed in evaluation mode and one-hot labels Y. Only sums over the pictures are
    kept, in float64, and a bounded number of held-out ones: memory does not grow with theirs. Both
    are then multiplied by the number that gives the softmax of held-out pictures the smallest
    cross-entropy (Guo et al., arXiv 1706.04599).

    The rest of the model is untouched. Give a model with batch norm its statistics before
    (:func:`ghn_fast.calibrate_`): features of a network that was only predicted are far off.

    Args:
        model: a classifier that ends in a linear layer or a 1x1 convolution, of any number of
            outputs.
        loader: of (inputs, labels) with labels (B,) from 0; dictionaries need ``labels``.
        ridge: as ``alpha`` of scikit-learn's ``Ridge``; by default the best for held-out pictures.
        held_out: share of each class that the choice is made by; the fit that is kept is to all.
            0 needs ``ridge``.
        balance: every class weighs alike, however many pictures it has: the means of all classes
            count the same, and the scatter within classes is pooled. With as many pictures of
            each class this is plain ridge regression, which ``balance=False`` always is.
        layer: name of the output layer; by default the one that nothing with parameters follows
            in the model's graph (:func:`output_layers`). Of several whose mean the model returns,
            as it does where one is for distillation, the first is fitted, and the others become
            zero.

    Returns:
        A :class:`HeadReport`.

    Raises:
        ValueError: no single output layer, or one whose weight is computed from others; labels
            that are not its classes; features that are not finite; too few pictures; a ridge that
            is too small for them. The model is as it was then.
        TypeError: a data set instead of a loader of batches, or batches of other than tensors.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> model = ghn_fast.calibrate_(model, loader)
        >>> print(ghn_fast.fit_head_(model, loader))
        fc (512 features, 10 classes) fitted to 64 pictures: ...
    """
    if not 0 <= held_out < 1 or (ridge is not None and ridge < 0):
        raise ValueError("held_out must be from 0 to below 1, and ridge not negative")
    if held_out == 0 and ridge is None:
        raise ValueError("held_out=0 leaves nothing to choose the ridge by: pass ridge= too")
    with restored(model):
        model.eval()
        head, features, inputs = _collect(model, loader, held_out, layer)
        weight, bias, report = _fit(head, features, ridge, balance)
        kept = [value.clone() for value in head.values()]
        head.write(weight, bias)
        try:
            head.make_up(model, inputs)
            _check(model, head, inputs)
        except BaseException:
            head.restore(kept)
            raise
    return report


class _Head:
    """An output layer: ``features`` are what it was last fed, ``logits`` what it made of them."""

    def __init__(self, model: nn.Module, name: str, *others: str) -> None:
        self.name = name
        try:
            self.module: Any = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"the model has no layer {name!r}: {error}") from None
        self.others: list[Any] = [model.get_submodule(other) for other in others]
        is_linear = isinstance(self.module, nn.Linear)
        is_conv = isinstance(self.module, nn.Conv2d) and self.module.kernel_size == (1, 1)
        if not (is_linear or (is_conv and self.module.groups == 1)):
            kind = type(self.module).__name__
            raise ValueError(
                f"the output layer {name!r} is a {kind}, not linear or 1x1 convolution"
            )
        if not all(isinstance(value, nn.Parameter) for value in self.values()):
            raise ValueError(
                f"the weight of {name!r} is computed from other parameters (weight normalisation, "
                "for example); fit it before it is parametrised so"
            )
        everywhere = model.named_parameters(remove_duplicate=False)
        uses = [use for use, value in everywhere if value is self.module.weight]
        if len(uses) > 1:
            raise ValueError(
                f"the weight of {name!r} is that of other layers too ({', '.join(uses)}): fitting "
                "it would change what it is fed"
            )
        self.classes, self.width = self.values()[0].shape[:2]
        self.features = self.logits = torch.empty(0)

    def values(self) -> list[Tensor]:
        layers = (self.module, *self.others)
        return [v for m in layers for v in (m.weight, m.bias) if v is not None]

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        for value in self.values():
            value.zero_()
        self.module.weight.copy_(weight.reshape(self.module.weight.shape))
        if bias is not None:
            self.module.bias.copy_(bias)

    def make_up(self, model: nn.Module, inputs: Any) -> None:
        """For the share that the layer has of a mean, so that the model returns its logits."""
        if self.others:
            share = self.run(model, inputs).norm() / self.logits.norm()
            for value in self.values():
                value.div_(share)

    def restore(self, kept: list[Tensor]) -> None:
        for value, old in zip(self.values(), kept, strict=True):
            value.copy_(old)

    def run(self, model: nn.Module, inputs: Any) -> Tensor:
        """The model's output; keeps what the layer was fed and gave."""
        self.features = torch.empty(0)

        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            self.features, self.logits = self._pooled(arguments[0]), output

        with self.module.register_forward_hook(keep):
            output = run(model, inputs)
        if not self.features.numel():
            raise ValueError(f"the model does not run its layer {self.name!r}: pass layer=")
        return logits_of(output)

    def _pooled(self, fed: Tensor) -> Tensor:
        """(B, D); of a convolution the mean over positions, as of its outputs it is taken."""
        if isinstance(self.module, nn.Conv2d):
            return fed.mean((2, 3), dtype=torch.float32)
        if fed.numel() != len(fed) * self.width:
            raise ValueError(
                f"the layer {self.name!r} is fed {tuple(fed.shape)}: an output at each of several "
                "positions has no label of its own"
            )
        return fed.reshape(len(fed), self.width)


def output_layers(model: nn.Module, inputs: Any) -> list[str]:
    """The name of the layer whose outputs no further parameter changes.

    Of several, as of auxiliary classifiers or of a second task, the one that gives what the model
    returns first in evaluation mode, or all of those whose mean it is.

    Raises:
        ValueError: there is none.
    """
    try:
        graph = Graph.from_model(model, inputs)
    except TraceError as error:
        raise TraceError(
            f"{error}\nfit_head_ calls it with what the loader has to give: batches of its inputs"
        ) from error
    if len(graph.heads) > 1:
        return _names(graph, [head - (graph.nodes[head].type == "bias") for head in graph.heads])
    ends = _ends(graph)
    if len(ends) == 1:
        return ends
    given: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in ends:
            keep = partial(_keep, given, name)
            stack.enter_context(model.get_submodule(name).register_forward_hook(keep))
        output = logits_of(run(model, inputs))
    same = [name for name, value in given.items() if _same(value, output)]
    if not same:
        raise ValueError(
            f"the model's first output is not that of a single layer (layers that nothing with "
            f"parameters follows: {', '.join(ends) or 'none'}): pass layer="
        )
    return same[-1:]


def _ends(graph: Graph) -> list[str]:
    followed = {source for source, target in graph.edges.tolist() if _is_weight(graph, target)}
    for source, target in reversed(graph.edges.tolist()):
        if target in followed:
            followed.add(source)
    nodes = enumerate(graph.nodes)
    return _names(graph, [i for i, node in nodes if node.type == "conv" and i not in followed])


def _names(graph: Graph, weights: Iterable[int]) -> list[str]:
    names = (str(graph.nodes[weight].parameter) for weight in weights)
    return [name.partition(".parametrizations")[0].removesuffix(".weight") for name in names]


def _keep(given: dict[str, Tensor], name: str, *arguments: Any) -> None:
    given[name] = arguments[-1]


def _same(value: Any, output: Tensor) -> bool:
    is_one = isinstance(value, Tensor) and value.numel() == output.numel()
    return is_one and torch.equal(value.reshape(output.shape), output)


def _is_weight(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return node.parameter is not None and node.type != "bias"


@dataclass
class _Moments:
    """Sums over pictures: per class their number (C,) and features (C, D), and products (D, D)."""

    counts: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def zeros(cls, classes: int, width: int, device: torch.device) -> _Moments:
        # MPS has no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        made = [torch.zeros(s, dtype=torch.float64, device=place) for s in _shapes(classes, width)]
        return cls(*made)

    def add(self, features: Tensor, labels: Tensor, sign: float = 1.0) -> None:
        wide = features.to(self.sums)
        self.counts.index_add_(0, labels, torch.full_like(labels, sign, dtype=torch.float64))
        self.sums.index_add_(0, labels, wide, alpha=sign)
        self.products.addmm_(wide.T, wide, alpha=sign)

    def without(self, features: Tensor, labels: Tensor) -> _Moments:
        rest = replace(self, **{name: value.clone() for name, value in vars(self).items()})
        rest.add(features, labels, -1.0)
        return rest


def _shapes(classes: int, width: int) -> tuple[tuple[int, ...], ...]:
    return (classes,), (classes, width), (width, width)


class _HeldOut:
    """A share of each class's pictures, evenly; a random part where they become too many."""

    def __init__(self, head: _Head, share: float, device: torch.device) -> None:
        self.share = share
        limit = min(MOST_HELD_OUT, MOST_FEATURES // head.width, MOST_LOGITS // head.classes)
        self.features = torch.empty(limit, head.width, device=device)
        self.labels = torch.empty(limit, dtype=torch.int64, device=device)
        self.seen = 0
        self._of_class = [0] * head.classes
        self._generator = torch.Generator().manual_seed(0)

    def add(self, features: Tensor, labels: Tensor) -> None:
        for row, label in enumerate(labels.tolist()):
            before = self._of_class[label]
            self._of_class[label] += 1
            # The first of a class is never held out; small classes take turns.
            turn = before + label
            if before == 0 or int((turn + 1) * self.share) == int(turn * self.share):
                continue
            place = self.seen
            if place >= len(self.labels):
                place = int(torch.randint(self.seen + 1, (), generator=self._generator))
            self.seen += 1
            if place < len(self.labels):
                self.features[place], self.labels[place] = features[row], label

    def taken(self) -> tuple[Tensor, Tensor]:
        number = min(self.seen, len(self.labels))
        return self.features[:number], self.labels[:number]


@dataclass
class _Features:
    moments: _Moments
    held: tuple[Tensor, Tensor]


def _collect(
    model: nn.Module, loader: Iterable[Any], share: float, layer: str | None
) -> tuple[_Head, _Features, Any]:
    """Runs all pictures once; also gives the last batch's inputs."""
    head = moments = held = inputs = None
    for batch in batches_of(loader):
        inputs, labels = split_batch(batch)
        if head is None:
            names = [layer] if layer is not None else output_layers(model, _few(inputs))
            head = _Head(model, *names)
        head.run(model, inputs)
        features = head.features
        if moments is None or held is None:
            moments = _Moments.zeros(head.classes, head.width, features.device)
            held = _HeldOut(head, share, moments.sums.device)
        features = features.to(moments.sums.device)
        labels = _checked(labels, features, head).to(features.device)
        moments.add(features, labels)
        held.add(features, labels)
    assert head is not None
    assert moments is not None
    assert held is not None
    return head, _Features(moments, held.taken()), inputs


def _few(inputs: Any) -> Any:
    """Two of a batch: tracing needs no more."""
    if isinstance(inputs, Mapping):
        return {key: v[:2] if isinstance(v, Tensor) else v for key, v in inputs.items()}
    return inputs[:2]


def _checked(labels: Tensor | None, features: Tensor, head: _Head) -> Tensor:
    if labels is None:
        raise ValueError("the loader gives no labels: it has to give (inputs, labels)")
    labels = torch.as_tensor(labels)
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be whole numbers of shape ({len(features)},), one for each input, not "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(
            f"labels go from {low} to {high}, and the first class is 0: leave pictures out whose "
            "label says to ignore them, as -1 may"
        )
    if high >= head.classes:
        raise ValueError(
            f"labels go from {low} to {high}, and the output layer {head.name!r} has "
            f"{head.classes} classes: build the model with num_classes={high + 1} or more"
        )
    if not features.isfinite().all():
        raise ValueError(
            f"what the output layer {head.name!r} is fed is not finite; batch norm needs its "
            "statistics first: ghn_fast.calibrate_(model, loader)"
        )
    return labels.long()


@dataclass
class _Problem:
    """Normal equations: ``(scatter + ridge) W = right``, then ``b = shares - means W``.

    Attributes:
        scatter: (D, D); ``right`` (D, C); ``means`` (D,); ``shares`` (C,).
    """

    scatter: Tensor
    right: Tensor
    means: Tensor
    shares: Tensor

    @classmethod
    def of(cls, moments: _Moments, balance: bool, has_bias: bool) -> _Problem:
        counts = moments.counts
        present = counts > 0
        centres = moments.sums / counts.clamp(min=1).unsqueeze(1)
        weights = counts.sum() / present.sum() * present if balance else counts
        shares = weights / weights.sum()
        means = shares @ centres if has_bias else torch.zeros_like(centres[0])
        apart = centres - means
        within = moments.products - (centres.T * counts) @ centres
        return cls(within + (apart.T * weights) @ apart, apart.T * weights, means, shares)

    @property
    def unit(self) -> float:
        """The mean of the features' summed squares, which ridges are relative to."""
        return float(self.scatter.diagonal().mean())

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W (C, D) and b (C,), logits that have a mean of 0."""
        shifted = self.scatter.clone()
        shifted.diagonal().add_(max(ridge, 1e-14 * self.unit))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:
            raise ValueError(
                f"a ridge of {ridge:.3g} is too small to tell the features apart, whose mean "
                f"square is {self.unit:.3g}: pass a larger ridge=, or none, or run "
                "ghn_fast.calibrate_(model, loader) first"
            )
        solution = torch.cholesky_solve(self.right, factor)
        bias = self.shares - self.means @ solution
        return solution.T, bias - bias[self.shares > 0].mean()


def _fit(
    head: _Head, features: _Features, ridge: float | None, balance: bool
) -> tuple[Tensor, Tensor | None, HeadReport]:
    moments, (held, labels) = features.moments, features.held
    has_bias = head.module.bias is not None
    pictures = int(moments.counts.sum())
    absent = moments.counts == 0
    whole = _Problem.of(moments, balance, has_bias)
    if not whole.unit > 0:
        raise ValueError("all pictures have the same features: there is nothing to tell them by")
    choice = _Choice(ridge=ridge or 0.0)
    if len(labels):
        training = _Problem.of(moments.without(held, labels), balance, has_bias)
        share = (pictures - len(labels)) / pictures
        given = [r * training.unit for r in RIDGES] if ridge is None else [ridge * share]
        tried = [
            _Choice.by(training.solve(r), r, held.to(whole.right), labels, balance, has_bias)
            for r in given
        ]
        choice = min(tried, key=lambda other: other.loss)
        # The same share of the variance of all pictures as was best for a part of them.
        choice.ridge = choice.ridge / training.unit * whole.unit if ridge is None else ridge
    elif ridge is None:
        raise ValueError(
            f"{pictures} pictures are too few to hold some out; give more, or ridge= to fit_head_"
        )
    weight, bias = whole.solve(choice.ridge)
    weight, bias = choice.scale * weight, choice.scale * bias
    bias[absent] = ABSENT_LOGIT
    if not has_bias:
        # Against the mean picture, which a layer without a bias has no other way to speak of.
        mean = moments.sums.sum(0) / pictures
        weight[absent] = ABSENT_LOGIT * mean / (mean @ mean)
    report = HeadReport(
        layer=head.name,
        classes=head.classes,
        features=head.width,
        pictures=pictures,
        held_out=len(labels),
        ridge=choice.ridge,
        scale=choice.scale,
        accuracy=choice.accuracy,
        balanced_accuracy=choice.balanced_accuracy,
        loss=choice.loss,
        absent=tuple(absent.nonzero().flatten().tolist()),
    )
    return weight, bias if has_bias else None, report


@dataclass
class _Choice:
    """A ridge, the scale that suits it best, and what they are worth on held-out pictures."""

    ridge: float
    scale: float = 1.0
    loss: float = float("nan")
    accuracy: float = float("nan")
    balanced_accuracy: float = float("nan")

    @classmethod
    def by(
        cls,
        solved: tuple[Tensor, Tensor],
        ridge: float,
        features: Tensor,
        labels: Tensor,
        balance: bool,
        has_bias: bool,
    ) -> _Choice:
        weight, bias = solved
        logits = features @ weight.T + (bias if has_bias else 0.0)
        counts = torch.bincount(labels, minlength=logits.shape[1])
        alike = 1 / (counts[labels] * (counts > 0).sum()).double()
        weights = alike if balance else torch.full_like(alike, 1 / len(labels))
        scale = best_scale(logits, labels, weights)
        right = (logits.argmax(1) == labels).double()
        losses = nn.functional.cross_entropy(scale * logits, labels, reduction="none")
        return cls(
            ridge,
            scale,
            float(weights @ losses),
            100 * float(right.mean()),
            100 * float(alike @ right),
        )


def best_scale(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """What to multiply logits (N, C) by for the smallest cross-entropy, weighted by (N,).

    As if one picture more had been seen, of every class alike: where all N are told rightly the
    cross-entropy alone has no end, and the softmax would be certain after a handful of pictures
    (Platt 1999, section 2.2, smooths by the number of pictures too). The cross-entropy is convex
    in the scale, so its derivative has one zero, found by halving.
    """
    low, high = map(math.log, SCALES)
    logits = logits.float()
    own = logits.gather(1, labels[:, None]).squeeze(1)
    own = (len(labels) * own + logits.mean(1)) / (len(labels) + 1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = ((math.exp(middle) * logits).softmax(1) * logits).sum(1)
        if float(weights @ (expected - own).to(weights)) > 0:
            high = middle
        else:
            low = middle
    return math.exp(low)


def _check(model: nn.Module, head: _Head, inputs: Any) -> None:
    """That the model's classes are those of its output layer, whatever comes after it.

    SqueezeNet cuts off what is below 0 at every position and averages then. One number more for
    all classes changes no softmax, and keeps the cut from taking anything.
    """
    if _agrees(model, head, inputs):
        return
    if isinstance(head.module, nn.Conv2d) and head.module.bias is not None:
        head.module.bias.sub_(2 * head.logits.min().clamp(max=0))
        if _agrees(model, head, inputs):
            return
    raise ValueError(
        f"what the model does after its layer {head.name!r} changes which class is largest: a "
        "closed form for that layer does not fit; pass layer=, or train it"
    )


def _agrees(model: nn.Module, head: _Head, inputs: Any) -> bool:
    logits = head.run(model, inputs)
    own = head.logits.flatten(2).mean(2) if head.logits.dim() == 4 else head.logits
    if logits.shape != own.reshape(len(own), -1).shape:
        return False
    return float((logits.argmax(1) == own.reshape(len(own), -1).argmax(1)).float().mean()) > 0.98
