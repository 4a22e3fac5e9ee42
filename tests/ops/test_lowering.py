"""The Triton kernels compile for the GPUs that they are for; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghn_fast.ops.backends import HAS_TRITON

MOST_SHARED = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227, 120: 99}
"""KB of shared memory that a block may have, by compute capability (CUDA programming guide)."""
BLACKWELL = 100


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize("architecture", MOST_SHARED)
def test_kernels_compile(architecture: int, tmp_path: Path) -> None:
    import triton

    if architecture >= BLACKWELL and triton.__version__ < "3.3":
        pytest.skip(f"Triton {triton.__version__} does not know sm_{architecture}")
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
