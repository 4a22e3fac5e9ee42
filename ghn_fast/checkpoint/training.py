"""What a training has kept, held to what the same training would keep."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ghn_fast._system.errors import FileError, shown
from ghn_fast._system.files import replace, writing

_BEYOND = 2**48
"""More steps, networks or minutes than any training has."""


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes what a training goes on from; on a full disk the file stays as it was.

    Raises:
        OSError: it could not be written.
    """

    def write(aside: Path) -> None:
        with writing(aside) as file:
            torch.save(state, file)

    replace(path, write)


def fitted(value: Any, like: Any, name: str) -> Any:
    """A value out of a file as a copy that is laid out in memory as the one that it replaces.

    Args:
        value: may be anything.
        like: what it has to be like: dictionaries have the same keys, tensors the same shape and
            dtype; other values are of the same type, and numbers count or measure something.
        name: of the value, in words.

    Raises:
        FileError: it is not like that.
    """
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping) or value.keys() != like.keys():
            raise FileError(f"{name} has {_keys(value, like)}")
        return {key: fitted(value[key], own, f"{name} {key}") for key, own in like.items()}
    if isinstance(like, Tensor):
        if not isinstance(value, Tensor) or _layout(value) != _layout(like):
            raise FileError(f"{name} is {_layout(value)}, not {_layout(like)}")
        return torch.empty_like(like).copy_(value)
    if type(value) is not type(like) or (
        isinstance(value, int | float) and not 0 <= value < _BEYOND
    ):
        raise FileError(f"{name} is {shown(value)}")
    return value


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Raises a FileError where a tensor has values that are not finite."""
    for key, value in state.items():
        if not value.isfinite().all():
            raise FileError(f"{name} {key} has values that are not finite")


def load_optimizer(optimizer: Optimizer, state: Any) -> None:
    """Gives an optimiser that has made no step what another of the same settings has kept.

    Its hyperparameters stay its own, but for the rate that a schedule has moved. Kernels write to
    its tensors without a look at their sizes, so each has to be as the optimiser itself would have
    made it.

    Raises:
        FileError: it is not the state of such an optimiser.
    """
    own, kept = _after_a_step(optimizer), state["state"]
    if not isinstance(kept, Mapping) or not kept.keys() <= own.keys():
        raise FileError("its optimizer has states of other parameters")
    loaded = {key: fitted(kept[key], own[key], f"its optimizer's state {key}") for key in kept}
    for key, values in loaded.items():
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        check_finite(tensors, f"its optimizer's state {key}")
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, state["param_groups"], strict=True):
        group["lr"] = fitted(float(saved["lr"]), 0.0, "its optimizer's lr")
    optimizer.load_state_dict({"state": loaded, "param_groups": groups})


def _after_a_step(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The state that it would have; the optimiser and its parameters stay as they are."""
    double = copy.deepcopy(optimizer)
    for group in double.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    double.step()
    state: dict[int, dict[str, Any]] = double.state_dict()["state"]
    return state


def _layout(value: Any) -> str:
    if not isinstance(value, Tensor):
        return shown(value)
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _keys(value: Any, like: Mapping[Any, Any]) -> str:
    """How the keys of a value differ from those that it must have."""
    if not isinstance(value, Mapping):
        return f"{shown(value)} for a dictionary"
    missing, unknown = like.keys() - value.keys(), value.keys() - like.keys()
    return "; ".join(
        f"{what} {', '.join(sorted(map(str, keys))[:4])}{' ...' if len(keys) > 4 else ''}"
        for what, keys in (("no", missing), ("an unknown", unknown))
        if keys
    )
