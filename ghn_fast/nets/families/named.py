"""The architectures that torchvision and timm have names for.

``python -m ghn_fast.nets.families.named`` writes the list anew, with what is installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import resources
from pathlib import Path

from torch import nn

from ghn_fast.graph.graph import Graph
from ghn_fast.nets.families.ghosts import Ghosts
from ghn_fast.nets.families.signature import signature
from ghn_fast.nets.space.adjust import adjust_net
from ghn_fast.nets.zoo import build_zoo_net, zoo_names

_FILE = "named.txt"


@cache
def named_architectures() -> frozenset[str]:
    """Their signatures (:func:`ghn_fast.nets.families.signature.signature`).

    As they are, and as :func:`ghn_fast.nets.adjust_net` and :mod:`ghn_fast.nets.zoo` fit them to
    32 x 32 images.
    """
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    return frozenset(line.split()[0] for line in text.splitlines())


def _models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every name with what makes the model."""
    from torchvision import models

    for name in models.list_models(module=models):
        make = partial(models.get_model, name)
        yield f"torchvision/{name}", make
        yield f"torchvision/{name}", partial(_fitted, make)
    import timm

    for name in timm.list_models():
        yield f"timm/{name}", partial(timm.create_model, name)
    for name in zoo_names():
        yield name, partial(build_zoo_net, name)


def _fitted(make: Callable[[], nn.Module]) -> nn.Module:
    return adjust_net(make())


def _signature(name: str, make: Callable[[], nn.Module]) -> str:
    """Empty for a model that cannot be built for its shapes alone, or traced."""
    try:
        with Ghosts(seed=0):
            model = make()
        return signature(Graph.from_model(model.eval()))
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
        return ""


def _write() -> None:
    found: dict[str, str] = {}
    for name, make in _models():
        found.setdefault(_signature(name, make), name)
    lines = (f"{digest} {name}\n" for digest, name in found.items() if digest)
    Path(__file__).with_name(_FILE).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _write()
