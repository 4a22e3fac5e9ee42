"""Two runs of the benchmarks side by side: ``python bench/compare.py OLD.json NEW.json``.

Each is a file of pytest-benchmark, as ``pytest bench --benchmark`` leaves them in ``.benchmarks``,
or what is kept of a release in ``bench/history``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from history import kept

HEADINGS = ("benchmark", "old, ms", "new, ms", "new / old", "new / limit", "measured beside it")


def rows(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, ...]]:
    """One for each benchmark of either run, by medians; what is in one run only has dashes."""
    before, after = (_benchmarks(run) for run in (old, new))
    found = []
    for name in sorted({*before, *after}):
        then, now = (run[name]["median_ms"] if name in run else None for run in (before, after))
        entry = after.get(name) or before[name]
        beside = ", ".join(f"{key} {value}" for key, value in entry["beside"].items())
        cells = ["-" if time is None else f"{time:.3f}" for time in (then, now)]
        found.append((name, *cells, _ratio(now, then), _ratio(now, entry["limit_ms"]), beside))
    return found


def _benchmarks(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a run as it was saved, or as a release's is kept."""
    record = run if "release" in run else kept(run, "")
    benchmarks: dict[str, dict[str, Any]] = record["benchmarks"]
    return benchmarks


def _ratio(time: float | None, other: float | None) -> str:
    return f"{time / other:.2f}" if time is not None and other else "-"


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    table = [HEADINGS, *rows(old, new)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS) - 1)]
    for name, *numbers, beside in table:
        columns = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
        print(f"{name:{widths[0]}}  {'  '.join(columns)}  {beside}".rstrip())


if __name__ == "__main__":
    main()
