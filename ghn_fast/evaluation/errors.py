"""What is wrong with an evaluation that was asked for."""

from __future__ import annotations


class EvaluationError(ValueError):
    """An evaluation that cannot be done or resumed; the message says why."""
