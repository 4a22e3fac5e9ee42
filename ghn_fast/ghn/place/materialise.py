"""Memory for models on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def materialise(model: nn.Module) -> None:
    """Gives a model's parameters on the meta device memory, and its buffers values; in place.

    Parameters are left without values. Buffers get those that their modules' ``reset_parameters``
    or ``reset_running_stats`` make. Where anything cannot be made, the model stays as it was.

    Raises:
        ValueError: a buffer, or a tensor in an attribute, that nothing makes.
    """
    device = torch.get_default_device()
    device = torch.device("cpu") if device.type == "meta" else device
    modules = list(model.named_modules())
    before = [(module, dict(module._buffers)) for _, module in modules]
    try:
        for path, module in modules:
            _make_buffers(path, module, device)
    except Exception:
        for module, buffers in before:
            module._buffers.update(buffers)
        raise
    made: dict[int, nn.Parameter] = {}
    for _, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = _in_memory(parameter, device)
                module._parameters[name] = made[id(parameter)]


def _in_memory(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    values = torch.empty_like(parameter, device=device)
    made = nn.Parameter(values, requires_grad=parameter.requires_grad)
    made.__dict__.update(parameter.__dict__)
    return made


def _make_buffers(path: str, module: nn.Module, device: torch.device) -> None:
    missing = {name: b for name, b in module._buffers.items() if b is not None and b.is_meta}
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.is_meta:
            raise _unknown(path, name)
    if not missing:
        return
    for name, buffer in missing.items():
        module._buffers[name] = torch.full_like(buffer, _unset(buffer.dtype), device=device)
    for reset in _resets(module):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            reset()
    for name, buffer in missing.items():
        made = module._buffers[name]
        if made is None or made.is_meta or _is_unset(made):
            raise _unknown(path, name)
        assert made.shape == buffer.shape


def _resets(module: Any) -> list[Callable[[], object]]:
    names = ("reset_parameters", "reset_running_stats")
    return [getattr(module, name) for name in names if callable(getattr(module, name, None))]


def _unset(dtype: torch.dtype) -> Any:
    """A value that no module gives a buffer."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return False if dtype == torch.bool else torch.iinfo(dtype).max


def _is_unset(buffer: Tensor) -> bool:
    unset = _unset(buffer.dtype)
    return bool((buffer != buffer).any() if unset != unset else (buffer == unset).any())


def _unknown(path: str, name: str) -> ValueError:
    name = f"{path}.{name}" if path else name
    return ValueError(
        f"buffer {name!r} is on the meta device and its module has no reset_parameters() that "
        "gives it a value: build the model on a real device"
    )
