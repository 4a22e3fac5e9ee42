"""The training loop: draws networks and images, steps, validates, survives."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghn_fast._system.device import images_to_device, to_device
from ghn_fast._system.files import lock, remove_leftovers
from ghn_fast._system.processes import Processes, Tickets, choose_device
from ghn_fast._system.random import seeded
from ghn_fast._system.workers import one_core_workers
from ghn_fast.checkpoint.training import write_state as _write_checkpoint
from ghn_fast.data import DataError, Images, ImageSource, ImageStream
from ghn_fast.evaluation import EvaluationResult, evaluate
from ghn_fast.evaluation.results import images_digest
from ghn_fast.ghn import GHN, make_config, make_ghn
from ghn_fast.ghn.files import save
from ghn_fast.ghn.hub import from_pretrained
from ghn_fast.ghn.make import adapt
from ghn_fast.graph import GraphBatch
from ghn_fast.train.config import ConfigError, TrainConfig
from ghn_fast.train.log import LOG_FILE, Meter, RunLog
from ghn_fast.train.networks import Drawn, NetworkStream, image_counts, values_to_device
from ghn_fast.train.plot import plot_run
from ghn_fast.train.pointwise import use_products
from ghn_fast.train.resume import COUNTERS, EXPORT_FILE, Run, is_seen, version
from ghn_fast.train.schedule import learning_rate, update_average
from ghn_fast.train.soap import SOAP
from ghn_fast.train.step import Arrival, StepResult, train_step, train_step_as_they_come
from ghn_fast.train.teacher import TaughtStream, Teacher, kept_logits

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.pt"
TEACHER_FILE = "teacher-logits.safetensors"
LOCK_FILE = "lock"


class _Batch(NamedTuple):
    """Images (B, 3, H, W), labels (B,) and what the loss is with: the labels, or targets (B, C)."""

    images: Tensor
    labels: Tensor
    targets: Tensor

    def on(self, device: torch.device) -> _Batch:
        labels = to_device(self.labels, device)
        same = self.targets is self.labels
        targets = labels if same else to_device(self.targets, device)
        return _Batch(images_to_device(self.images, device), labels, targets)


class _Prepared(NamedTuple):
    """What a step needs: its networks, the position after them, and the images.

    ``parts`` is which of the images each network gets.
    """

    networks: list[Drawn]
    position: int
    batch: _Batch
    parts: list[slice]


class _Taken(NamedTuple):
    """A network that this process has taken, of which step, and how many images it gets."""

    step: int
    network: Drawn
    images: int


class Trainer:
    """Trains a GHN, and goes on where an earlier process in the same folder was stopped.

    The folder gets ``config.json``, ``log.jsonl``, ``checkpoint.pt`` (everything needed to go on),
    ``ghn.safetensors`` (the GHN, with averaged weights, for use) and ``curves.png``.

    With ``steps`` given, a run on a CPU that was killed and resumed gives bit for bit what an
    uninterrupted one gives: networks and images are functions of their positions in their streams,
    and nothing draws from a global generator. So networks run in evaluation mode, without dropout;
    they use batch statistics nevertheless.

    In several processes (``torchrun --nproc-per-node N -m ghn_fast train``, or any initialised
    default process group) each step's networks are divided among them, and the first process
    alone writes. All have to see the folder. So many processes with ``meta_batch`` networks give
    what one gives with as many times the ``meta_batch``, within rounding.

    Args:
        config: see :class:`TrainConfig`.
        folder: of the run.
        train: images to learn from.
        validation: images to validate with; without them there is no validation.
        teacher: what the configuration's ``teacher`` names, or any other; its logits are computed
            when training begins.

    Attributes:
        signal: the number of the signal that stopped the last :meth:`fit`, else None.

    Raises:
        ConfigError: the folder holds a run of another configuration or a damaged one, or the GHN
            of the configuration, or the teacher, has another number of classes than the images.
        DataError: there are fewer images than a batch has.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path,
        train: ImageSource,
        validation: ImageSource | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self.validation = validation
        if len(train) < config.image_batch:
            raise DataError(
                f"{config.data or 'the data set'} has {len(train)} images to learn from, fewer "
                f"than the {config.image_batch} of image_batch"
            )
        self.processes = Processes.current()
        self.device = choose_device(config.device)
        with seeded(config.seed):
            self.ghn = _make_ghn(config, train).to(self.device)
        self.average = copy.deepcopy(self.ghn).eval()
        self.optimizer = _make_optimizer(config, self.ghn)
        self.images_digest = images_digest(train)
        if config.first_come and self.device.type == "cuda" and isinstance(train, Images):
            train = train.to(self.device)
        self.images = ImageStream(train, config.image_batch, config.seed)
        self.teacher = _checked_teacher(teacher, config, train, self.device)
        self.teacher_digest = None if self.teacher is None else self.teacher.digest()
        self.taught: TaughtStream | None = None
        self.networks = NetworkStream(
            config,
            self.ghn.config.num_classes,
            train.is_large,
            self.processes,
            train.batch(torch.tensor([0], device="cpu")).shape[-1],
        )
        self.step = 0
        self.network_position = 0
        self._ready: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.minutes = 0.0
        self.skipped_steps = 0
        self.left_out_networks = 0
        self.failed_checkpoints = 0
        self._stop = self._stopping = False
        self.signal: int | None = None
        self._started = time.perf_counter()
        self.longest = {"step": 0.0, "save": 0.0, "validate": 0.0}
        self._resume()
        for model in (self.ghn, self.average):
            self.processes.broadcast(model)

    @property
    def progress(self) -> float:
        """The share of the run that has passed, from 0 to 1."""
        return self._progress_at(self.step)

    def _progress_at(self, step: int) -> float:
        """The share before this step; a run that the clock ends has the share of now."""
        if self.config.steps is not None:
            return min(step / self.config.steps, 1.0)
        assert self.config.max_minutes is not None
        return min(self.minutes / self.config.max_minutes, 1.0)

    @property
    def finished(self) -> bool:
        """Whether the steps are done, or the time does not suffice for another."""
        return self.progress >= 1 or not self._fits("step")

    def stop(self) -> None:
        """Ends the run after the current step, with a checkpoint."""
        self._stop = True

    def _interrupt(self, number: int) -> None:
        self.signal = number
        self.stop()
        if self.processes.is_first:
            # Not by print, which fails where the signal has come in the middle of another one.
            os.write(2, b"\nstopping after this step, with a checkpoint\n")

    def fit(self, show_progress: bool = False) -> GHN:
        """Trains until the steps are done, the time is up, or SIGTERM or SIGINT arrives.

        A signal to any one of several processes stops all of them; :attr:`signal` is its number
        then, in all of them.

        Args:
            show_progress: draw a progress bar.

        Returns:
            The GHN with averaged weights, in evaluation mode.

        Raises:
            ConfigError: another run is writing in the folder, or has since this one was made.
        """
        is_first = self.processes.is_first
        self._stop = self._stopping = False
        self.signal = None
        self._started = time.perf_counter() - 60 * self.minutes
        with ExitStack() as stack:
            stack.enter_context(_signals(self._interrupt))
            if self.processes.first(is_first and not self._locked(stack)):
                raise ConfigError(
                    f"another run is writing in {self.folder}, or has since this one read its "
                    "checkpoint; use another folder, or start again once it has ended"
                )
            if is_first:
                for name in (CHECKPOINT_FILE, EXPORT_FILE, CONFIG_FILE, LOG_FILE, TEACHER_FILE):
                    remove_leftovers(self.folder / name)
                self.config.save(self.folder / CONFIG_FILE)
            log = RunLog(self.folder, self.step, self.config.tensorboard, is_open=is_first)
            stack.enter_context(log)
            bar = stack.enter_context(_progress_bar(show_progress and is_first))
            if self.teacher is not None and not self.finished:
                self.taught = self._teach(self.teacher)
            workers = stack.enter_context(_network_workers(self.config, self.device))
            preparing = stack.enter_context(ThreadPoolExecutor(1, "ghn-fast-draw"))
            self._loop(log, bar, workers, preparing)
            self.save()
        if is_first:
            plot_run(self.folder)
        return self.average

    def _teach(self, teacher: Teacher) -> TaughtStream:
        path, images = self.folder / TEACHER_FILE, self.images.data
        logits = kept_logits(teacher, images, path, self.processes)
        config = self.config
        return TaughtStream(self.images, logits, config.teacher_share, config.teacher_temperature)

    def _locked(self, stack: ExitStack) -> bool:
        """Whether the folder is this run's alone while the stack is open, and as it was found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock(stack.enter_context((self.folder / LOCK_FILE).open("ab")))
        except BlockingIOError:
            return False
        return version(self.folder / CHECKPOINT_FILE) == self._found

    def _loop(
        self,
        log: RunLog,
        bar: Any,
        workers: ThreadPoolExecutor | None,
        preparing: ThreadPoolExecutor,
    ) -> None:
        meter = Meter()
        if self.finished:
            return
        advance: Callable[..., tuple[list[Drawn], StepResult, Future[Any]]] = self._advance
        prepared: Future[Any]
        if self.config.first_come:
            advance = self._advance_as_they_come
            self._first = self.step, self.network_position
            self._tickets = Tickets(self.processes)
            prepared = preparing.submit(self._take)
        else:
            prepared = preparing.submit(self._prepare, self.step, self.network_position)
        while not self.finished and not self._stopping:
            with self._timed("step"):
                drawn, result, prepared = advance(prepared, workers, preparing)
                meter.add(result, [network.family for network in drawn])
                self._report_errors(log, drawn, result)
                if self._due(self.config.log_every):
                    log.write("train", self.step, self._report(meter))
                    meter.reset()
            self._agree()
            if self._due(self.config.validate_every) and self._fits("validate"):
                self._validate(log)
            if self._due(self.config.checkpoint_every):
                self._save_if_possible(log)
            self._agree()
            bar(self.progress, self.step, result)
        if meter.steps > 0:
            log.write("train", self.step, self._report(meter))

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _fits(self, what: str) -> bool:
        """Whether there is time for another one, as long as the longest so far, and for the end."""
        if self.config.max_minutes is None:
            return True
        needed = self.longest[what] + self.longest["save"]
        return self.minutes + needed / 60 < self.config.max_minutes

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        # An exceptional pause is forgotten after a while.
        self.longest[what] = max(spent, 0.95 * self.longest[what])

    def _agree(self) -> None:
        """All processes take the first one's time, and stop if any was told to."""
        minutes = (time.perf_counter() - self._started) / 60
        states = self.processes.gather((self._stop, self.signal, minutes, self.longest))
        # Not the request itself: one that arrives meanwhile is for the next agreement.
        self._stopping = any(stop for stop, *_ in states)
        self.signal = self.signal or next((number for _, number, *_ in states if number), None)
        *_, self.minutes, longest = states[0]
        self.longest = dict(longest)

    def _advance(
        self,
        prepared: Future[_Prepared],
        workers: ThreadPoolExecutor | None,
        preparing: ThreadPoolExecutor,
    ) -> tuple[list[Drawn], StepResult, Future[_Prepared]]:
        """One step; meanwhile networks and images of the next one are prepared."""
        start = time.perf_counter()
        drawn, position, batch, parts = prepared.result()
        prepared = preparing.submit(self._prepare, self.step + 1, position)
        images, labels, targets = batch.on(self.device)
        waited = time.perf_counter()
        self._set_learning_rate()
        result = train_step(
            self.ghn,
            [network.model for network in drawn],
            GraphBatch([network.graph for network in drawn]),
            [images[part] for part in parts],
            [labels[part] for part in parts],
            self.optimizer,
            targets=[targets[part] for part in parts],
            label_smoothing=self.config.label_smoothing,
            predicted_decay=self.config.predicted_decay,
            grad_clip=self.config.grad_clip,
            network_clip=self.config.network_clip,
            normalise_networks=self.config.normalise_networks,
            autocast=torch.bfloat16 if self.config.precision == "bfloat16" else None,
            workers=workers,
            accumulate=self.config.accumulate,
            processes=self.processes,
        )
        result.seconds["wait"] = waited - start
        self._count(result, position)
        return drawn, result, prepared

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.progress)

    def _count(self, result: StepResult, position: int) -> None:
        """Goes on to the next step, whose networks begin at this position."""
        stepped = time.perf_counter()
        if result.updated:
            update_average(self.average, self.ghn, self.config.ema_decay, self.step)
        self.skipped_steps += not result.updated
        self.left_out_networks += len(result.errors)
        self.network_position = position
        self.step += 1
        result.seconds["ema"] = time.perf_counter() - stepped

    def _advance_as_they_come(
        self,
        prepared: Future[_Taken],
        workers: ThreadPoolExecutor | None,
        preparing: ThreadPoolExecutor,
    ) -> tuple[list[Drawn], StepResult, Future[_Taken]]:
        """One step with the networks that this process takes; the next one is made meanwhile."""
        drawn: list[Drawn] = []
        crop = self.progress < self.config.crop_share
        first = self.step * self.networks.networks_per_step

        def arriving() -> Iterator[Arrival]:
            nonlocal prepared
            while (taken := prepared.result()).step == self.step:
                prepared = preparing.submit(self._take)
                network = taken.network
                drawn.append(network)
                batch = self._batch(first + network.place, crop, taken.images)
                yield Arrival(network.model, network.graph, *batch.on(self.device))

        self._set_learning_rate()
        result = train_step_as_they_come(
            self.ghn,
            arriving(),
            self.optimizer,
            label_smoothing=self.config.label_smoothing,
            predicted_decay=self.config.predicted_decay,
            grad_clip=self.config.grad_clip,
            autocast=torch.bfloat16 if self.config.precision == "bfloat16" else None,
            processes=self.processes,
        )
        self._count(result, self.network_position + self.networks.networks_per_step)
        return drawn, result, prepared

    def _take(self) -> _Taken:
        """The next network of the run that no process has taken."""
        ticket = self._tickets.take()
        steps, place = divmod(ticket, self.networks.networks_per_step)
        step, position = self._first
        network = self._placed(self.networks.at(position + ticket - place, place))
        return _Taken(step + steps, network, *image_counts(self.config, [network]))

    def _placed(self, network: Drawn) -> Drawn:
        """A network as it runs fast on the device.

        One that is drawn again, from the cache, may be in the middle of the step before, with
        predicted parameters in the places of its own: it is as it has to be, and is left alone.
        """
        if network.model not in self._ready:
            values_to_device(network.model, self.device)
            if self.device.type == "cuda":
                use_products(network.model)
            self._ready.add(network.model)
        return network

    def _prepare(self, step: int, position: int) -> _Prepared:
        """Networks and images of a step, and the position of the networks after it."""
        drawn, after = self.networks.draw(position)
        for network in drawn:
            self._placed(network)
        pairs = list(zip(drawn, image_counts(self.config, drawn), strict=True))
        # Workers take the networks in this order, and the longest last would keep one waiting.
        pairs.sort(key=lambda pair: pair[0].work * pair[1], reverse=True)
        drawn = [network for network, _ in pairs]
        crop = self._progress_at(step) < self.config.crop_share
        if not self.config.own_images or not drawn:
            parts = [slice(count) for _, count in pairs]
            return _Prepared(drawn, after, self._batch(step, crop), parts)
        first = step * self.networks.networks_per_step
        batches = [self._batch(first + network.place, crop, count) for network, count in pairs]
        batch = _Batch(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
        ends = itertools.accumulate(count for _, count in pairs)
        parts = [slice(end - count, end) for (_, count), end in zip(pairs, ends, strict=True)]
        return _Prepared(drawn, after, batch, parts)

    def _batch(self, index: int, crop: bool, count: int | None = None) -> _Batch:
        if self.taught is not None:
            return _Batch(*self.taught.batch(index, crop, count))
        images, labels = self.images.batch(index, crop, count)
        return _Batch(images, labels, labels)

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

    def _validate(self, log: RunLog) -> None:
        if self.validation is not None:
            with self._timed("validate"):
                log.write("validation", self.step, self.validate().summary())

    def save(self) -> None:
        """Writes the checkpoint and the GHN for use; in the first process only.

        Raises:
            OSError: they could not be written. The ones before are still there.
            RuntimeError: the GHNs of the processes differ (in all of them). Nothing is written.
        """
        self.processes.check_equal(self.ghn)
        if not self.processes.is_first:
            return
        path, state = self.folder / CHECKPOINT_FILE, self._run().state(self._counters())
        with self._timed("save"):
            _write_checkpoint(state, path)
            self._found = version(path)
            save(self.average, self.folder / EXPORT_FILE, {"steps": str(self.step)})

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        self._found = version(path)
        if is_seen(path, self.processes):
            vars(self).update(self._run().resume(path, self._counters()))

    def _run(self) -> Run:
        return Run(
            self.config,
            self.processes.size,
            self.images_digest,
            self.teacher_digest,
            self.ghn,
            self.average,
            self.optimizer,
        )

    def _counters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTERS}

    def _save_if_possible(self, log: RunLog) -> None:
        """A full disk need not end a run that can write its next checkpoint."""
        try:
            self.save()
        except OSError as error:
            self.failed_checkpoints += 1
            warnings.warn(f"step {self.step}: no checkpoint was written: {error}", stacklevel=2)
            log.write("failed_checkpoint", self.step, {"reason": str(error)})

    def _report(self, meter: Meter) -> dict[str, Any]:
        return {
            **meter.report(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "minutes": round((time.perf_counter() - self._started) / 60, 3),
            "networks": self.step * self.networks.networks_per_step,
            "skipped_steps": self.skipped_steps,
            "left_out_networks": self.left_out_networks,
            "failed_checkpoints": self.failed_checkpoints,
        }

    def _report_errors(self, log: RunLog, drawn: Sequence[Drawn], result: StepResult) -> None:
        """Networks that were left out are named by their numbers in the stream."""
        if result.errors:
            found = self.processes.gather([network.number for network in drawn])
            numbers = list(itertools.chain(*found))
            for position, reason in result.errors.items():
                log.write("left_out", self.step, {"network": numbers[position], "reason": reason})
        if result.skipped is not None:
            log.write("skipped", self.step, {"reason": result.skipped})


def _make_ghn(config: TrainConfig, images: ImageSource) -> GHN:
    num_classes, size = images.num_classes, images.batch(torch.tensor([0], device="cpu")).shape[-1]
    of_images = {"mean": images.mean, "std": images.std, "image_size": size}
    settings = make_config({"num_classes": num_classes, **of_images, **config.ghn})
    if settings.num_classes != num_classes:
        raise ConfigError(
            f"ghn has num_classes {settings.num_classes}, but the images have {num_classes} classes"
        )
    if config.init is None:
        return make_ghn(settings).train()
    ghn = from_pretrained(config.init)
    try:
        adapt(ghn, settings)
    except ValueError as error:
        raise ConfigError(f"{config.init} cannot be trained on: {error}") from None
    return ghn.train()


def _checked_teacher(
    teacher: Teacher | None, config: TrainConfig, images: ImageSource, device: torch.device
) -> Teacher | None:
    if teacher is None:
        if config.teacher is not None:
            raise ConfigError(f"give the trainer the teacher {config.teacher}, with its weights")
        return None
    config.check_crops_for_teacher()
    teacher.model.to(device)
    teacher.check(images)
    return teacher


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


@contextmanager
def _network_workers(
    config: TrainConfig, device: torch.device
) -> Iterator[ThreadPoolExecutor | None]:
    """Threads that run networks on a CPU, each with one core; none for a GPU.

    Small networks gain little from several cores each, several networks at once gain fully.
    """
    if device.type != "cpu":
        yield None
        return
    count = config.threads or torch.get_num_threads()
    with one_core_workers(count, "ghn-fast-net") as workers:
        yield workers


@contextmanager
def _signals(interrupt: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and SIGINT stop the run; works in the main thread only, elsewhere does nothing."""

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt(number)

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
