"""The command line: ``ghn-fast predict``, ``fit``, ``train``, ``eval``, ``nets`` and ``draw``.

Knows everything but ``ppuda``; computes nothing itself, and nothing imports it.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; expected errors are one line on standard error, and exit code 1."""
    from ghn_fast.cli.app import app
    from ghn_fast.cli.errors import expected_errors

    try:
        app()
    except expected_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


__all__ = ["main"]
