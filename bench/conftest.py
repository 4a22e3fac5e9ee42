"""Benchmarks: ``pytest bench/`` runs each once, ``pytest bench/ --benchmark`` measures.

What was measured is saved in ``.benchmarks`` (compare runs with ``pytest-benchmark compare``), and
printed as a table with the limits and the peers that a benchmark names in its ``extra_info``, and
drawn over the sizes that it names there (``plot.py``).
"""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.utils import get_tag


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="measure, save and print a table, instead of running each benchmark once",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--benchmark"):
        # Named after the commit and the time, as by --benchmark-autosave.
        config.option.benchmark_autosave = get_tag()
        # Our table has what pytest-benchmark's has not: the limits and the peers.
        config.option.benchmark_quiet = True
    else:
        config.option.benchmark_disable = True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        return
    groups = defaultdict(list)
    for benchmark in getattr(config, "_benchmarksession").benchmarks:  # noqa: B009
        if benchmark.stats.data:
            groups[benchmark.group or ""].append(benchmark)
    for group, benchmarks in groups.items():
        _print_group(terminalreporter, group, benchmarks)
    measured = [benchmark for benchmarks in groups.values() for benchmark in benchmarks]
    _draw_growth(terminalreporter, measured, config.rootpath / ".benchmarks" / "growth.svg")


def _draw_growth(terminalreporter: Any, benchmarks: list[Any], path: Path) -> None:
    """The picture of ``bench/plot.py``, where matplotlib is installed."""
    if find_spec("matplotlib") is None:
        terminalreporter.write_line("no picture of the growth: matplotlib is not installed")
        return
    from plot import plot

    path.parent.mkdir(exist_ok=True)
    if plot([benchmark.as_dict(include_data=False) for benchmark in benchmarks], path):
        terminalreporter.write_line(f"growth over sizes: {path}")


def _print_group(terminalreporter: Any, group: str, benchmarks: list[Any]) -> None:
    """One line each: the median, its ratio to the group's fastest, and the extra information."""
    terminalreporter.section(group or "benchmarks", sep="-")
    fastest = min(benchmark.stats.median for benchmark in benchmarks)
    width = max(len(benchmark.name) for benchmark in benchmarks)
    for benchmark in sorted(benchmarks, key=lambda benchmark: benchmark.stats.median):
        median = benchmark.stats.median
        extra = ", ".join(f"{name} {value}" for name, value in benchmark.extra_info.items())
        terminalreporter.write_line(
            f"{benchmark.name:{width}}  {1e3 * median:10.3f} ms  {median / fastest:8.2f} x  {extra}"
        )
