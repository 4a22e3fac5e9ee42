"""Which backends this installation has."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None

BACKENDS = ("triton", "cpp", "reference") if HAS_TRITON else ("cpp", "reference")
"""Fastest first: "triton" on CUDA devices, "cpp" on the CPU, "reference" (PyTorch) anywhere."""

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of the tensors that Triton kernels take; they compute in float32."""


def fast_backend(device: torch.device) -> str:
    """The fastest backend on a device, for tensors of the dtypes that it takes."""
    if device.type == "cpu":
        return "cpp"
    return "triton" if device.type == "cuda" and triton_runs_on(device) else "reference"


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton kernels run on tensors of a device, on the CPU by Triton's interpreter."""
    if not HAS_TRITON:
        return False
    if device.type == "cuda":
        return _compiles_for(device)
    return device.type == "cpu" and is_interpreting()


@lru_cache
def _compiles_for(device: torch.device) -> bool:
    """Before Triton 3.3 a GPU has to have instructions for bfloat16, as those since Ampere have."""
    import triton

    is_new = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
    if (
        is_new
        or not torch.cuda.is_available()
        or torch.cuda.get_device_capability(device) >= (8, 0)
    ):
        return True
    warnings.warn(
        f"Triton {triton.__version__} cannot compile for {torch.cuda.get_device_name(device)}, so "
        "that PyTorch's own operations are used, which are slower; PyTorch 2.7 brings one that can",
        stacklevel=2,
    )
    return False


def is_interpreting() -> bool:
    """Whether Triton kernels are interpreted: slow, for tests on machines without a GPU."""
    if not HAS_TRITON:
        return False
    import triton

    if not hasattr(triton, "knobs"):  # before Triton 3.4
        return os.environ.get("TRITON_INTERPRET", "0") == "1"
    return bool(triton.knobs.runtime.interpret)


def triton_kernels(op: str) -> Any:
    """The module of an operation's Triton kernels, which is imported only where they run."""
    name = f"ghn_fast.kernels.{op}"
    return sys.modules.get(name) or importlib.import_module(name)


def check_known(backend: str) -> None:
    """Raises ValueError for a backend that is not there."""
    if backend == "triton" and not HAS_TRITON:
        raise ValueError("backend 'triton' needs Triton: install it, or use backend=None")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; use one of {BACKENDS} or None")


def unsuitable(backend: str, dtypes: Sequence[torch.dtype], device: torch.device) -> ValueError:
    """The error for tensors that a backend does not take."""
    names = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
    limits = {
        "cpp": "'cpp' works on float32 and float64 tensors on the CPU",
        "triton": "'triton' works on float32, float16 and bfloat16 tensors on a CUDA device (on "
        "the CPU only where TRITON_INTERPRET=1 was set before Triton was imported, for tests)",
    }
    return ValueError(
        f"backend {limits[backend]}, not on {names} on {device}; use backend=None or 'reference'"
    )
