"""Runs a model so that afterwards it is as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module, buffers: bool = False) -> Iterator[None]:
    """Restores modules' attributes and the random number generators on leaving.

    Args:
        model: the model; its modules' attributes (mode, hooks, registered tensors, caches in
            lists and dicts) are kept, not copied, tensors.
        buffers: also the values of buffers, for when the model really runs.
    """
    attributes = [(module, _copied(module.__dict__)) for module in model.modules()]
    values = [(b, b.detach().clone()) for b in model.buffers()] if buffers else []
    generators = _generator_states(model)
    try:
        yield
    finally:
        for module, saved in attributes:
            _restore(module.__dict__, saved)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        _restore_generators(generators)


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute and, of containers, a copy of what is in it."""
    return {
        name: (value, value.copy() if isinstance(value, (dict, list, set)) else None)
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], saved: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in attributes if name not in saved]:
        del attributes[name]
    for name, (value, content) in saved.items():
        attributes[name] = value
        if content is None:
            continue
        if isinstance(value, list):
            value[:] = content
        elif len(value) != len(content) or _changed(value, content):
            value.clear()
            value.update(content)


def _changed(value: Any, content: Any) -> bool:
    if isinstance(value, set):
        return value != content
    return any(value.get(key) is not item for key, item in content.items())


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
