"""Every example runs, and ends in a number or a picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.py"))
SCRIPTS = [path for path in FILES if path.stem not in ("pictures", "test_examples")]
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert any(letter.isalnum() for letter in done.stdout)
    picture = f"{script.stem}.png"
    assert (picture in script.read_text("utf-8")) == (tmp_path / picture).is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    content = nbformat.read(notebook, as_version=4)
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    runner = client.NotebookClient(
        content, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    runner.execute(env=environment)
    last = [cell for cell in content.cells if cell.cell_type == "code"][-1]
    assert last.outputs
