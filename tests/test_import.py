from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ghn_fast
from ghn_fast import _core

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


def test_core_that_does_not_load_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ghn_fast._C", None)
    monkeypatch.delattr(ghn_fast, "_C", raising=False)
    monkeypatch.delitem(sys.modules, "ghn_fast._core")
    with pytest.raises(ImportError, match=r"does not load here.*pip install -e") as caught:
        import_module("ghn_fast._core")
    assert caught.value.__suppress_context__, "no talk of a circular import"


def test_core_that_is_not_built_says_how(tmp_path: Path) -> None:
    message = _core.explain(ImportError("no _C"), tmp_path / "ghn_fast", [str(tmp_path)])
    assert re.search(r"not built.*pip install -e.*no _C", message)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH came with Python 3.11")
def test_checkout_that_hides_the_installed_package(tmp_path: Path) -> None:
    """Says what to type, and what it says works."""
    checkout, package = tmp_path / "checkout", Path(ghn_fast.__file__).parent
    checkout.mkdir()
    shutil.copytree(
        package, checkout / "ghn_fast", ignore=shutil.ignore_patterns("_C.*.so", "_C.*.pyd")
    )

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        path = {"PYTHONPATH": str(package.parent)}
        return subprocess.run(
            [sys.executable, "-c", "import ghn_fast; print(ghn_fast.__file__)"],
            cwd=checkout,
            env={**os.environ, "PYTHONSAFEPATH": "", **path, **environment},
            capture_output=True,
            text=True,
        )

    refused = run()
    assert refused.returncode == 1
    assert f"hides the package installed in {package.parent.resolve()}" in refused.stderr
    assert run(PYTHONSAFEPATH="1").stdout.strip() == ghn_fast.__file__
