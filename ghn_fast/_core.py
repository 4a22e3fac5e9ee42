"""The compiled core, or an error that says how to build it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent


def explain(error: ImportError, here: Path, path: Iterable[str]) -> str:
    """What is wrong where the core in the package's folder `here` could not be imported."""
    build = "build it with `pip install -e .` (needs a C++17 compiler; pip brings CMake)"
    if is_built(here):
        return f"ghn_fast's C++ core in {here} does not load here; in a checkout, {build}: {error}"
    packages = (Path(entry, "ghn_fast").resolve() for entry in path)
    installed = [package for package in packages if package != here.resolve() and is_built(package)]
    if installed:
        return (
            f"ghn_fast's C++ core is not built in the checkout {here.parent}, which hides the "
            f"package installed in {installed[0].parent}. To use that one, start Python in another "
            f"folder, or with PYTHONSAFEPATH=1; to work on this one, {build}"
        )
    return f"ghn_fast's C++ core is not built. In a checkout, {build}; the import said: {error}"


def is_built(package: Path) -> bool:
    return any(package.glob("_C.*.so")) or any(package.glob("_C.*.pyd"))


try:
    from ghn_fast import _C
except ImportError as error:
    # Not from the error, whose talk of a circular import misleads.
    raise ImportError(explain(error, HERE, sys.path)) from None

core = _C

__all__ = ["core"]
