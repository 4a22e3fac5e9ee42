"""Two saved runs of the benchmarks side by side: ``python bench/compare.py OLD.json NEW.json``.

Both are files of pytest-benchmark, as ``pytest bench --benchmark`` leaves them in ``.benchmarks``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEADINGS = ("benchmark", "old, ms", "new, ms", "new / old", "limit and peers")


def rows(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, ...]]:
    """One for each benchmark of either run, by medians; what is in one run only has dashes."""
    before, after = ({b["fullname"]: b for b in run["benchmarks"]} for run in (old, new))
    found = []
    for name in sorted({*before, *after}):
        times = [1e3 * r[name]["stats"]["median"] if name in r else None for r in (before, after)]
        ratio = f"{times[1] / times[0]:.2f}" if times[0] and times[1] is not None else "-"
        extra = (after.get(name) or before[name])["extra_info"]
        limit = ", ".join(f"{key} {value}" for key, value in extra.items())
        cells = ["-" if time is None else f"{time:.3f}" for time in times]
        found.append((name.removeprefix("bench/"), *cells, ratio, limit))
    return found


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    table = [HEADINGS, *rows(old, new)]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for name, *numbers, limit in table:
        columns = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
        print(f"{name:{widths[0]}}  {'  '.join(columns)}  {limit}".rstrip())


if __name__ == "__main__":
    main()
