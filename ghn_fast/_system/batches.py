"""What data loaders give: inputs, or inputs and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ghn_fast._system.device import images_to_device, to_device

LABELS = ("labels", "label")
"""What the labels are called in batches that are dictionaries."""


def batches_of(loader: Iterable[Any] | Tensor) -> Iterator[Any]:
    """The batches of a loader; a tensor is one batch.

    Raises:
        TypeError: it is a data set, which gives items one by one.
        ValueError: there are none.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"a {type(loader).__name__} gives items one by one, without a batch dimension: wrap "
            "it in a torch.utils.data.DataLoader"
        )
    batches = iter((loader,)) if isinstance(loader, Tensor) else iter(loader)
    for first in batches:
        return chain((first,), batches)
    raise ValueError("the loader is empty: it has to give at least one batch")


def split_batch(batch: Any) -> tuple[Any, Tensor | None]:
    """The inputs, a tensor or a dictionary of arguments, and the labels where there are any."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in LABELS if name in batch), None)
        return {name: value for name, value in batch.items() if name not in LABELS}, labels
    if isinstance(batch, Sequence) and len(batch) in (1, 2) and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) == 2 else None
    given = type(batch).__name__
    if isinstance(batch, (tuple, list)) and batch:
        given += f" of {', '.join(type(item).__name__ for item in batch[:3])}"
    raise TypeError(
        f"the loader gave a {given}; it has to give tensors of inputs, pairs of "
        "such a tensor and labels, or dictionaries of a model's arguments"
    )


def run(model: nn.Module, inputs: Any) -> Any:
    """What a model makes of inputs, as :func:`split_batch` gives them, on the model's device."""
    device = device_of(model)
    if isinstance(inputs, Mapping):
        return model(**{name: _moved(value, device) for name, value in inputs.items()})
    return model(_moved(inputs, device))


def logits_of(output: Any) -> Tensor:
    """The first tensor of what a classifier returns."""
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            output = output["logits"] if "logits" in output else next(iter(output.values()))
        elif isinstance(output, Sequence):
            output = output[0]
        else:
            output = output.logits
    return output


def device_of(model: nn.Module) -> torch.device:
    """That of the first parameter or buffer; the CPU without any."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _moved(value: Any, device: torch.device) -> Any:
    move: Callable[[Tensor, torch.device], Tensor] = (
        images_to_device if isinstance(value, Tensor) and value.dim() == 4 else to_device
    )
    return move(value, device) if isinstance(value, Tensor) else value
