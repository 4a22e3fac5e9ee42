"""Benchmarks: ``pytest bench/`` runs each once, ``pytest bench/ --benchmark`` measures.

What was measured is saved in ``.benchmarks`` (compare runs with ``pytest-benchmark compare``), and
printed as a table with the limits and the peers that a benchmark names in its ``extra_info``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="measure, save and print a table, instead of running each benchmark once",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--benchmark"):
        config.option.benchmark_autosave = True
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
