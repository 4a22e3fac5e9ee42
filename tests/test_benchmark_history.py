"""What is kept of the benchmarks of a release (bench/history.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import history

    yield history
    for name in ("compare", "history", "table"):
        sys.modules.pop(name, None)


def saved(**medians: float) -> dict[str, Any]:
    """A run as pytest-benchmark saves it; ``way_copy`` is the limit of its group."""
    return {
        "machine_info": {
            "cpu": {"brand_raw": "Some CPU @ 2 GHz", "count": 2},
            "machine": "x86_64",
            "python_version": "3.11.7",
        },
        "commit_info": {"id": "abc"},
        "datetime": "2026-11-27T10:00:00",
        "benchmarks": [
            {
                "name": name,
                "fullname": f"bench/bench_x.py::{name}",
                "group": "x",
                "params": {"way": name.removeprefix("way_")},
                "extra_info": {"nodes": 3},
                "stats": {"median": median, "iqr": 0.0, "rounds": 5},
            }
            for name, median in medians.items()
        ],
    }


def test_medians_and_limits_are_kept(history: Any) -> None:
    record = history.kept(saved(way_copy=0.002, way_ours=0.005), "0.1.0")
    assert history.file_name(record) == "0.1.0-some-cpu-2-ghz.json"
    ours = record["benchmarks"]["bench_x.py::way_ours"]
    assert (ours["median_ms"], ours["limit_ms"]) == (5.0, 2.0)
    assert ours["beside"] == {"nodes": 3}


def test_the_page_has_every_release(history: Any) -> None:
    runs = [
        history.kept(saved(way_copy=0.002, way_ours=0.006), "0.1.0"),
        history.kept(saved(way_copy=0.002, way_ours=0.005, way_new=0.002), "0.2.0"),
    ]
    lines = list(history.page(runs))
    assert lines[0].count("Some CPU") == 2
    assert "| `bench_x.py::way_ours` | 6 (3) | 5 (2.5) |" in lines
    assert "| `bench_x.py::way_new` | — | 2 (1) |" in lines
    assert "<svg" in history.drawing(runs)


def test_a_run_is_compared_with_what_is_kept_of_a_release(history: Any) -> None:
    import compare

    then = history.kept(saved(way_copy=0.002, way_ours=0.006), "0.1.0")
    rows = compare.rows(then, saved(way_copy=0.002, way_ours=0.005, way_new=0.002))
    assert rows == [
        ("bench_x.py::way_copy", "2.000", "2.000", "1.00", "1.00", "nodes 3"),
        ("bench_x.py::way_new", "-", "2.000", "-", "1.00", "nodes 3"),
        ("bench_x.py::way_ours", "6.000", "5.000", "0.83", "2.50", "nodes 3"),
    ]


def test_what_is_kept_in_the_repository_can_be_read(history: Any) -> None:
    runs = history.records()
    assert all(run["benchmarks"] for run in runs)
    assert len(list(history.page(runs))) > 2 or not runs
