"""Fixtures that every test can use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Has to be set before Triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
hypothesis.settings.register_profile("campaign", max_examples=1000, deadline=None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that leaves gradients off is named, and does the next one no harm."""
    torch.set_grad_enabled(True)
    result = yield
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        warnings.warn(f"{item.nodeid} left gradients off", stacklevel=1)
    return result


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with conformance files and images, beside the checkout."""
    path = Path(os.environ.get("GHN_FAST_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared folder at {path}; set GHN_FAST_SHARED to where it is")
    return path


@pytest.fixture
def threads() -> Iterator[None]:
    """For a test that sets how many threads PyTorch computes with, which is set back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Within it files cannot grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))

    return limited


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
