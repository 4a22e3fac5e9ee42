"""Two saved runs of the benchmarks side by side: ``python bench/compare.py OLD.json NEW.json``.

Both are files of pytest-benchmark, as ``pytest bench --benchmark`` leaves them in ``.benchmarks``.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from table import limit_ms, median_ms

HEADINGS = ("benchmark", "old, ms", "new, ms", "new / old", "new / limit", "measured beside it")


def rows(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, ...]]:
    """One for each benchmark of either run, by medians; what is in one run only has dashes."""
    before, after = ({b["fullname"]: b for b in run["benchmarks"]} for run in (old, new))
    groups = defaultdict(list)
    for entry in new["benchmarks"]:
        groups[entry["group"]].append(entry)
    found = []
    for name in sorted({*before, *after}):
        then, now = (median_ms(run[name]) if name in run else None for run in (before, after))
        entry = after.get(name) or before[name]
        limit = limit_ms(entry, groups[entry["group"]])
        beside = ", ".join(f"{key} {value}" for key, value in entry["extra_info"].items())
        cells = ["-" if time is None else f"{time:.3f}" for time in (then, now)]
        ratios = [_ratio(now, then), _ratio(now, limit)]
        found.append((name.removeprefix("bench/"), *cells, *ratios, beside))
    return found


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
