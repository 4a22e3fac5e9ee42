"""What data loaders give: inputs, or inputs and labels."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ghn_fast._system.device import images_to_device, to_device
from ghn_fast._system.wrapped import unwrapped

LABELS, OTHER_LABELS = ("labels", "label"), ("targets", "target", "y")
"""What the labels are called in batches that are dictionaries; the others, where they are none of
the model's arguments."""
_BY_PLACE_OR_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD


def batches_of(loader: Iterable[Any] | Tensor) -> Iterator[Any]:
    """The batches of a loader; a tensor is one batch.

    Raises:
        TypeError: it is a data set, which gives items one by one.
        ValueError: there are none.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"{type(loader).__name__} gives items one by one, without a batch dimension: wrap "
            "it in a torch.utils.data.DataLoader"
        )
    batches = iter((loader,)) if isinstance(loader, Tensor) else iter(loader)
    for first in batches:
        return chain((first,), batches)
    if batches is loader:
        raise ValueError(
            "the iterator gives no batch: one that was read to its end, as by calibrate_, gives "
            "none again; pass a list of batches or a DataLoader"
        )
    raise ValueError("the loader is empty: it has to give at least one batch")


def split_batch(batch: Any, model: nn.Module) -> tuple[Any, Tensor | None]:
    """The inputs, a tensor or a dictionary of arguments, and the labels where there are any.

    Raises:
        TypeError: it is neither, or a dictionary with other than the model's arguments.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        return _split_named(batch, model)
    if isinstance(batch, Sequence) and len(batch) in (1, 2) and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) == 2 else None
    given = type(batch).__name__
    if isinstance(batch, (tuple, list)) and batch:
        given += f" of {', '.join(type(item).__name__ for item in batch[:3])}"
    raise TypeError(
        f"the loader gave a {given}; it has to give tensors of inputs, pairs of "
        "such a tensor and labels, or dictionaries of a model's arguments"
    )


def _split_named(batch: Mapping[str, Any], model: nn.Module) -> tuple[Any, Tensor | None]:
    parameters = inspect.signature(unwrapped(model).forward).parameters
    named = (*LABELS, *(name for name in OTHER_LABELS if name not in parameters))
    labels = next((batch[name] for name in named if name in batch), None)
    inputs = {name: value for name, value in batch.items() if name not in named}
    unknown = [name for name in inputs if name not in parameters]
    if not unknown:
        return inputs, labels
    kinds = [parameter.kind for parameter in parameters.values()]
    first, *others = inputs.values()
    # Data sets call their pictures otherwise ("image", "img") than models do.
    if isinstance(first, Tensor) and not others and kinds[:1] == [_BY_PLACE_OR_NAME]:
        return first, labels
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return inputs, labels
    raise TypeError(
        f"the loader gave a dictionary with {', '.join(unknown)}, and the model takes "
        f"{', '.join(parameters)}"
    )


def run(model: nn.Module, inputs: Any) -> Any:
    """What a model makes of inputs, as :func:`split_batch` gives them, on the model's device.

    Raises:
        TypeError: it fails, and the inputs are of a dtype that it does not compute with.
    """
    device = device_of(model)
    try:
        if isinstance(inputs, Mapping):
            return model(**{name: _moved(value, device) for name, value in inputs.items()})
        return model(_moved(inputs, device))
    except RuntimeError as error:
        if re.search("type|not implemented for", str(error)):
            for value in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
                _check_dtype(value, model, error)
        raise


def _check_dtype(value: Any, model: nn.Module, error: RuntimeError) -> None:
    """Only once a model failed: some scale whole numbers themselves, or compute in several."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return
    if not value.is_floating_point() and value.dim() == 4:
        raise TypeError(
            f"pictures are {_name(value.dtype)}: scale and normalise them as the model takes them"
        ) from error
    own = dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point())
    if value.is_floating_point() and own and value.dtype not in own:
        names = ", ".join(_name(dtype) for dtype in own)
        raise TypeError(
            f"inputs are {_name(value.dtype)}, and the model's parameters {names}: give it inputs "
            f"of their dtype, as inputs.to(torch.{_name(next(iter(own)))}) are, or make it of "
            f"theirs, model.to(torch.{_name(value.dtype)})"
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_of(loader: Iterable[Any] | Tensor, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels of all batches that have rows; see :func:`split_batch`.

    Raises:
        ValueError: none has any.
    """
    are_all_empty = True
    for batch in batches_of(loader):
        inputs, labels = split_batch(batch, model)
        if not _is_empty(inputs):
            are_all_empty = False
            yield inputs, labels
    if are_all_empty:
        raise ValueError("all batches of the loader are empty")


def _is_empty(inputs: Any) -> bool:
    values = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return any(isinstance(v, Tensor) and v.dim() > 0 and len(v) == 0 for v in values)


def fed(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What a layer that takes one tensor was called with, by place or by name."""
    return next(chain(arguments, named.values()))


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
