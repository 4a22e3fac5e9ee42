"""Ridge regression of classes on features, by sums over the pictures, and a calibrated softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

RIDGES = tuple(10 ** (half / 2) for half in range(-10, 3))
"""Tried as multiples of the mean variance of the features."""
MOST_HELD_OUT, MOST_FEATURES, MOST_LOGITS = 4096, 2**24, 2**21
"""Pictures that are kept at most, and numbers of their features and logits."""
SCALES, HALVINGS = (1e-2, 1e3), 16
"""Of the logits; found to a relative 2e-4."""
ABSENT_LOGIT = -10.0
"""Of classes without a picture, where the others' logits have a mean of 0."""


@dataclass
class Moments:
    """Sums over pictures: per class their number (C,) and features (C, D), and products (D, D)."""

    counts: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def zeros(cls, classes: int, width: int, device: torch.device) -> Moments:
        # MPS has no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        made = [torch.zeros(s, dtype=torch.float64, device=place) for s in _shapes(classes, width)]
        return cls(*made)

    @property
    def pictures(self) -> int:
        return int(self.counts.sum())

    def add(self, features: Tensor, labels: Tensor, sign: float = 1.0) -> None:
        wide = features.to(self.sums)
        self.counts.index_add_(0, labels, torch.full_like(labels, sign, dtype=torch.float64))
        self.sums.index_add_(0, labels, wide, alpha=sign)
        self.products.addmm_(wide.T, wide, alpha=sign)

    def without(self, features: Tensor, labels: Tensor) -> Moments:
        rest = replace(self, **{name: value.clone() for name, value in vars(self).items()})
        rest.add(features, labels, -1.0)
        return rest


def _shapes(classes: int, width: int) -> tuple[tuple[int, ...], ...]:
    return (classes,), (classes, width), (width, width)


class HeldOut:
    """A share of each class's pictures, evenly; a random part where they become too many."""

    def __init__(self, classes: int, width: int, share: float, device: torch.device) -> None:
        self.share = share
        limit = min(MOST_HELD_OUT, MOST_FEATURES // width, MOST_LOGITS // classes)
        self.features = torch.empty(limit, width, device=device)
        self.labels = torch.empty(limit, dtype=torch.int64, device=device)
        self.seen = 0
        self._of_class = [0] * classes
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
                place = int(
                    torch.randint(self.seen + 1, (), generator=self._generator, device="cpu")
                )
            self.seen += 1
            if place < len(self.labels):
                self.features[place], self.labels[place] = features[row], label

    def taken(self) -> tuple[Tensor, Tensor]:
        number = min(self.seen, len(self.labels))
        return self.features[:number], self.labels[:number]


@dataclass
class Features:
    """All that is kept of them: sums over all pictures, and the held-out ones with their labels."""

    moments: Moments
    held: tuple[Tensor, Tensor]


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
    def of(cls, moments: Moments, balance: bool, has_bias: bool) -> _Problem:
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


def fit_ridge(
    features: Features, ridge: float | None, balance: bool, has_bias: bool
) -> tuple[Tensor, Tensor | None, Choice]:
    """Weight (C, D) and bias (C,) of all pictures, with the best ridge unless one is given.

    Raises:
        ValueError: there is nothing to fit to, or to choose by, or the ridge is too small.
    """
    moments, (held, labels) = features.moments, features.held
    pictures = moments.pictures
    absent = moments.counts == 0
    whole = _Problem.of(moments, balance, has_bias)
    if not whole.unit > 0:
        raise ValueError("all pictures have the same features: there is nothing to tell them by")
    choice = Choice(ridge=ridge or 0.0)
    if len(labels):
        training = _Problem.of(moments.without(held, labels), balance, has_bias)
        share = (pictures - len(labels)) / pictures
        given = [r * training.unit for r in RIDGES] if ridge is None else [ridge * share]
        tried = [
            Choice.by(training.solve(r), r, held.to(whole.right), labels, balance, has_bias)
            for r in given
        ]
        choice = min(tried, key=lambda other: other.loss)
        # The same share of the variance of all pictures as was best for a part of them.
        choice.ridge = choice.ridge / training.unit * whole.unit if ridge is None else ridge
    elif ridge is None:
        raise ValueError(
            f"{pictures} pictures are too few to hold some out, which the ridge is chosen by: give "
            "more (or, in Python, fit_head_ the ridge)"
        )
    weight, bias = whole.solve(choice.ridge)
    weight, bias = choice.scale * weight, choice.scale * bias
    bias[absent] = ABSENT_LOGIT
    if not has_bias:
        # Against the mean picture, which a layer without a bias has no other way to speak of.
        mean = moments.sums.sum(0) / pictures
        weight[absent] = ABSENT_LOGIT * mean / (mean @ mean)
    return weight, bias if has_bias else None, choice


@dataclass
class Choice:
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
    ) -> Choice:
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
