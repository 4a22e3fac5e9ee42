"""Graphs of all torchvision classifiers, beside ghn3's: how many times faster ours are.

    PYTHONPATH=<ghn3>:<ppuda> python bench/trace_all.py
    PYTHONPATH=<ghn3>:<ppuda> python bench/trace_all.py resnet50 swin_t --memory-gb 12

Each model has a process of its own, with a limit on memory and time, because ghn3 needs up to
24 GB for some. In it both build the graph of the same model in turns (after one that is not
counted), and the medians are compared: of the time that passed, and of the CPU time of all
threads, which other work on the machine disturbs less. What is done is written to a file of JSON
lines as it is done; a run that was broken off goes on from there, and the table is made of all that
is in the file. Without ghn3 only our times are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 5
SLOW = 10.0
"""Seconds after which there are no more rounds."""


def measure(name: str, memory_gb: float) -> dict[str, Any]:
    """Times both on one model, in this process, which may use so much memory."""
    from torchvision import models

    from ghn_fast.graph import Graph

    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, **options)
    record: dict[str, Any] = {"model": name, "nodes": Graph.from_model(model).num_nodes}
    peer = _peer(model, record)
    ours, theirs = [], []
    while len(ours) < ROUNDS and sum(passed for passed, _ in theirs) < SLOW:
        ours.append(_seconds(lambda: Graph.from_model(model)))
        if peer:
            theirs.append(_seconds(peer))
    for who, times in (("ours", ours), ("ghn3", theirs)):
        for column, clock in enumerate(("ms", "cpu_ms")):
            if times:
                record[f"{who}_{clock}"] = 1e3 * statistics.median(t[column] for t in times)
    return record


def _peer(model: Any, record: dict[str, Any]) -> Callable[[], Any] | None:
    try:
        from ghn3.graph import Graph as PeerGraph
    except ImportError:
        return None

    def build() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return PeerGraph(model, verbose=False)

    try:
        build()
    except Exception as error:
        record["ghn3_error"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return None
    return build


def _seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """The time that passes and the CPU time."""
    start = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def run(names: list[str], log: Path, memory_gb: float, timeout: float) -> None:
    """Measures what is not in the log yet, each model in a process of its own."""
    done = {record["model"] for record in read(log)}
    for name in names:
        if name in done:
            continue
        command = [sys.executable, __file__, name, "--here", "--memory-gb", str(memory_gb)]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
            lines = finished.stdout.splitlines()
            ended = {"model": name, "ghn3_error": f"ended with {finished.returncode}"}
            record = json.loads(lines[-1]) if finished.returncode == 0 else ended
        except subprocess.TimeoutExpired:
            record = {"model": name, "ghn3_error": f"took more than {timeout:g} s"}
        with log.open("a", encoding="utf-8") as lines_out:
            lines_out.write(json.dumps(record) + "\n")
        print(record, file=sys.stderr, flush=True)


def read(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: the models by ratio, and the geometric means."""
    names = {record["model"]: record for record in records}
    passed, cpu = _ratios(records, "ms"), _ratios(records, "cpu_ms")
    lines = [
        "| model | nodes | ours, ms | ghn3, ms | ratio | ratio of CPU time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in sorted(names, key=lambda name: cpu.get(name, math.inf)):
        record = names[name]
        cells = [name, str(record.get("nodes", "")), _number(record.get("ours_ms"))]
        cells.append(_number(record.get("ghn3_ms")) or record.get("ghn3_error", ""))
        cells += [_number(passed.get(name)), _number(cpu.get(name))]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for what, ratios in (("time", passed), ("CPU time", cpu)):
        if ratios:
            mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
            least = min(ratios, key=lambda name: ratios[name])
            lines.append(
                f"ghn3 takes {mean:.1f} times the {what} in the geometric mean over {len(ratios)} "
                f"models, at least {ratios[least]:.1f} times ({least})."
            )
    return "\n".join(lines)


def _ratios(records: list[dict[str, Any]], clock: str) -> dict[str, float]:
    return {
        record["model"]: record[f"ghn3_{clock}"] / record[f"ours_{clock}"]
        for record in records
        if f"ghn3_{clock}" in record
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def main() -> None:
    from torchvision import models

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="all classifiers where left out")
    parser.add_argument("--log", type=Path, default=Path("trace_all.jsonl"), help="what is done")
    parser.add_argument("--memory-gb", type=float, default=10.0, help="limit of each process")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each model")
    parser.add_argument("--here", action="store_true", help="measure one model in this process")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.here:
        print(json.dumps(measure(options.names[0], options.memory_gb)))
        return
    names = options.names or models.list_models(module=models)
    run(names, options.log, options.memory_gb, options.timeout)
    print(table(read(options.log)))


if __name__ == "__main__":
    main()
