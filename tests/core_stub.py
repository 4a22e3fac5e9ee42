"""The types of the C++ core, ``ghn_fast/_C.pyi``, from the core itself.

    python -m tests.core_stub       writes the file anew, after a change of the bindings

Needs pybind11-stubgen and ruff, both of ``.[dev]``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).parents[1] / "ghn_fast" / "_C.pyi"

# What differs from one version of pybind11 to the next, and from one build to the next.
ALIKE = {
    r"typing\.SupportsInt( \| typing\.SupportsIndex)?": "int",
    r"typing\.SupportsFloat( \| typing\.SupportsIndex)?": "float",
    r"^(\w+: (?:str|bool)) = .*$": r"\1",
}


def make() -> str:
    """The stub of the core that is imported here."""
    with tempfile.TemporaryDirectory() as folder:
        run("pybind11_stubgen", "ghn_fast._C", "-o", folder, "--exit-code", folder=folder)
        path = Path(folder, "ghn_fast", "_C.pyi")
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in ALIKE.items():
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")
        settings = STUB.parents[1] / "pyproject.toml"
        run("ruff", "check", "--quiet", "--fix-only", "--config", str(settings), str(path))
        run("ruff", "format", "--quiet", "--config", str(settings), str(path))
        return path.read_text(encoding="utf-8")


def run(*module: str, folder: str | None = None) -> None:
    """Not where a checkout would hide the installed package, if it matters."""
    command = [sys.executable, "-m", *module]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)


if __name__ == "__main__":
    STUB.write_text(make(), encoding="utf-8")
