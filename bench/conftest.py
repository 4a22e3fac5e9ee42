"""Benchmarks: ``pytest bench/`` runs each once, ``pytest bench/ --benchmark`` measures.

What was measured is saved in ``.benchmarks`` (compare runs with ``bench/compare.py``), and
printed as a table with the limits and the peers of each (``table.py``), and drawn over the sizes
that benchmarks name in their ``extra_info`` (``plot.py``).
"""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.utils import get_tag
from table import lines


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
        terminalreporter.section(group or "benchmarks", sep="-")
        for line in lines([benchmark.as_dict(include_data=False) for benchmark in benchmarks]):
            terminalreporter.write_line(line)
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
