"""Where Triton kernels are tested: on a GPU, or by Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch

from ghn_fast.ops.backends import triton_runs_on

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

needs_triton = pytest.mark.skipif(
    not triton_runs_on(DEVICE), reason="needs Triton, and a CUDA device or TRITON_INTERPRET=1"
)
