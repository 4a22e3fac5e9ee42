"""Where a training starts: from predicted parameters or from those that the model has.

Prediction does not help every model with every data set. The output layer in closed form tells
before any training whose features are the better, by pictures that it was not fitted to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast._system.batches import device_of
from ghn_fast._system.device import place
from ghn_fast.data import ImageSource
from ghn_fast.data.images import check_source
from ghn_fast.evaluation import BATCH_SIZE, batches_in_order, calibrate
from ghn_fast.ghn import GHN
from ghn_fast.head import HeadReport, fit_head_
from ghn_fast.prediction import PredictionReport, predict
from ghn_fast.refine import refine_last_third_

BEST, PREDICTED, RANDOM = KNOWN = ("best", "predicted", "random")
TRIAL_PICTURES, TRIAL_OF_CLASS = 1024, 20
"""That starts are compared by: so many, or so many of a class where that is more."""


class UnusableError(ValueError):
    """A prediction that no output layer can be fitted to."""


@dataclass(frozen=True)
class StartReport:
    """What :func:`start_` did.

    Attributes:
        start: what the model has, ``predicted`` or ``random``.
        head: of its output layer, which is fitted to all pictures.
        heads: {start: of the output layer that it was tried with}, fitted to a part of the pictures
            where there are many; a prediction that cannot be used has none.
        error: why the prediction cannot be used, else empty.
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
    refine: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    batch_size: int = BATCH_SIZE,
    on_report: Callable[[str, PredictionReport | HeadReport | ValueError], object] | None = None,
) -> StartReport:
    """Gives a classifier of pictures the better of two starts, ready to be trained, in place.

    Both the predicted parameters (:func:`ghn_fast.predict`) and those that the model has get
    batch-norm statistics (:func:`ghn_fast.calibrate_`) and an output layer in closed form
    (:func:`ghn_fast.fit_head_`). The start whose output layer classifies more of the held-out
    pictures correctly is kept, the predicted one if both are alike. They are compared by the first
    1,024 pictures, or 20 of each class where that is more; the output layer that is kept is fitted
    to all. A prediction that no output layer can be fitted to, as its features are not finite, is
    left.

    Args:
        model: with its parameters at random, on any device; in evaluation mode afterwards.
        train: labelled images to train with, in an order that mixes the classes.
        ghn: as :func:`ghn_fast.predict` takes it.
        start: ``best``, or without comparing ``predicted`` or ``random``, which is what the model
            has.
        refine: what is predicted (:func:`ghn_fast.refine_`, with a little noise, in the last third
            of the layers).
        generator: of that noise, on any device.
        device: where the model is moved to once it is predicted, in the memory format that is
            fastest there; by default it stays.
        batch_size: images that an output layer is fitted to at a time.
        on_report: called with each start that is tried, ``predicted`` or ``random``, and what there
            is to say of it: a :class:`PredictionReport`, then a :class:`HeadReport`, or the error
            for which a prediction is left.

    Returns:
        A :class:`StartReport`.

    Raises:
        TypeError: ``train`` is a loader or something else that is no source of images.
        ValueError: another ``start``; what :func:`ghn_fast.predict` raises of the model or the GHN,
            or :func:`ghn_fast.fit_head_` of the random start. The model is as it was then, but for
            its device, as with all other errors of these.
        UnusableError: no output layer can be fitted to the ``predicted`` start. It is a ValueError.

    Examples:
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> report = ghn_fast.start.start_(model, images)
        >>> report.start in ("predicted", "random"), report.head.pictures, list(report.heads)
        (True, 64, ['predicted', 'random'])
    """
    if start not in KNOWN:
        raise ValueError(f"start takes {', '.join(KNOWN)}, not {start!r}")
    check_source(train)
    own = copy.deepcopy(model.state_dict())
    modes = [(module, module.training) for module in model.modules()]
    without = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    trials = _Trials(model, own, train, batch_size, on_report)
    try:
        if start != RANDOM:
            trials.predict(ghn, refine, generator)
        if device is not None:
            place(model, torch.device(device))
        return trials.choose() if start == BEST else trials.take(start)
    except BaseException:
        trials.undo()
        for module, mode in modes:
            module.training = mode
        for norm in without:
            norm._buffers.update(dict.fromkeys(norm._buffers))
            norm.track_running_stats = False
        raise


@dataclass
class _Trials:
    """The starts of a model, one after the other; ``own`` is the state it had."""

    model: nn.Module
    own: dict[str, object]
    train: ImageSource
    batch_size: int
    on_report: Callable[[str, PredictionReport | HeadReport | ValueError], object] | None

    def predict(
        self, ghn: GHN | str | Path | None, refine: bool, generator: torch.Generator | None
    ) -> None:
        some, _ = next(batches_in_order(self.train.first(2)))
        _, report = predict(self.model, ghn, some.to(device_of(self.model)), return_report=True)
        self._tell(PREDICTED, report)
        if refine:
            refine_last_third_(self.model, generator)

    def take(self, start: str) -> StartReport:
        try:
            head = self._try(start, self.train)
        except ValueError as error:
            raise UnusableError(str(error)) if start == PREDICTED else error from None
        return StartReport(start, head, {start: head})

    def choose(self) -> StartReport:
        """Tries what is predicted, then what the model had."""
        some = self.train.first(max(TRIAL_PICTURES, TRIAL_OF_CLASS * self.train.num_classes))
        heads, error = {}, ""
        try:
            heads[PREDICTED] = self._try(PREDICTED, some)
        except ValueError as reason:
            error = str(reason)
            self._tell(PREDICTED, reason)
        predicted = copy.deepcopy(self.model.state_dict())
        self.undo()
        heads[RANDOM] = self._try(RANDOM, some)
        best = max(heads, key=lambda start: heads[start].accuracy)
        if best == PREDICTED:
            self.model.load_state_dict(predicted)
        is_all = len(some) == len(self.train)
        return StartReport(best, heads[best] if is_all else self._fit(self.train), heads, error)

    def undo(self) -> None:
        # Not strictly: norms that were built without statistics may have got some.
        self.model.load_state_dict(self.own, strict=False)

    def _try(self, start: str, pictures: ImageSource) -> HeadReport:
        head = self._fit(pictures)
        self._tell(start, head)
        return head

    def _fit(self, pictures: ImageSource) -> HeadReport:
        calibrate(self.model, pictures)
        return fit_head_(self.model, batches_in_order(pictures, self.batch_size))

    def _tell(self, start: str, report: PredictionReport | HeadReport | ValueError) -> None:
        if self.on_report is not None:
            self.on_report(start, report)
