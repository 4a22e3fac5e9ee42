"""Where Triton kernels are tested: on a GPU, or by Triton's interpreter on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ghn_fast.ops.backends import HAS_TRITON, triton_runs_on

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _interpreter_is_too_old() -> bool:
    """Before 3.7 it makes scalars of arrays in a way that NumPy refuses since 2.4."""
    if not HAS_TRITON or DEVICE.type == "cuda":
        return False
    import triton

    release = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return release < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0"


needs_triton = pytest.mark.skipif(
    not triton_runs_on(DEVICE) or _interpreter_is_too_old(),
    reason="needs Triton, and a CUDA device or TRITON_INTERPRET=1 (before 3.7: NumPy before 2.4)",
)
