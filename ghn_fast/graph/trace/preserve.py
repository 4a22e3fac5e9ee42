"""Runs a model so that afterwards it is as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, filterfalse
from operator import is_
from types import ModuleType
from typing import Any

import torch
from torch import nn

Container = dict[Any, Any] | list[Any] | set[Any]
Attributes = dict[str, Any]

_CONTAINERS = (dict, list, set)
_LEVELS = 3
_PLAIN = frozenset((bool, int, float, str, tuple, type(None), nn.Parameter, torch.Tensor))
"""What most attributes are: a look at the class tells that they are no containers."""


@contextmanager
def preserved(
    model: nn.Module, modules: Iterable[nn.Module], buffers: bool = False
) -> Iterator[Callable[[], bool]]:
    """Restores modules' attributes and the random number generators on leaving.

    Yields a function that tells whether a generator was used meanwhile.

    Args:
        model: the model.
        modules: its modules. What they refer to (mode, hooks, registered tensors, caches in
            lists, dicts and objects of their own, three levels deep) is kept, not copied.
        buffers: also keep the values of buffers, and of tensors that are plain attributes, for
            when the model really runs.
    """
    attributes = [(m.__dict__, m.__dict__.copy()) for m in modules]
    empty, filled, objects = _containers([saved for _, saved in attributes])
    values = _tensor_values(model, attributes) if buffers else []
    attributes += objects
    generators = _generator_states(model)
    try:
        yield lambda: _differ(generators, _generator_states(model))
    finally:
        _restore_attributes(attributes)
        _restore_containers(empty, filled)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        _restore_generators(generators)


def _containers(
    attributes: Iterable[Attributes],
) -> tuple[list[Container], list[tuple[Container, Container]], list[tuple[Attributes, Attributes]]]:
    """What attributes hold that can change.

    Returns:
        The empty containers, each other one with a copy of it, and the attributes of objects with
        a copy of them.
    """
    empty: list[Container] = []
    filled: list[tuple[Container, Container]] = []
    objects: dict[int, tuple[Attributes, Attributes]] = {}
    level = list(chain.from_iterable(saved.values() for saved in attributes))
    for _ in range(_LEVELS):
        found, others = _that_may_change(level)
        empty += filterfalse(None, found)
        copies = [(container, container.copy()) for container in found if container]
        filled += copies
        new = {
            id(value): (value.__dict__, value.__dict__.copy())
            for value in others
            if id(value) not in objects and _is_plain_object(value)
        }
        objects |= new
        contents = [content for _, content in (*copies, *new.values())]
        level = [value for content in contents for value in _values(content)]
    return empty, filled, list(objects.values())


def _that_may_change(values: Sequence[Any]) -> tuple[list[Container], list[Any]]:
    """The containers, and what else is neither plain nor a module, which is kept by itself."""
    # There are few classes and thousands of values.
    classes = set(map(type, values))
    containers = {kind for kind in classes if issubclass(kind, _CONTAINERS)}
    others = {kind for kind in classes - containers - _PLAIN if not issubclass(kind, nn.Module)}
    found = [value for value in values if type(value) in containers]
    return found, [value for value in values if type(value) in others] if others else []


def _values(container: Container) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_plain_object(value: Any) -> bool:
    """Whether it keeps its state in attributes, such as a cache of keys and values."""
    if isinstance(value, (torch.Tensor, type, ModuleType)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and not callable(value)


def _tensor_values(
    model: nn.Module, attributes: Iterable[tuple[Attributes, Attributes]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The tensors that are not parameters, with a copy of each."""
    found = {id(buffer): buffer for buffer in model.buffers()}
    for _, saved in attributes:
        for value in saved.values():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                found[id(value)] = value
    return [(tensor, tensor.detach().clone()) for tensor in found.values()]


def _restore_attributes(attributes: Iterable[tuple[Attributes, Attributes]]) -> None:
    # In place, and never without what was there: other threads may be reading them.
    for current, saved in attributes:
        current.update(saved)
        if len(current) > len(saved):
            for name in current.keys() - saved.keys():
                del current[name]


def _restore_containers(
    empty: Sequence[Container], filled: Sequence[tuple[Container, Container]]
) -> None:
    for container in empty if any(empty) else ():
        container.clear()
    for container, content in () if _same(filled) else filled:
        if isinstance(container, list):
            container[:] = content
        elif not _same([(container, content)]):
            container.clear()
            container.update(content)


def _same(pairs: Sequence[tuple[Container, Container]]) -> bool:
    """Whether the two containers of each pair hold the same objects in the same order."""
    current, saved = [a for a, _ in pairs], [b for _, b in pairs]
    if list(map(len, current)) != list(map(len, saved)):
        return False
    kept = all(map(is_, chain.from_iterable(current), chain.from_iterable(saved)))
    return kept and all(map(is_, _all_values(current), _all_values(saved)))


def _all_values(containers: Iterable[Container]) -> Iterator[Any]:
    """Those of dicts."""
    return chain.from_iterable(c.values() for c in containers if isinstance(c, dict))


def _generator_states(model: nn.Module) -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    if torch.cuda.is_available() and any(p.is_cuda for p in model.parameters()):
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return not torch.equal(a, b)
    if isinstance(a, dict):
        return any(_differ(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)):
        return any(map(_differ, a, b))
    # Also arrays of numpy.
    return bool((a != b).any()) if hasattr(a, "any") else bool(a != b)


def _restore_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
