"""The Triton kernels compile for the GPUs that they are for; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghn_fast.ops.backends import HAS_TRITON

# An sm_80 has 163 KB of shared memory for a block, an sm_90 227 KB.
MOST_SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10}


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
def test_kernels_compile(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-P", str(Path(__file__).parent / "lower_kernels.py"), "80", "90"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lowered = json.loads(run.stdout)
    assert {name.split()[1] for name in lowered} == {
        *("find_levels", "sort_distances", "forward_pass", "backward_pass"),
        *("fill_part", "sum_part"),
    }
    for name, found in lowered.items():
        assert found["bytes"] > 0
        assert found["shared"] <= MOST_SHARED[name.split()[0]]
        assert found["forbidden"] == [], name
        if "_pass" in name:
            # At least the four of a level.
            assert found["barriers"] >= 4
