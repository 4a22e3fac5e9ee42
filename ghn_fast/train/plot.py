"""A picture of a run, from its log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghn_fast._system.files import replace
from ghn_fast.train.log import LOG_FILE, read_log

PLOT_FILE = "curves.png"


def plot_run(folder: str | Path, out: str | Path | None = None) -> Path:
    """Draws loss, accuracy, learning rate, speed and time shares of a run over its steps.

    Args:
        folder: of the run, with its ``log.jsonl``.
        out: the PNG, ``curves.png`` in the folder where left out.

    Returns:
        The picture's path.

    Raises:
        FileNotFoundError: the folder has no log.
    """
    from matplotlib.figure import Figure

    log = Path(folder) / LOG_FILE
    if not log.is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a training run: no {LOG_FILE} in it"
        )
    lines = read_log(log)
    figure = Figure(figsize=(11, 7), layout="constrained")
    draw = (_draw_loss, _draw_accuracy, _draw_rate, _draw_speed)
    for axes, panel in zip(figure.subplots(2, 2).flat, draw, strict=True):
        panel(axes, lines)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    path = Path(folder) / PLOT_FILE if out is None else Path(out)
    replace(path, lambda aside: figure.savefig(aside, format="png", dpi=120))
    return path


def _series(lines: Sequence[dict[str, Any]], kind: str, name: str) -> tuple[list[int], list[float]]:
    chosen = [line for line in lines if line["kind"] == kind and name in line]
    return [line["step"] for line in chosen], [line[name] for line in chosen]


def _draw_loss(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    axes.plot(*_series(lines, "train", "loss"), label="training")
    axes.set_ylabel("cross-entropy")
    left_out = [line["step"] for line in lines if line["kind"] in ("left_out", "skipped")]
    if left_out:
        axes.plot(left_out, [axes.get_ylim()[0]] * len(left_out), "|r", label="left out or skipped")
    axes.legend()


def _draw_accuracy(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    steps, top1 = _series(lines, "train", "top1")
    axes.plot(steps, [100 * value for value in top1], label="training")
    steps, means = _series(lines, "validation", "mean")
    if steps:
        known = _series(lines, "validation", "standard_error")[1]
        errors = [math.nan if error is None else error for error in known]
        axes.errorbar(steps, means, errors, marker="o", label="validation, mean of networks")
        axes.plot(*_series(lines, "validation", "best"), "^", label="validation, best network")
    axes.set_ylabel("top-1, %")
    axes.legend()


def _draw_rate(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    axes.plot(*_series(lines, "train", "lr"), label="learning rate")
    axes.set_ylabel("learning rate")
    norms = axes.twinx()
    norms.plot(*_series(lines, "train", "gradient_norm"), color="tab:orange", alpha=0.6)
    norms.set_ylabel("gradient norm", color="tab:orange")
    norms.set_yscale("log")


def _draw_speed(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    chosen = [line for line in lines if line["kind"] == "train"]
    steps = [line["step"] for line in chosen]
    parts = sorted({part for line in chosen for part in line["time_shares"]})
    shares = [[line["time_shares"].get(part, 0.0) for line in chosen] for part in parts]
    if steps:
        axes.stackplot(steps, shares, labels=parts, alpha=0.6)
        axes.legend(loc="lower right", fontsize="small")
    axes.set_ylabel("share of time")
    speed = axes.twinx()
    speed.plot(*_series(lines, "train", "networks_per_second"), color="black")
    speed.set_ylabel("networks a second (line)")
