"""Batch-norm statistics of a model whose parameters did not come from training.

A GHN predicts parameters; the statistics by which batch normalisation divides in evaluation mode
are none, and a predicted model has those it was built with: a mean of 0 and a variance of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_fast._system.batches import fed, rows_of, run
from ghn_fast._system.restored import restored

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def calibrate_(
    model: Model, loader: Iterable[Any] | Tensor, *, layer_by_layer: bool = False
) -> Model:
    """Gives batch normalisation the exact statistics of a loader's inputs, in place.

    The mean and the variance are those of all values that a layer sees, merged batch by batch
    (Chan, Golub and LeVeque 1983) and not averaged over batches with a momentum: neither the order
    of the batches nor a short last one changes them beyond what the layers before do. Nothing else
    changes: parameters, modes and gradients stay. Norms that were built without running statistics
    get them; norms that the model does not run keep theirs.

    In the one pass that is made each layer is fed what the layers before give when they normalise
    by each batch's own statistics. In use they normalise by the running ones; the deeper the
    network and the smaller the batches, the more the two differ. ``layer_by_layer`` makes a pass
    for each norm, up to it, with the final statistics of all before it.

    Args:
        model: any module; 53 norms, as in ResNet-50, take about 27 forward passes layer by layer.
        loader: of inputs or (inputs, labels), as ``torch.utils.data.DataLoader`` gives them, or of
            dictionaries of the model's arguments; or one tensor, which is a batch. Some hundred
            pictures are enough. A dictionary's one tensor beside the labels may have any name.
        layer_by_layer: see above; the loader has to start anew each time.

    Returns:
        The same model.

    Raises:
        TypeError: a data set instead of a loader of batches, or batches of other than tensors,
            of a dtype that the model does not compute with, or with names that it does not take.
        ValueError: the loader is empty, or can be read only once where it has to be read again;
            statistics are not finite, or of one value. The model is as it was then.

    Examples:
        >>> model = ghn_fast.predict(torchvision.models.resnet18(num_classes=10))
        >>> model is ghn_fast.calibrate_(model, loader).eval()
        True
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if layer_by_layer and not isinstance(loader, Tensor) and iter(loader) is loader:
        raise ValueError(
            "layer_by_layer reads the loader once for each norm, and an iterator can be read only "
            "once: pass a list of batches or a DataLoader"
        )
    before = {norm: (dict(norm._buffers), norm.track_running_stats) for norm in norms.values()}
    try:
        with restored(model), _collecting(list(norms.values())) as collected:
            model.eval()
            ran = _pass(model, loader, collected)
            for statistics in ran if layer_by_layer else ():
                if statistics is not ran[0]:
                    statistics.restart()
                    _pass(model, loader, collected, last=statistics)
                statistics.fix()
        fed = {name: collected[norm] for name, norm in norms.items() if collected[norm] in ran}
        for name, statistics in fed.items():
            statistics.check(name)
        for statistics in fed.values():
            statistics.write()
    except BaseException:
        for norm, (buffers, tracks) in before.items():
            norm._buffers.update(buffers)
            norm.track_running_stats = tracks
        raise
    return model


