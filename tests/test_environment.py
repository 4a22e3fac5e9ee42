from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ghn_fast
from ghn_fast import environment
from ghn_fast._core import core


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    ghn_fast.show_config()
    shown = capsys.readouterr().out
    for part in (ghn_fast.__version__, torch.__version__, core.isa(), core.compiler, "OpenMP"):
        assert part in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert rows["gated_gnn"][0] == rows["tile"][0] == rows["shortest_paths"][0] == "cpp"


def test_show_config_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "HAS_TRITON", False)
    monkeypatch.setattr("ghn_fast.ops.backends.HAS_TRITON", False)
    monkeypatch.setattr(environment, "runs_on_cuda", lambda: False)
    shown = environment.describe()
    assert "Triton: not installed" in shown
    assert "nvcc was not found" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert rows["gated_gnn"] == rows["tile"] == ["cpp", "reference"]


def test_operations_do_not_import_triton() -> None:
    """It takes most of a second, and is not needed on the CPU."""
    code = "import ghn_fast.ghn, sys; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
