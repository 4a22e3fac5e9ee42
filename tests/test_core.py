"""What is known of the C++ core by its types alone."""

from __future__ import annotations

import pytest

from tests import core_stub


def test_types_are_the_cores() -> None:
    """After a change of the bindings: ``python -m tests.core_stub``."""
    pytest.importorskip("pybind11_stubgen")
    pytest.importorskip("ruff")
    assert core_stub.make() == core_stub.STUB.read_text(encoding="utf-8")
