"""Runs a model so that afterwards it is as it was."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import ismemberdescriptor
from itertools import chain, filterfalse
from operator import is_
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ghn_fast.graph.trace.written import Values

Container = Any
"""A dict, list, set, deque or tuple."""
Attributes = dict[str, Any]

_CONTAINERS = (dict, list, set, deque, tuple)
_OBJECTS = 3
"""How many objects, each an attribute of the one before, are followed from a module."""
_PLAIN = frozenset((bool, int, float, str, type, type(None)))
"""What most attributes are: a look at the class tells that they hold nothing that changes."""
_UNSET = object()
_Generator = tuple[Callable[..., Any], Callable[..., Any]]
"""How the state of a random number generator is read and set."""


class Preserved(NamedTuple):
    """What is kept of a model while it runs.

    Attributes:
        tensors: its parameters, its buffers, and those that are attributes or in containers.
        drew: tells whether a random number generator was used meanwhile.
    """

    tensors: Sequence[Tensor]
    drew: Callable[[], bool]


@contextmanager
def preserved(
    model: nn.Module, modules: Sequence[nn.Module], values: bool = False
) -> Iterator[Preserved]:
    """Restores modules' attributes and the random number generators on leaving.

    Args:
        model: the model.
        modules: its modules. What they refer to (mode, hooks, registered tensors, arrays,
            generators, caches in containers of any depth and in objects of their own, three deep)
            is kept, not copied.
        values: also keep the values of tensors, for when the model really runs.
    """
    attributes = [(m.__dict__, m.__dict__.copy()) for m in modules]
    state = _State([saved for _, saved in attributes], set(map(id, modules)))
    written = Values(state.tensors) if values else None
    generators = [*_global_generators(model), *state.generators]
    before = [get() for get, _ in generators]
    try:
        with written or nullcontext():
            yield Preserved(
                state.tensors, lambda: _differ(before, [get() for get, _ in generators])
            )
    finally:
        _restore_attributes(attributes)
        state.restore()
        if written is not None:
            written.restore()
        for (_, put), value in zip(generators, before, strict=True):
            put(value)


class _State:
    """What is in the attributes of modules that can change, with copies of it.

    Attributes:
        tensors: that were found; their values are not copied.
        generators: that were found.

    Args:
        attributes: of the modules.
        seen: ids of the modules, which are kept by themselves.
    """

    def __init__(self, attributes: Sequence[Attributes], seen: set[int]) -> None:
        self.tensors: list[Tensor] = []
        self.generators: list[_Generator] = []
        self._empty: list[Container] = []
        self._filled: list[tuple[Container, Container]] = []
        self._objects: list[tuple[Attributes, Attributes]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._slots: list[tuple[Any, Any, Any]] = []
        self._seen = seen
        values = list(chain.from_iterable(saved.values() for saved in attributes))
        for _ in range(_OBJECTS):
            values = self._keep(self._in_containers(values))

    def _in_containers(self, level: list[Any]) -> list[Any]:
        """Keeps containers, and returns what else there is in them that is not plain."""
        others: list[Any] = []
        while level:
            # There are few classes and thousands of values.
            classes = set(map(type, level))
            containers = {kind for kind in classes if issubclass(kind, _CONTAINERS)}
            rest = classes - containers - _PLAIN
            others += [value for value in level if type(value) in rest] if rest else []
            found = [value for value in level if type(value) in containers]
            self._empty += filterfalse(None, found)
            new = [value for value in filter(None, found) if id(value) not in self._seen]
            self._seen.update(map(id, new))
            copies = [(c, c.copy()) for c in new if not isinstance(c, tuple)]
            self._filled += copies
            contents = (_values(content) for _, content in copies)
            level = list(chain(*contents, *(c for c in new if isinstance(c, tuple))))
        return others

    def _keep(self, values: list[Any]) -> list[Any]:
        """Keeps what has a state, and returns what is in the attributes of the objects."""
        tensors = {kind for kind in set(map(type, values)) if issubclass(kind, Tensor)}
        self.tensors += [value for value in values if type(value) in tensors]
        others = [value for value in values if type(value) not in tensors]
        held: list[Any] = []
        for value in [value for value in others if id(value) not in self._seen]:
            generator = _generator(value)
            if generator is not None:
                self.generators.append(generator)
            elif type(value) is np.ndarray and value.flags.writeable:
                self._arrays.append((value, value.copy()))
            elif isinstance(value, nn.Module):  # in a list, say, and so not registered
                parts = [part for part in value.modules() if id(part) not in self._seen]
                held += chain.from_iterable(map(self._attributes_of, parts))
            elif _is_plain_object(value):
                held += self._attributes_of(value)
        return held

    def _attributes_of(self, value: Any) -> list[Any]:
        self._seen.add(id(value))
        slots = [(value, slot, _slot_value(slot, value)) for slot in _slots(value)]
        self._slots += slots
        attributes = getattr(value, "__dict__", None)
        attributes = attributes if isinstance(attributes, dict) else {}
        self._objects.append((attributes, attributes.copy()))
        return [*attributes.values(), *(held for _, _, held in slots)]

    def restore(self) -> None:
        """Puts everything back but what tensors and generators have in them."""
        _restore_attributes(self._objects)
        _restore_containers(self._empty, self._filled)
        for value, slot, held in self._slots:
            if held is not _UNSET:
                slot.__set__(value, held)
            elif _slot_value(slot, value) is not _UNSET:
                slot.__delete__(value)
        for array, content in self._arrays:
            np.copyto(array, content)


def _values(container: Container) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_plain_object(value: Any) -> bool:
    """Whether it keeps its state in attributes, such as a cache of keys and values."""
    return not isinstance(value, (type, ModuleType)) and not callable(value)


def _slots(value: Any) -> list[Any]:
    """The descriptors of attributes that are not in a dict."""
    classes = (vars(base) for base in type(value).__mro__)
    members = chain.from_iterable(c.values() for c in classes if "__slots__" in c)
    return list(filter(ismemberdescriptor, members))


def _slot_value(slot: Any, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _UNSET


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
            fill = container.extend if isinstance(container, deque) else container.update
            fill(content)


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


def _global_generators(model: nn.Module) -> list[_Generator]:
    found: list[_Generator] = [
        (random.getstate, random.setstate),
        (torch.get_rng_state, torch.set_rng_state),
        (np.random.get_state, np.random.set_state),
    ]
    if torch.cuda.is_available() and any(p.is_cuda for p in model.parameters()):
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return found


def _generator(value: Any) -> _Generator | None:
    """How to read and set the state of a value if it is a random number generator."""
    if isinstance(value, (torch.Generator, np.random.RandomState)):
        return value.get_state, value.set_state
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return partial(getattr, bits, "state"), partial(setattr, bits, "state")
    # The operating system's has no state.
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.getstate, value.setstate
    return None


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return not torch.equal(a, b)
    if isinstance(a, dict):
        return any(_differ(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)):
        return any(map(_differ, a, b))
    # Also arrays of numpy.
    return bool((a != b).any()) if hasattr(a, "any") else bool(a != b)
