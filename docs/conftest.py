"""``pytest docs`` runs the examples of the pages (``examples.py``)."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import OPTIONS, as_doctest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    return Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None


class Page(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        test = as_doctest(self.path)
        if test is not None:
            yield Examples.from_parent(self, name="examples", test=test)


class Examples(pytest.Item):
    def __init__(self, *, test: doctest.DocTest, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.test = test

    def runtest(self) -> None:
        printed: list[str] = []
        doctest.DocTestRunner(optionflags=OPTIONS).run(self.test, out=printed.append)
        if printed:
            pytest.fail("".join(printed), pytrace=False)
