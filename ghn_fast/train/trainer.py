"""The training loop: draws networks and images, steps, validates, survives."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ghn_fast.checkpoint import from_pretrained, save
from ghn_fast.data import Images, ImageStream
from ghn_fast.evaluation import EvaluationResult, evaluate
from ghn_fast.files import replace
from ghn_fast.ghn import GHN, make_config, make_ghn
from ghn_fast.graph import GraphBatch
from ghn_fast.train.config import ConfigError, TrainConfig
from ghn_fast.train.log import Meter, RunLog
from ghn_fast.train.networks import Drawn, NetworkStream, image_counts
from ghn_fast.train.schedule import learning_rate, update_average
from ghn_fast.train.soap import SOAP
from ghn_fast.train.step import StepResult, train_step

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.pt"
EXPORT_FILE = "ghn.safetensors"
_FORMAT = 1
_MAY_CHANGE = {
    "max_minutes",
    "cached_networks",
    "threads",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "validation_networks",
    "validation_images",
    "tensorboard",
}
"""Settings that a resumed run may have other values of, as they do not decide what it learns."""


class Trainer:
    """Trains a GHN, and goes on where an earlier process in the same folder was stopped.

    The folder gets ``config.json``, ``log.jsonl``, ``checkpoint.pt`` (everything needed to go on)
    and ``ghn.safetensors`` (the GHN, with averaged weights, for use).

    With ``steps`` given, a run on a CPU that was killed and resumed gives bit for bit what an
    uninterrupted one gives: networks and images are functions of their positions in their streams,
    and nothing draws from a global generator. So networks run in evaluation mode, without dropout;
    they use batch statistics nevertheless.

    Args:
        config: see :class:`TrainConfig`.
        folder: of the run.
        train: images to learn from.
        validation: images to validate with; without them there is no validation.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        train: Images,
        validation: Images | None = None,
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self.validation = validation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.ghn = _make_ghn(config)
        self.average = copy.deepcopy(self.ghn).eval()
        self.optimizer = _make_optimizer(config, self.ghn)
        self.images = ImageStream(train, config.image_batch, config.seed)
        self.networks = NetworkStream(config, self.ghn.config.num_classes)
        self.step = 0
        self.network_position = 0
        self.minutes = 0.0
        self.skipped_steps = 0
        self.left_out_networks = 0
        self._stop = False
        self._resume()

    @property
    def progress(self) -> float:
        """The share of the run that has passed, from 0 to 1."""
        if self.config.steps is not None:
            return min(self.step / self.config.steps, 1.0)
        assert self.config.max_minutes is not None
        return min(self.minutes / self.config.max_minutes, 1.0)

    @property
    def finished(self) -> bool:
        """Whether the steps are done or the time is up."""
        minutes = self.config.max_minutes
        return self.progress >= 1 or (minutes is not None and self.minutes >= minutes)

    def stop(self) -> None:
        """Ends the run after the current step, with a checkpoint."""
        self._stop = True

    def fit(self, show_progress: bool = False) -> GHN:
        """Trains until the steps are done, the time is up, or SIGTERM or SIGINT arrives.

        Args:
            show_progress: draw a progress bar.

        Returns:
            The GHN with averaged weights, in evaluation mode.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.save(self.folder / CONFIG_FILE)
        self._stop = False
        with ExitStack() as stack:
            stack.enter_context(_signals(self.stop))
            log = RunLog(self.folder, self.step, self.config.tensorboard)
            stack.enter_context(log)
            bar = stack.enter_context(_progress_bar(show_progress))
            workers = stack.enter_context(_network_workers(self.config))
            preparing = stack.enter_context(ThreadPoolExecutor(1, "ghn-fast-draw"))
            self._loop(log, bar, workers, preparing)
            self.save()
        return self.average

    def _loop(
        self,
        log: RunLog,
        bar: Any,
        workers: ThreadPoolExecutor,
        preparing: ThreadPoolExecutor,
    ) -> None:
        meter = Meter()
        if self.finished:
            return
        drawing = preparing.submit(self.networks.draw, self.network_position)
        while not self.finished and not self._stop:
            start = time.perf_counter()
            result, drawing = self._advance(drawing, workers, preparing)
            meter.add(result)
            self._report_errors(log, result)
            if self._due(self.config.log_every):
                log.write("train", self.step, self._report(meter))
                meter.reset()
            self.minutes += (time.perf_counter() - start) / 60
            start = time.perf_counter()
            if self._due(self.config.validate_every) and self.validation is not None:
                log.write("validation", self.step, self.validate().summary())
            if self._due(self.config.checkpoint_every):
                self.save()
            self.minutes += (time.perf_counter() - start) / 60
            bar(self.progress, self.step, result)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _advance(
        self,
        drawing: Future[tuple[list[Drawn], int]],
        workers: ThreadPoolExecutor,
        preparing: ThreadPoolExecutor,
    ) -> tuple[StepResult, Future[tuple[list[Drawn], int]]]:
        """One step; meanwhile the networks of the next one are drawn."""
        start = time.perf_counter()
        drawn, position = drawing.result()
        drawing = preparing.submit(self.networks.draw, position)
        waited = time.perf_counter()
        images, labels = self.images[self.step]
        loaded = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.progress)
        result = train_step(
            self.ghn,
            [network.model for network in drawn],
            GraphBatch([network.graph for network in drawn]),
            images,
            labels,
            self.optimizer,
            label_smoothing=self.config.label_smoothing,
            grad_clip=self.config.grad_clip,
            network_clip=self.config.network_clip,
            normalise_networks=self.config.normalise_networks,
            image_counts=image_counts(self.config, drawn),
            autocast=torch.bfloat16 if self.config.precision == "bfloat16" else None,
            workers=workers,
        )
        stepped = time.perf_counter()
        if result.updated:
            update_average(self.average, self.ghn, self.config.ema_decay, self.step)
        self.skipped_steps += not result.updated
        self.left_out_networks += len(result.errors)
        self.network_position = position
        self.step += 1
        averaged = time.perf_counter() - stepped
        result.seconds.update(networks_wait=waited - start, images=loaded - waited, ema=averaged)
        return result, drawing

    def validate(self) -> EvaluationResult:
        """Evaluates the averaged weights on networks of the val split, which are never trained on.

        Raises:
            ConfigError: there are no validation images.
        """
        if self.validation is None:
            raise ConfigError("the trainer has no validation images")
        return evaluate(
            self.average,
            "val",
            self.validation,
            num_nets=self.config.validation_networks,
            num_images=self.config.validation_images,
            seed=self.config.seed,
        )

    def save(self) -> None:
        """Writes the checkpoint and the GHN for use."""
        state = {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "ghn": self.ghn.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in _COUNTERS},
        }
        replace(self.folder / CHECKPOINT_FILE, lambda aside: torch.save(state, aside))
        save(self.average, self.folder / EXPORT_FILE, {"steps": str(self.step)})

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return
        state = _load_checkpoint(path)
        _check_same_run(self.config, TrainConfig.from_dict(state["config"]), path)
        self.ghn.load_state_dict(state["ghn"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _report(self, meter: Meter) -> dict[str, Any]:
        return {
            **meter.report(self.config.image_batch),
            "lr": self.optimizer.param_groups[0]["lr"],
            "minutes": round(self.minutes, 3),
            "networks": self.step * self.config.meta_batch,
            "skipped_steps": self.skipped_steps,
            "left_out_networks": self.left_out_networks,
        }

    def _report_errors(self, log: RunLog, result: StepResult) -> None:
        for position, reason in result.errors.items():
            log.write("left_out", self.step, {"position": position, "reason": reason})
        if not result.updated:
            log.write("skipped", self.step, {"gradient_norm": str(result.gradient_norm)})


_COUNTERS = ("step", "network_position", "minutes", "skipped_steps", "left_out_networks")


def _make_ghn(config: TrainConfig) -> GHN:
    settings = make_config(config.ghn)
    if config.init is None:
        return make_ghn(settings).train()
    ghn = from_pretrained(config.init)
    if ghn.config != settings:
        raise ConfigError(f"{config.init} is a GHN of {ghn.config}, not of {settings}")
    return ghn.train()


def _make_optimizer(config: TrainConfig, ghn: GHN) -> torch.optim.Optimizer:
    if config.optimizer == "soap":
        return SOAP(
            ghn.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        ghn.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {error}); "
            f"move it away to start the run anew"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ConfigError(f"{path} is not a checkpoint of this trainer; use another folder")
    return state


def _check_same_run(config: TrainConfig, saved: TrainConfig, path: Path) -> None:
    now, then = config.to_dict(), saved.to_dict()
    changed = [name for name in now if now[name] != then[name] and name not in _MAY_CHANGE]
    if changed:
        differences = ", ".join(f"{name}: {then[name]!r} -> {now[name]!r}" for name in changed)
        raise ConfigError(
            f"{path} belongs to a run with other settings ({differences}); "
            f"use these, or another folder"
        )


@contextmanager
def _network_workers(config: TrainConfig) -> Iterator[ThreadPoolExecutor]:
    """Threads that run networks, each with one core.

    Small networks gain little from several cores each, several networks at once gain fully.
    """
    count = config.threads or torch.get_num_threads()
    with ThreadPoolExecutor(count, "ghn-fast-net", initializer=_use_one_core) as workers:
        yield workers


def _use_one_core() -> None:
    torch.set_num_threads(1)


@contextmanager
def _signals(stop: Any) -> Iterator[None]:
    """SIGTERM and SIGINT stop the run; works in the main thread only, elsewhere does nothing."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    try:
        previous = {kind: signal.signal(kind, handle) for kind in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


@contextmanager
def _progress_bar(show: bool) -> Iterator[Any]:
    """A function (progress, step, result) that draws the bar."""
    if not show:
        yield lambda progress, step, result: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("starting", total=1.0)

        def draw(progress: float, step: int, result: StepResult) -> None:
            text = f"step {step}  loss {result.loss:.3f}  top-1 {100 * result.top1:.1f} %"
            bar.update(task, completed=progress, description=text)

        yield draw
