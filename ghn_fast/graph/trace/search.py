"""Which of several guesses a model runs with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from ghn_fast.graph.trace.guess import Call, Guess
from ghn_fast.graph.trace.recorder import AsksValues, Hidden
from ghn_fast.graph.trace.shapes import Misfit

Result = TypeVar("Result")


@dataclass
class Search(Generic[Result]):
    """Tries guesses until one runs.

    Attributes:
        run: calls the model, on shapes or for real; raises what the model raises.
        may_run: tells whether it can be run for real.
        failures: the calls that failed, and how.
        for_real: guesses that are run for real, two sizes of each, where none runs on shapes.
    """

    run: Callable[[Call, bool], Result]
    may_run: Callable[[], bool]
    failures: list[tuple[Call, Exception]] = field(default_factory=list)
    for_real: int = 3

    def first(self, guesses: Iterable[Guess]) -> tuple[Call, Result] | None:
        """The first call that runs and its result; None if all failed."""
        tried: list[Guess] = []
        for guess in guesses:
            found = self._sizes(guess) or self._fitting(guess)
            if found is not None:
                return found
            tried.append(guess)
        for guess in tried[: self.for_real] if self.may_run() else ():
            for size in guess.sizes[:2]:
                found = self._attempt(guess.make(size), real=True)
                if found is not None:
                    return found
        return None

    def _sizes(self, guess: Guess) -> tuple[Call, Result] | None:
        attempts = (self._attempt(guess.make(size)) for size in guess.sizes)
        return next((found for found in attempts if found is not None), None)

    def _fitting(self, guess: Guess) -> tuple[Call, Result] | None:
        """By bisection, as what a layer gets grows with the size."""
        low, high = guess.range
        tried = self.failures[-len(guess.sizes) :]
        if not any(isinstance(error, Misfit) for _, error in tried):
            return None
        while low <= high:
            size = (low + high) // 2
            found = self._attempt(guess.make(size))
            if found is not None:
                return found
            _, error = self.failures.pop()
            if isinstance(error, Misfit) and error.got > error.wanted:
                high = size - 1
            else:
                low = size + 1
        return None

    def _attempt(self, call: Call, real: bool = False) -> tuple[Call, Result] | None:
        try:
            return call, self.run(call, real)
        except (AsksValues, Hidden) as error:
            if not real and self.may_run():
                return self._attempt(call, real=True)
            self.failures.append((call, error))
        except Exception as error:
            self.failures.append((call, error))
        return None


def innermost(error: BaseException) -> str:
    """The whole message of the error that led to another."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".strip()


def describe_failures(failures: Iterable[tuple[str, Exception]], most: int = 3) -> str:
    """A paragraph for each error, with the calls that ended in it or in one of other numbers."""
    found: dict[str, tuple[str, list[str]]] = {}
    for call, error in failures:
        message = innermost(error)
        _, tried = found.setdefault(re.sub(r"\d+", "0", message), (message, []))
        tried += [] if call in tried else [call]
    lines = []
    for message, tried in found.values():
        more = f" and {len(tried) - most} more" if len(tried) > most else ""
        lines.append(f"  {', '.join(islice(tried, most))}{more}: {message}")
    return "\n".join(lines)
