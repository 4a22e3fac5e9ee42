"""The benchmarks of each release, kept in ``bench/history`` and drawn on a page of the docs.

    pytest bench --benchmark
    python bench/history.py 0.1.0 .benchmarks/.../0001_....json

keeps of a saved run what says how fast a release is on a machine: medians, limits and what was
measured beside them. The page "Benchmark history" is made of these files when the docs are built.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from table import limit_ms, median_ms

FOLDER = Path(__file__).with_name("history")


def kept(run: dict[str, Any], release: str) -> dict[str, Any]:
    """What is kept of a saved run."""
    machine = run["machine_info"]
    groups = defaultdict(list)
    for entry in run["benchmarks"]:
        groups[entry["group"]].append(entry)
    return {
        "release": release,
        "commit": run["commit_info"]["id"],
        "date": run["datetime"][:10],
        "machine": machine["cpu"].get("brand_raw", machine["machine"]),
        "cores": machine["cpu"].get("count"),
        "python": machine["python_version"],
        "benchmarks": {
            entry["fullname"].removeprefix("bench/"): {
                "median_ms": round(median_ms(entry), 4),
                "iqr_ms": round(1e3 * entry["stats"]["iqr"], 4),
                "rounds": entry["stats"]["rounds"],
                "limit_ms": limit_ms(entry, groups[entry["group"]]),
                "beside": entry["extra_info"],
            }
            for entry in sorted(run["benchmarks"], key=lambda entry: str(entry["fullname"]))
        },
    }


def file_name(record: dict[str, Any]) -> str:
    """One for each release and kind of machine."""
    machine = re.sub(r"[^a-z0-9]+", "-", str(record["machine"]).lower()).strip("-")
    return f"{record['release']}-{machine}.json"


def records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The kept runs, the oldest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda record: (record["date"], record["release"]))


def page(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table: each benchmark's median, and how many times its limit that is."""
    heads = [f"{run['release']}, {run['date']}, {run['machine']}" for run in runs]
    yield f"| benchmark, ms (times the limit) | {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * len(runs)}"
    for name in sorted({name for run in runs for name in run["benchmarks"]}):
        cells = [_cell(run["benchmarks"].get(name)) for run in runs]
        yield f"| `{name.replace('|', '/')}` | {' | '.join(cells)} |"


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "—"
    factor = _factor(entry)
    return f"{entry['median_ms']:.3g}" + ("" if factor is None else f" ({factor:.2g})")


def _factor(entry: dict[str, Any]) -> float | None:
    return entry["median_ms"] / entry["limit_ms"] if entry["limit_ms"] else None


def drawing(runs: Sequence[dict[str, Any]]) -> str:
    """An SVG: how many times its limit each benchmark takes, a colour for each run."""
    from matplotlib.figure import Figure

    factors = [
        {name: factor for name, entry in run["benchmarks"].items() if (factor := _factor(entry))}
        for run in runs
    ]
    names = sorted({name for found in factors for name in found}, reverse=True)
    figure = Figure(figsize=(8, 1.2 + 0.16 * len(names)), layout="constrained")
    axis = figure.subplots()
    for run, found in zip(runs, factors, strict=True):
        own = [name for name in names if name in found]
        label = f"{run['release']}, {run['machine']}"
        axis.plot(
            [found[name] for name in own], [names.index(name) for name in own], "o", label=label
        )
    axis.axvline(1, color="grey", linewidth=1)
    axis.set(xscale="log", xlabel="times the limit", ylim=(-1, len(names)))
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.3, 1.06), frameon=False)
    axis.grid(axis="x", alpha=0.3)
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    return picture.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release")
    parser.add_argument("run", type=Path, help="a file that pytest-benchmark saved")
    options = parser.parse_args()
    record = kept(json.loads(options.run.read_text(encoding="utf-8")), options.release)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / file_name(record)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
