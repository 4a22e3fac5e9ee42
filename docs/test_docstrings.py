"""The examples in the docstrings of public names run as they stand."""

from __future__ import annotations

import doctest
import inspect
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import ghn_fast
import ghn_fast.graph
from ghn_fast.data import Images

PUBLIC = [
    *(name for name in ghn_fast.__all__ if name != "__version__"),
    "graph.register",
]


def names() -> dict[str, Any]:
    """What the examples take for granted: imports, and pictures of noise."""
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64) % 10
    loader = [(pixels[at : at + 32] / 255, labels[at : at + 32]) for at in (0, 32)]
    known = {"images": Images(pixels, labels), "loader": loader}
    return {"torch": torch, "torchvision": torchvision, "nn": nn, "ghn_fast": ghn_fast, **known}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    thing = operator.attrgetter(name)(ghn_fast)
    # Those of a class's methods are among them; those of its bases in other libraries are not.
    found = doctest.DocTestFinder(recurse=True).find(thing, name, inspect.getmodule(thing))
    printed: list[str] = []
    for test in found:
        test.globs = names()
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append)
    assert not printed, "".join(printed)
    assert any(test.examples for test in found), f"{name} has no example"
    # Under "Example:" the page would show them as a quotation.
    assert all("Examples:\n" in test.docstring for test in found if test.examples)
