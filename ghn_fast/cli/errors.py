"""Errors that a user can do something about; their message is enough."""

from __future__ import annotations


class UsageError(ValueError):
    """What was asked for does not exist or does not fit."""


def expected_errors() -> tuple[type[Exception], ...]:
    """What the library raises of them; an ImportError names the extra that is to be installed."""
    from ghn_fast.graph import TraceError

    return (ValueError, TraceError, OSError, ImportError)
