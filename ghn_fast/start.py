"""Where a training starts: from predicted parameters or from those that the model has.

Prediction does not help every model with every data set. The output layer in closed form tells
before any training whose features are the better, by pictures that it was not fitted to.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ghn_fast._system.batches import device_of
from ghn_fast._system.device import place
from ghn_fast._system.restored import restored_after_errors
from ghn_fast.data import ImageSource
from ghn_fast.data.images import check_source
from ghn_fast.evaluation import BATCH_SIZE, batches_in_order, calibrate
from ghn_fast.ghn import GHN
from ghn_fast.ghn.hub import resolve
from ghn_fast.head import HeadReport, fit_head_
from ghn_fast.prediction import PredictionReport, predict
from ghn_fast.refine import refine_last_third_

BEST, PREDICTED, REFINED, RANDOM = "best", "predicted", "refined", "random"
TRIAL_PICTURES, TRIAL_OF_CLASS = 1024, 20
"""That starts are compared by: so many, or so many of a class where that is more."""
_ALIKE = 0.003
"""Means and deviations of the same data set, as they are rounded by those who publish them."""


class UnusableError(ValueError):
    """A prediction that cannot be refined, or that no output layer can be fitted to."""


@dataclass(frozen=True)
class StartReport:
    """What :func:`start_` did.

    Attributes:
        start: what the model has, ``predicted``, ``refined`` or ``random``.
        head: of its output layer, which is fitted to all pictures.
        heads: {start: of the output layer that it was tried with}, fitted to a part of the pictures
            where there are many; a prediction that cannot be used has none.
        error: why a prediction cannot be used, as it is or refined, else empty.
    """

    start: str
    head: HeadReport
    heads: dict[str, HeadReport]
    error: str = ""


def start_(
    model: nn.Module,
    train: ImageSource,
    ghn: GHN | str | Path | None = None,
    *,
    start: str = BEST,
    refine: bool | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    on_report: Callable[[str, PredictionReport | HeadReport | ValueError], object] | None = None,
) -> StartReport:
    """Gives a classifier of pictures the best of three starts, ready to be trained, in place.

    The predicted parameters (:func:`ghn_fast.predict`), the same refined (:func:`ghn_fast.refine_`,
    with a little noise, in the last third of the layers) and those that the model has get
    batch-norm statistics (:func:`ghn_fast.calibrate_`) and an output layer in closed form
    (:func:`ghn_fast.fit_head_`). The start whose output layer classifies most of the held-out
    pictures correctly is kept, of equals the first. They are compared by the first 1,024 pictures,
    or 20 of each class where that is more; the output layer that is kept is fitted to all. A
    prediction that cannot be used, as its features are not finite, is left.

    Args:
        model: with its parameters at random, on any device; in evaluation mode afterwards.
        train: labelled images to train with, in an order that mixes the classes; normalised as
            those that the GHN was trained with (:func:`ghn_fast.data.normalised_by`), or there is
            a warning.
        ghn: as :func:`ghn_fast.predict` takes it.
        start: ``best``, or ``predicted``, ``refined`` (which is predicted too) or ``random``, which
            is what the model has.
        refine: what is predicted: True, False, or None for the better of the two.
        generator: of that noise, on any device.
        device: where the model is moved to once it is predicted, in the memory format that is
            fastest there; by default it stays.
        batch_size: images that an output layer is fitted to at a time.
        on_report: called with each start that is tried and what there is to say of it: a
            :class:`PredictionReport`, then a :class:`HeadReport`, or the error for which it is
            left.

    Returns:
        A :class:`StartReport`.

    Raises:
        TypeError: ``train`` is a loader or something else that is no source of images.
        ValueError: another ``start``; what :func:`ghn_fast.predict` raises of the model or the GHN,
            or :func:`ghn_fast.fit_head_` of the random start. The model is as it was then, but for
            its device, as with all other errors of these.
        UnusableError: the ``predicted`` start cannot be used. It is a ValueError.

    Examples:
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> report = ghn_fast.start.start_(model, images)
        >>> report.start in report.heads, report.head.pictures, list(report.heads)
        (True, 64, ['predicted', 'refined', 'random'])
    """
    starts = starts_of(start, refine)
    check_source(train)
    own = copy.deepcopy(model.state_dict())
    trials = _Trials(model, own, train, batch_size, generator, on_report)
    with restored_after_errors(model):
        try:
            if starts != [RANDOM]:
                trials.predict(ghn)
            if device is not None:
                place(model, torch.device(device))
            return trials.choose(starts)
        except BaseException:
            trials.undo()
            raise


def starts_of(start: str, refine: bool | None) -> list[str]:
    """Those that are tried, in this order.

    Raises:
        ValueError: another ``start`` than ``best``, ``predicted``, ``refined`` and ``random``, or
            one that is refined and is not to be.
    """
    if start not in (BEST, PREDICTED, REFINED, RANDOM):
        raise ValueError(f"start takes {BEST}, {PREDICTED}, {REFINED}, {RANDOM}, not {start!r}")
    if start == REFINED:
        if refine is False:
            raise ValueError(f"start {REFINED} is refined, and refine says not to: leave one out")
        return [REFINED]
    predicted = {None: [PREDICTED, REFINED], True: [REFINED], False: [PREDICTED]}[refine]
    return {BEST: [*predicted, RANDOM], PREDICTED: predicted, RANDOM: [RANDOM]}[start]


def _warn_of_normalisation(train: ImageSource, ghn: GHN) -> None:
    given, wanted = (*train.mean, *train.std), (*ghn.config.mean, *ghn.config.std)
    if wanted and max(abs(a - b) for a, b in zip(given, wanted, strict=True)) > _ALIKE:
        warnings.warn(
            f"the pictures are normalised by mean and deviation {_rounded(given)}, those that the "
            f"GHN was trained with by {_rounded(wanted)}: ghn_fast.data.normalised_by(pictures, "
            "ghn.config.mean, ghn.config.std) makes them alike",
            stacklevel=4,
        )


def _rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


@dataclass
class _Trials:
    """The starts of a model, one after the other; ``own`` is the state it had."""

    model: nn.Module
    own: dict[str, object]
    train: ImageSource
    batch_size: int
    generator: torch.Generator | None
    on_report: Callable[[str, PredictionReport | HeadReport | ValueError], object] | None

    def predict(self, ghn: GHN | str | Path | None) -> None:
        some, _ = next(batches_in_order(self.train.first(2)))
        ghn = resolve(ghn)
        _warn_of_normalisation(self.train, ghn)
        _, report = predict(self.model, ghn, some.to(device_of(self.model)), return_report=True)
        self._tell(PREDICTED, report)

    def choose(self, starts: Sequence[str]) -> StartReport:
        """Tries them one after the other, and leaves the best."""
        pictures = self.train if len(starts) == 1 else self._some()
        heads: dict[str, HeadReport] = {}
        best, state, errors = "", {}, []
        for start in starts:
            try:
                heads[start] = self._try(start, pictures)
            except ValueError as error:
                if start == RANDOM:
                    raise
                errors.append(error)
                self._tell(start, error)
                continue
            if not best or heads[start].accuracy > heads[best].accuracy:
                best = start
                state = copy.deepcopy(self.model.state_dict()) if start != starts[-1] else {}
        if not best:
            raise UnusableError(str(errors[0])) from errors[0]
        if best != starts[-1]:
            self.model.load_state_dict(state)
        head = heads[best] if len(pictures) == len(self.train) else self._fit(self.train)
        return StartReport(best, head, heads, "; ".join(dict.fromkeys(map(str, errors))))

    def _some(self) -> ImageSource:
        return self.train.first(max(TRIAL_PICTURES, TRIAL_OF_CLASS * self.train.num_classes))

    def _try(self, start: str, pictures: ImageSource) -> HeadReport:
        """Makes a start of the one that was tried before, and fits its output layer."""
        if start == REFINED:
            refine_last_third_(self.model, self.generator)
        elif start == RANDOM:
            self.undo()
        head = self._fit(pictures)
        self._tell(start, head)
        return head

    def undo(self) -> None:
        # Not strictly: norms that were built without statistics may have got some.
        self.model.load_state_dict(self.own, strict=False)

    def _fit(self, pictures: ImageSource) -> HeadReport:
        calibrate(self.model, pictures)
        return fit_head_(self.model, batches_in_order(pictures, self.batch_size))

    def _tell(self, start: str, report: PredictionReport | HeadReport | ValueError) -> None:
        if self.on_report is not None:
            self.on_report(start, report)