class _Reached(Exception):
    """The last norm of a pass has been fed."""


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of values (B, C, ...), in two passes over rows of channels.

    torch.var_mean over these axes takes about as long on a CPU as the convolution before it.
    """
    rows = values.movedim(1, -1).flatten(0, -2)
    mean = rows.mean(dim=0)
    return mean, (rows - mean).square_().mean(dim=0)


class _Statistics:
    """Of one norm: the merged moments of what it is fed, by which it can be made to normalise.

    Attributes:
        count: values of a channel so far.
        calls: in the batch that is run, and ``uses`` in the first one.
        order: of all that were fed in this pass.
        fixed: normalise by what was collected and collect nothing.
        is_last: end the pass when the norm has been fed.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.calls = self.uses = 0
        self.is_last = False
        self.order: dict[_Statistics, None] = {}
        self.restart()

    def restart(self) -> None:
        self.count = self.batches = 0
        self.mean = self.squares = torch.zeros((), device="cpu")
        self.fixed = False

    def feed(self, norm: nn.Module, arguments: Any, named: Any) -> None:
        """Before the norm runs: takes its input in, and gives it statistics to normalise by."""
        values: Tensor = fed(arguments, named)
        self.calls += 1
        self.order[self] = None
        if self.fixed:
            return
        # MPS has no float64.
        wide = torch.float32 if values.device.type == "mps" else torch.float64
        precise = values if values.dtype == torch.float64 else values.float()
        mean, variance = (moment.to(wide) for moment in _moments(precise))
        number = values.numel() // values.shape[1]
        self._merge(number, mean, variance * number)
        if self.is_last and self.calls == self.uses:
            raise _Reached
        # One value has no variance to divide by: it is normalised by that of all so far.
        self._use(*((mean, variance) if number > 1 else (self.mean, self.squares / self.count)))

    def _merge(self, number: int, mean: Tensor, squares: Tensor) -> None:
        whole = self.count + number
        apart = mean - self.mean
        self.squares = self.squares + squares + apart**2 * (self.count * number / whole)
        self.mean = self.mean + apart * (number / whole)
        self.count = whole

    def _use(self, mean: Tensor, variance: Tensor) -> None:
        kept = self.norm.weight.dtype if self.norm.weight is not None else torch.float32
        buffers = self.norm._buffers
        buffers["running_mean"], buffers["running_var"] = mean.to(kept), variance.to(kept)

    def fix(self) -> None:
        """With the unbiased variance, as PyTorch keeps it."""
        self._use(self.mean, self.squares / max(self.count - 1, 1))
        self.fixed = True

    def check(self, name: str) -> None:
        if self.count == 1:
            raise ValueError(
                f"what {name} is fed is one value of each channel, which has no variance: give "
                "more inputs"
            )
        if not (self.mean.isfinite().all() and self.squares.isfinite().all()):
            raise ValueError(
                f"what {name} is fed has no finite mean or variance: the inputs or the parameters "
                "before it are not finite, or too large for their dtype"
            )

    def write(self) -> None:
        """Into the norm's own buffers where it has them, as others may share their memory."""
        buffers, norm = self.norm._buffers, self.norm
        own = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        self.fix()
        tracked = torch.tensor(self.batches, device=self.mean.device)
        names = ("running_mean", "running_var", "num_batches_tracked")
        buffers["num_batches_tracked"] = tracked
        for name, tensor in zip(names, own, strict=True):
            if tensor is not None:
                buffers[name] = tensor.copy_(buffers[name])  # type: ignore[arg-type]
        norm.track_running_stats = True


@contextmanager
def _collecting(norms: list[_BatchNorm]) -> Iterator[dict[_BatchNorm, _Statistics]]:
    collected = {norm: _Statistics(norm) for norm in norms}
    with ExitStack() as stack:
        for norm, statistics in collected.items():
            # Before hooks of others: they may change what the norm is fed only before.
            hook = norm.register_forward_pre_hook(statistics.feed, with_kwargs=True)
            stack.enter_context(hook)
        yield collected


def _pass(
    model: nn.Module,
    loader: Iterable[Any] | Tensor,
    collected: dict[_BatchNorm, _Statistics],
    last: _Statistics | None = None,
) -> list[_Statistics]:
    """Runs all batches, up to ``last``; returns those that were fed, in the order of the first."""
    ran: dict[_Statistics, None] = {}
    for number, (inputs, _) in enumerate(rows_of(loader, model)):
        for statistics in collected.values():
            statistics.calls, statistics.order = 0, ran
            statistics.is_last = statistics is last
        # What comes after the last one need not run.
        with suppress(_Reached):
            run(model, inputs)
        for statistics in ran:
            statistics.batches += statistics.calls > 0 and not statistics.fixed
            if last is None and number == 0:
                statistics.uses = statistics.calls
    return list(ran)
