"""Whether tensors can be written to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def check_writable(parameters: Iterable[tuple[str, Tensor]], fill: bool = False) -> None:
    """Refuses parameters that have no values, or whose values must not change.

    Args:
        parameters: and their names.
        fill: those on the meta device will get memory.

    Raises:
        ValueError: names the first such parameter and says what to do.
    """
    for name, parameter in parameters:
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"parameter {name!r} has no shape yet: call the model once on an example input "
                "to initialise its lazy modules, then go on"
            )
        if parameter.is_meta and not fill:
            raise ValueError(
                f"parameter {name!r} is on the meta device and has no memory to write to: build "
                "the model on a real device (to_empty() would leave constants and buffers unset), "
                "or give it values with ghn_fast.predict(model, fill=True)"
            )
        if parameter.is_inference() and not (
            parameter.is_meta or torch.is_inference_mode_enabled()
        ):
            raise ValueError(
                f"parameter {name!r} was made in inference mode and cannot be written outside it: "
                "build the model outside torch.inference_mode(), or stay inside"
            )


def is_expanded(tensor: Tensor) -> bool:
    """Whether several of its elements share one place in memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return not tensor.is_contiguous() and any(size > 1 and step == 0 for size, step in steps)
