"""What was measured as a table: each time beside its limit and the group's fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

HEADINGS = ("", "median, ms", "/ fastest", "/ limit", "measured beside it")
LIMIT_WAYS = {"copy", "writing"}
"""Ways of a group that do no more than move its bytes."""

Entry = dict[str, Any]


def limit_ms(entry: Entry, group: Sequence[Entry]) -> float | None:
    """What a benchmark cannot be faster than, or is not to be slower than.

    It is what the benchmark names: ``limit_ms``, or the time that its arithmetic (``flops_ms``) and
    its bytes (``bytes_ms``) take; otherwise the row of its group that moves the bytes.
    """
    named = [entry["extra_info"].get(f"{name}_ms") for name in ("limit", "flops", "bytes")]
    if any(value is not None for value in named):
        return max(float(value) for value in named if value is not None)
    rows = [other for other in group if LIMIT_WAYS & {*(other["params"] or {}).values()}]
    return min((median_ms(other) for other in rows), default=None)


def median_ms(entry: Entry) -> float:
    return 1e3 * float(entry["stats"]["median"])


def lines(group: Sequence[Entry]) -> Iterator[str]:
    """The headings, then one line a benchmark, the fastest first; a dash is no limit."""
    ordered = sorted(group, key=median_ms)
    rows = [HEADINGS, *(_row(entry, ordered) for entry in ordered)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, *numbers, beside in rows:
        columns = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
        yield f"{name:{widths[0]}}  {'  '.join(columns)}  {beside}".rstrip()


def _row(entry: Entry, group: Sequence[Entry]) -> tuple[str, ...]:
    median, limit = median_ms(entry), limit_ms(entry, group)
    beside = ", ".join(f"{name} {value}" for name, value in entry["extra_info"].items())
    factor = "-" if not limit else f"{median / limit:.2f}"
    return entry["name"], f"{median:.3f}", f"{median / median_ms(group[0]):.2f}", factor, beside
