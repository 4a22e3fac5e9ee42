"""What this installation is made of, for bug reports and to see which code runs."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from ghn_fast._core import core
from ghn_fast._version import __version__
from ghn_fast.ops.backends import HAS_TRITON, fast_backend, is_interpreting
from ghn_fast.ops.shortest_paths import runs_on_cuda


def show_config() -> None:
    """Prints versions, how the core was built, and which backend each operation takes where.

    As :func:`torch.__config__.show`, for ghn_fast.

    Examples:
        >>> ghn_fast.show_config()
        ghn_fast ...
        operation       CPU        CUDA
        ...
    """
    print(describe())


def describe() -> str:
    """What :func:`show_config` prints."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    on_device = (
        "cuda (of edges on the device)" if runs_on_cuda() else "cpp, and a copy to the device"
    )
    lines = [
        f"ghn_fast {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"torch {torch.__version__}, torchvision {_version('torchvision')}, {_cuda()}",
        f"core: {core.compiler}, instructions {core.isa()}, {_openmp()}, {_cuda_core()}",
        f"Triton: {_triton()}",
        "operation       CPU        CUDA",
        *(f"{op:15} {fast_backend(cpu):10} {fast_backend(cuda)}" for op in ("gated_gnn", "tile")),
        f"{'shortest_paths':15} {'cpp':10} {on_device}",
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    if torch.version.cuda is None:
        return "built without CUDA"
    if not torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, no device"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda} on {', '.join(names)}"


def _openmp() -> str:
    if not core.openmp:
        return "no OpenMP (one thread)"
    return f"OpenMP ({torch.get_num_threads()} threads, torch.get_num_threads())"


def _cuda_core() -> str:
    return "built with CUDA" if runs_on_cuda() else "built without CUDA (nvcc was not found)"


def _triton() -> str:
    if not HAS_TRITON:
        return "not installed; on CUDA devices the PyTorch reference is used"
    return _version("triton") + (", interpreted (TRITON_INTERPRET)" if is_interpreting() else "")
