from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ghn_fast

HEAVY = ("torchvision", "pyarrow", "PIL", "rich", "typer", "huggingface_hub", "tensorboard")


@pytest.mark.parametrize("name", ghn_fast.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(ghn_fast, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'predicts'"):
        _ = ghn_fast.predicts  # type: ignore[attr-defined]


def test_import_is_light(tmp_path: Path) -> None:
    """What only some functions need is imported by them."""
    code = f"import sys, ghn_fast; print([m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert loaded.strip() == "[]"


def test_kernels_are_installed() -> None:
    assert import_module("ghn_fast.kernels").__doc__


def test_core_that_is_not_built_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ghn_fast._C", None)
    monkeypatch.delattr(ghn_fast, "_C", raising=False)
    monkeypatch.delitem(sys.modules, "ghn_fast._core")
    with pytest.raises(ImportError, match=r"not built.*pip install -e"):
        import_module("ghn_fast._core")
