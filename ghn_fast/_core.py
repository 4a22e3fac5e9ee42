"""The compiled core, or an error that says how to build it."""

from __future__ import annotations

try:
    from ghn_fast import _C
except ImportError as error:
    raise ImportError(
        "ghn_fast's C++ core is not built. In a checkout, build it with "
        "`pip install -e .` (needs a C++17 compiler; CMake is fetched by pip); "
        f"the import failed with: {error}"
    ) from error

core = _C

__all__ = ["core"]
