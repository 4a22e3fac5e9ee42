"""The Triton kernels compile for the GPUs that they are for; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ghn_fast.ops.backends import HAS_TRITON, _compiles_for, fast_backend, triton_runs_on

MOST_SHARED = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227, 120: 99}
"""KB of shared memory that a block may have, by compute capability (CUDA programming guide)."""
AMPERE, BLACKWELL = 80, 100


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize("architecture", MOST_SHARED)
def test_kernels_compile(architecture: int, tmp_path: Path) -> None:
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if not AMPERE <= architecture < BLACKWELL and version < (3, 3):
        pytest.skip(f"Triton {triton.__version__} is not for sm_{architecture}")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    program = str(Path(__file__).parent / "lower_kernels.py")
    command = [sys.executable, "-P", program, str(architecture)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lowered = json.loads(run.stdout)["lowered"]
    assert {name.split()[1] for name in lowered} == {
        *("find_levels", "sort_distances", "forward_pass", "backward_pass"),
        *("fill_part", "sum_part"),
    }
    for name, found in lowered.items():
        assert found["bytes"] > 0
        assert found["shared"] <= MOST_SHARED[architecture] << 10, name
        assert found["forbidden"] == [], name
        if "_pass" in name:
            # At least the four of a level.
            assert found["barriers"] >= 4


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize(
    ("version", "capability", "runs"),
    [("3.2.0", (7, 5), False), ("3.2.0", (8, 0), True), ("3.10.0+git", (7, 5), True)],
)
def test_old_gpus_need_a_newer_triton(
    version: str, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton.__version__", version)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    device = torch.device("cuda")
    _compiles_for.cache_clear()
    with nullcontext() if runs else pytest.warns(UserWarning, match="cannot compile for a GPU"):
        assert triton_runs_on(device) is runs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fast_backend(device) == ("triton" if runs else "reference")
    _compiles_for.cache_clear()
