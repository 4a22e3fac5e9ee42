"""Graphs of all torchvision classifiers, beside ghn3's: how many times faster ours are.

    PYTHONPATH=<ghn3>:<ppuda> python bench/trace_all.py
    PYTHONPATH=<ghn3>:<ppuda> python bench/trace_all.py resnet50 swin_t --memory-gb 12

Each model has a process of its own, with a limit on memory and time, because ghn3 needs up to
24 GB for some. In it both build the graph of the same model in turns (after one that is not
counted), and the medians are compared. What is done is written to a file of JSON lines as it is
done; a run that was broken off goes on from there, and the table is made of all that is in the
file. Without ghn3 only our times are measured.
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
SLOW = 4.0
"""Seconds; what takes longer is timed once."""


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
    first = _seconds(peer) if peer else 0.0
    ours, theirs = [], []
    for _ in range(1 if first > SLOW else ROUNDS):
        ours.append(_seconds(lambda: Graph.from_model(model)))
        if peer:
            theirs.append(_seconds(peer))
    record["ours_ms"] = 1e3 * statistics.median(ours)
    if theirs:
        record["ghn3_ms"] = 1e3 * statistics.median(theirs)
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


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


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
    """Markdown: the models by ratio, and the geometric mean."""
    both = [record for record in records if "ghn3_ms" in record]
    ratios = {record["model"]: record["ghn3_ms"] / record["ours_ms"] for record in both}
    lines = [
        "| model | nodes | ours, ms | ghn3, ms | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for record in sorted(records, key=lambda r: ratios.get(r["model"], math.inf)):
        theirs = f"{record['ghn3_ms']:.0f}" if "ghn3_ms" in record else record.get("ghn3_error", "")
        ratio = f"{ratios[record['model']]:.1f}" if record["model"] in ratios else ""
        ours = f"{record['ours_ms']:.1f}" if "ours_ms" in record else ""
        lines.append(
            f"| {record['model']} | {record.get('nodes', '')} | {ours} | {theirs} | {ratio} |"
        )
    if ratios:
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        least = min(ratios, key=lambda name: ratios[name])
        lines.append("")
        lines.append(
            f"ghn3 takes {mean:.1f} times as long in the geometric mean over {len(ratios)} models, "
            f"at least {ratios[least]:.1f} times ({least})."
        )
    return "\n".join(lines)


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
