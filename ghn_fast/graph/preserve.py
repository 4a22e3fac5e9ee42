"""Runs a model so that afterwards it is as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Container = dict | list | set


@contextmanager
def preserved(
    model: nn.Module, modules: Iterable[nn.Module], buffers: bool = False
) -> Iterator[None]:
    """Restores modules' attributes and the random number generators on leaving.

    Args:
        model: the model.
        modules: its modules. What they refer to (mode, hooks, registered tensors, caches in
            lists and dicts) is kept, not copied.
        buffers: also keep the values of buffers, for when the model really runs.
    """
    attributes = [(m.__dict__, m.__dict__.copy(), _contents(m.__dict__)) for m in modules]
    values = [(b, b.detach().clone()) for b in model.buffers()] if buffers else []
    generators = _generator_states(model)
    try:
        yield
    finally:
        for current, saved, contents in attributes:
            current.clear()
            current.update(saved)
            _refill(contents)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        _restore_generators(generators)


def _contents(attributes: dict[str, Any]) -> list[tuple[Container, Container]]:
    """Each container among a module's attributes and a copy of it."""
    return [
        (value, value.copy())
        for value in attributes.values()
        if isinstance(value, (dict, list, set))
    ]


def _refill(contents: list[tuple[Container, Container]]) -> None:
    for container, content in contents:
        if not container and not content:
            continue
        if isinstance(container, list):
            container[:] = content
        else:
            container.clear()
            container.update(content)


def _generator_states(model: nn.Module) -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    if torch.cuda.is_available() and any(p.is_cuda for p in model.parameters()):
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
