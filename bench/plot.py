"""How times grow with nodes, parameters and threads, drawn from saved benchmarks.

``python bench/plot.py`` draws what ``pytest bench/ --benchmark`` saved last; or names a file and a
picture: ``python bench/plot.py .benchmarks/.../0001_....json growth.svg``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

SIZES = ("nodes", "parameters", "threads")
"""What a benchmark names in its ``extra_info`` to be drawn over it."""
WAYS = ("way", "backend", "how", "builder", "peer")
"""Parameters of a benchmark that tell what is compared: a line of its own each."""

Point = tuple[float, float]
Panels = dict[tuple[str, str], dict[str, list[Point]]]


def panels(benchmarks: list[dict[str, Any]]) -> Panels:
    """{(benchmark, size): {way: (size, milliseconds) in order}}, where there are two sizes."""
    found: Panels = defaultdict(lambda: defaultdict(list))
    for entry in benchmarks:
        function = entry["name"].partition("[")[0].removeprefix("bench_")
        file = Path(entry["fullname"].partition("::")[0]).stem.removeprefix("bench_")
        title = function if function == file else f"{file}: {function}"
        for size in SIZES:
            if size in entry["extra_info"]:
                point = (float(entry["extra_info"][size]), 1e3 * entry["stats"]["median"])
                found[title, size][_way(entry)].append(point)
    return {
        key: {way: sorted(points) for way, points in lines.items()}
        for key, lines in found.items()
        if max(len({x for x, _ in points}) for points in lines.values()) > 1
    }


def _way(entry: dict[str, Any]) -> str:
    values = {**(entry["params"] or {}), **entry["extra_info"]}
    return next((str(values[name]) for name in WAYS if name in values), "ghn_fast")


def plot(benchmarks: list[dict[str, Any]], path: Path) -> bool:
    """Draws a panel for each benchmark and size; False if there is nothing to draw."""
    from matplotlib.figure import Figure

    drawn = panels(benchmarks)
    if not drawn:
        return False
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, ((title, size), lines) in zip(axes, drawn.items(), strict=False):
        for way, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=way)
        axis.set(title=title, xlabel=size, ylabel="ms", yscale="log")
        axis.set_xscale("log", base=2 if size == "threads" else 10)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    for axis in list(figure.axes)[len(drawn) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=120)
    return True


def latest(folder: Path) -> Path:
    """The file that was saved last.

    Raises:
        SystemExit: there is none.
    """
    files = sorted(folder.glob("*/*.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise SystemExit(f"no benchmarks in {folder}: run pytest bench/ --benchmark first")
    return files[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", help="a saved run; by default the last")
    parser.add_argument("picture", type=Path, nargs="?", default=Path(".benchmarks/growth.svg"))
    arguments = parser.parse_args()
    results = arguments.results or latest(Path(".benchmarks"))
    saved = json.loads(results.read_text())
    if not plot(saved["benchmarks"], arguments.picture):
        raise SystemExit(f"{results} holds no benchmark over several sizes")
    print(f"wrote {arguments.picture}")


if __name__ == "__main__":
    main()
