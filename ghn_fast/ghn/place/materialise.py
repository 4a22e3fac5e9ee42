"""Memory for models on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def materialised(model: nn.Module) -> Iterator[frozenset[str]]:
    """Gives a model's parameters on the meta device memory, and its buffers values; in place.

    Parameters are left without values. Buffers get those that their modules' ``reset_parameters``
    or ``reset_running_stats`` make; what has values keeps them. After an error, here or in what is
    done with the model within, it is on the meta device again.

    Yields:
        The names of the parameters without values.

    Raises:
        ValueError: a buffer, or a tensor in an attribute, that nothing makes.
    """
    device = torch.get_default_device()
    device = torch.device("cpu") if device.type == "meta" else device
    modules = list(model.named_modules())
    before = [(table, dict(table)) for _, module in modules for table in _tables(module)]
    try:
        for path, module in modules:
            _make_buffers(path, module, device)
        yield frozenset(_make_parameters(modules, device))
    except BaseException:
        for table, tensors in before:
            table.update(tensors)
        raise


def _tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


def _make_parameters(
    modules: Iterable[tuple[str, nn.Module]], device: torch.device
) -> Iterator[str]:
    made: dict[int, nn.Parameter] = {}
    for path, module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = _in_memory(parameter, device)
                module._parameters[name] = made[id(parameter)]
                yield f"{path}.{name}" if path else name


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
    with _spared(module), torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, buffer in missing.items():
            module._buffers[name] = torch.full_like(buffer, _unset(buffer.dtype), device=device)
        for reset in _resets(module):
            reset()
    for name, buffer in missing.items():
        made = module._buffers[name]
        if made is None or made.is_meta or _is_unset(made):
            raise _unknown(path, name)
        assert made.shape == buffer.shape


@contextmanager
def _spared(module: nn.Module) -> Iterator[None]:
    """Within it, copies take the places of all that a module and its parts have in memory."""
    owned = [
        (table, name, tensor)
        for part in module.modules()
        for table in _tables(part)
        for name, tensor in table.items()
        if tensor is not None and not tensor.is_meta
    ]
    for table, name, tensor in owned:
        table[name] = tensor.detach().clone()
    try:
        yield
    finally:
        for table, name, tensor in owned:
            table[name] = tensor


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
