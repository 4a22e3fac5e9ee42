"""What a run reports: a JSON line at intervals, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ghn_fast._system.files import append_line, read_text, write_text
from ghn_fast.train.step import StepResult

LOG_FILE = "log.jsonl"


class Meter:
    """Averages over the steps since the last report."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self.families: dict[str, list[float]] = defaultdict(list)
        self.steps = self.networks = self.images = self.counted = self.limited = 0

    def add(self, result: StepResult, families: Sequence[str] = ()) -> None:
        """Counts a step, whose networks of this process are of these families."""
        self.steps += 1
        self.networks += len(result.losses)
        self.images += result.images
        self.limited += result.limited
        for part, seconds in result.seconds.items():
            self.seconds[part] += seconds
        for family, top1 in zip(families, result.own_top1, strict=False):
            self.families[family] += [top1] if math.isfinite(top1) else []
        if math.isfinite(result.loss) and math.isfinite(result.gradient_norm):
            self.counted += 1
            self.sums["loss"] += result.loss
            self.sums["top1"] += result.top1
            self.sums["gradient_norm"] += result.gradient_norm

    def report(self) -> dict[str, Any]:
        """The averages, the speed and the share of the time of each part.

        Without a step that counted there are no averages.
        """
        total = sum(self.seconds.values()) or 1e-9
        means = {name: value / max(self.counted, 1) for name, value in self.sums.items()}
        return {
            **{name: round(value, 5) for name, value in means.items()},
            "limited_networks": self.limited,
            "networks_per_second": round(self.networks / total, 3),
            "images_per_second": round(self.images / total, 1),
            "families": {
                family: {"networks": len(top1), "top1": round(sum(top1) / len(top1), 5)}
                for family, top1 in sorted(self.families.items())
                if top1
            },
            "time_shares": {part: round(s / total, 4) for part, s in self.seconds.items()},
        }


class RunLog:
    """The log of a run; a context manager that closes what it opened.

    Args:
        folder: of the run; the log is its ``log.jsonl``.
        step: the step that the run goes on from. Lines of later steps, which a killed run may
            have left, are dropped.
        tensorboard: write event files too.
        is_open: False in a process that is not to write; it does nothing.
    """

    def __init__(
        self, folder: Path, step: int, tensorboard: bool = False, is_open: bool = True
    ) -> None:
        self.path = folder / LOG_FILE
        self.is_open = is_open
        self._writer = None
        if is_open:
            self._drop_after(step)
            self._writer = _summary_writer(folder, step) if tensorboard else None

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends a line; numbers go to TensorBoard as well.

        A line that cannot be written, for example to a full disk, is left out with a warning.
        TensorBoard's writer does not recover from that, and gets nothing more.
        """
        if not self.is_open:
            return
        try:
            append_line(self.path, json.dumps({"kind": kind, "step": step, **values}))
        except OSError as error:
            warnings.warn(f"step {step}: no line in {self.path}: {error}", stacklevel=2)
        try:
            self._write_events(kind, step, values)
        except OSError as error:
            self._writer = None
            warnings.warn(f"step {step}: no more events for TensorBoard: {error}", stacklevel=2)

    def _write_events(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as failure:
                warnings.warn(
                    f"the last events are not in {self.path.parent}: {failure}", stacklevel=2
                )

    def _drop_after(self, step: int) -> None:
        lines = read_log(self.path) if self.path.exists() else []
        kept = [line for line in lines if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log; an incomplete last one, of a run that was killed, is left out.

    Raises:
        ValueError: a line is no JSON object, or it is no text; the message names the file and the
            line.
    """
    try:
        lines = read_text(Path(path)).split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a log ({error}); remove it") from None
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        values = error
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        raise ValueError(f"{where} is not a line of a log ({line[:40]!r}); remove it")
    return values


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "tensorboard=True needs the package tensorboard: pip install 'ghn-fast[train]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)
