"""What a start is worth: accuracy at once and after 1, 3 and 10 epochs, from five starts.

    python bench/starts.py run --signs FOLDER --cifar10 FOLDER --out runs/starts
    python bench/starts.py table runs/starts/starts.jsonl
    python bench/starts.py table docs/figures/starts.jsonl --into docs/finetuning.md

On a GPU, which small networks leave idle most of the time, 16 processes share it (with NVIDIA's
MPS, ``nvidia-cuda-mps-control -d``, their kernels overlap), and no run starts after 2 minutes:

    python bench/starts.py run --signs FOLDER --cifar10 FOLDER --out runs/starts \\
        --processes 16 --minutes 2

Every start gets the same treatment: batch-norm statistics and an output layer by closed form
(`calibrate_`, `fit_head_`), then `ghn_fast.finetune.finetune_`, which `ghn-fast fit` runs, with the
same learning rates to choose from. All of them are tried with the first seed, the second and later
ones to the end only if they are not behind after 3 epochs (as in successive halving, arXiv
1502.07943); that with the best accuracy on held-out training pictures at the end is run with the
other seeds, and shown.

With two rates the whole table are 264 runs (8 architectures, 2 data sets, 4 starts, of the ViT 5,
3 seeds and a second rate for the first), each of about 130 steps of 64 pictures and 4 measurements
of about 1,400. They come in the order in which they matter, the largest networks last. A run is a
line of ``OUT/starts.jsonl`` once it is done; the same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ghn_fast
from ghn_fast._system.device import place
from ghn_fast._system.files import append_line, write_text
from ghn_fast._system.processes import choose_device
from ghn_fast.data import Images, load_images, normalised_by
from ghn_fast.data.images import CIFAR10_MEAN, CIFAR10_STD
from ghn_fast.evaluation.results import ghn_digest
from ghn_fast.finetune import RECIPE, FinetuneConfig, History, finetune_
from ghn_fast.start import start_

ARCHITECTURES = (
    *("resnet18", "mobilenet_v2", "convnext_tiny", "vit_tiny", "efficientnet_b0"),
    *("densenet121", "resnet50", "vgg11_bn"),
)
"""In the order of their runs; the last three take longest."""
STARTS = ("random", "LSUV", "mimetic", "predicted", "predicted, refined")
TRANSFORMERS = ("vit_tiny",)
SIZE = 32
PER_CLASS = 100
"""Of CIFAR-10's training pictures; a tenth of them is held out, as of all data sets."""
TESTED = 1000
SHOWN = (0, 1, 3, 10)
DECIDING = 3
"""The epoch after which a rate that is behind an earlier one is given up."""
RATES = (0.001, 0.0003)
BATCH = 64
SCALED_BY = 128
"""Pictures that LSUV measures variances of."""
START_OF_TABLE, END_OF_TABLE = "<!-- starts -->", "<!-- end of starts -->"


Cell = tuple[str, str, str]
"""Data set, architecture and start."""


@dataclass(frozen=True)
class Job:
    """A run, and the line that it becomes.

    Attributes:
        task, architecture, start, seed, rate: what is run; a rate of 0 is the best of seed 0's.
        epochs, batch, ghn, recipe, version: under which conditions; ``ghn`` is a digest of the
            weights of that which predicted.
        pictures: to train with, to choose by and to measure with.
        validation, test: {epoch: top-1 in percent}; those before the loss was no longer finite, or
            the rate was given up.
        device, torch, seconds: of the run.
    """

    task: str
    architecture: str
    start: str
    seed: int
    rate: float
    epochs: int
    batch: int
    ghn: str
    recipe: str = ""
    version: str = ghn_fast.__version__
    pictures: tuple[int, ...] = ()
    validation: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    device: str = ""
    torch: str = ""
    seconds: float = 0.0

    @property
    def conditions(self) -> tuple[Any, ...]:
        return self.epochs, self.batch, self.ghn, self.recipe

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other runs."""
        return *self.cell, self.seed, self.rate, *self.conditions

    @property
    def cell(self) -> Cell:
        return self.task, self.architecture, self.start

    @property
    def last(self) -> float:
        """What the rate is chosen by; below all others where the training did not end."""
        return self.validation.get(str(self.epochs), -1.0)


@dataclass
class Task:
    """Pictures to train with, to choose by and to measure with."""

    train: Images
    validation: Images
    test: Images


def load_pool(folder: str) -> tuple[Images, Images]:
    """All training and the first test pictures, normalised as those the GHN was trained with."""
    return tuple(  # type: ignore[return-value]
        normalised_by(load_images(folder, part, SIZE), CIFAR10_MEAN, CIFAR10_STD)
        for part in ("train", "test")
    )


def make_task(pool: tuple[Images, Images], seed: int) -> Task:
    """At most ``PER_CLASS`` times the classes, alike of each class, chosen by the seed."""
    train, test = pool
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    chosen, held = [], []
    for label in range(train.num_classes):
        own = order[train.labels[order] == label]
        own = own[:PER_CLASS] if len(own) > 2 * PER_CLASS else own
        count = max(len(own) // 10, 1)
        held.append(own[:count])
        chosen.append(own[count:])
    mixed = torch.cat(chosen)
    mixed = mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(seed))]
    return Task(train.select(mixed), train.select(torch.cat(held)), test.first(TESTED))


def make_model(architecture: str, classes: int) -> nn.Module:
    """At random, for pictures of 32 pixels; the transformer has patches of 4 pixels."""
    if architecture in TRANSFORMERS:
        import timm

        name, options = "vit_tiny_patch16_224", {"img_size": SIZE, "patch_size": 4}
        return timm.create_model(name, num_classes=classes, **options)
    from torchvision import models

    return ghn_fast.adjust_net(models.get_model(architecture, num_classes=classes))


def prepare(job: Job, task: Task, ghn: ghn_fast.GHN, device: torch.device) -> nn.Module:
    """The model at the start, with statistics and an output layer."""
    torch.manual_seed(job.seed)
    model = make_model(job.architecture, task.train.num_classes)
    if job.start == "mimetic":
        ghn_fast.mimetic_(model)
    elif job.start == "LSUV":
        place(model, device)
        ghn_fast.lsuv_(model, task.train.batch(torch.arange(min(SCALED_BY, len(task.train)))))
    start = "predicted" if job.start.startswith("predicted") else "random"
    is_refined = job.start.endswith("refined")
    start_(model, task.train, ghn, start=start, refine=is_refined, device=device)
    return model


class BehindError(Exception):
    """Another rate is ahead."""


def run(job: Job, task: Task, ghn: ghn_fast.GHN, device: torch.device, bar: float = 0.0) -> Job:
    """Runs it, to ``DECIDING`` only where held-out accuracy is below the bar then.

    A loss that is no longer finite leaves out the epochs from then on.
    """
    begun = time.perf_counter()
    model = prepare(job, task, ghn, device)
    config = FinetuneConfig(job.epochs, job.rate, job.batch, job.seed, measured=SHOWN)
    history = History()

    def keep(epoch: int, now: History) -> None:
        history.validation[:], history.test[:] = now.validation, now.test
        if epoch == DECIDING < job.epochs and round(now.validation[epoch], 2) < bar:
            raise BehindError(f"given up after {epoch} epochs, as another rate is ahead")

    try:
        finetune_(model, task.train, task.validation, task.test, config, on_epoch=keep)
    except (FloatingPointError, BehindError) as error:
        print(f"{job.architecture}, {job.start}, {job.rate:g}: {error}", flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result = {
        "pictures": [len(part) for part in (task.train, task.validation, task.test)],
        "validation": _measured(history.validation),
        "test": _measured(history.test),
        "device": name,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    return Job(**{**asdict(job), **result})


def _measured(values: Sequence[float]) -> dict[str, float]:
    return {str(n): round(value, 2) for n, value in enumerate(values) if not math.isnan(value)}


def plan(options: argparse.Namespace, tasks: Sequence[str], digest: str) -> list[Job]:
    """All runs in their order, those that wait for a rate behind the next architecture's first."""

    def of(architecture: str, rates: Sequence[float], seeds: Iterable[int]) -> list[Job]:
        return [
            Job(
                *(task, architecture, start, seed, rate, options.epochs, options.batch_size),
                ghn=digest if start.startswith("predicted") else "",
                recipe=RECIPE,
            )
            for seed in seeds
            for rate in rates
            for task in tasks
            for start in options.starts
            if start != "mimetic" or architecture in TRANSFORMERS
        ]

    first = [of(name, options.rates, [0]) for name in options.architectures]
    rest = [of(name, [0.0], range(1, options.seeds)) for name in options.architectures]
    return [job for jobs in zip([*first, []], [[], *rest], strict=True) for job in chain(*jobs)]


def best(jobs: Iterable[Job]) -> dict[Cell, float]:
    """{cell: the rate that the first seed's held-out pictures choose, of equals the largest}."""
    first = [job for job in jobs if job.seed == 0]
    cells = {job.cell for job in first}
    return {
        cell: max((job.last, job.rate) for job in first if job.cell == cell)[1] for cell in cells
    }


def read(path: Path) -> list[Job]:
    """The runs of a file; a line that was cut off is none."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Job(**json.loads(line)) for line in lines if line.endswith("\n")]


class Pool:
    """What all processes share: the runs, the number of the next one, and which have ended."""

    def __init__(self, options: argparse.Namespace) -> None:
        begun = time.monotonic()
        self.ends = begun + 60 * options.minutes if options.minutes else math.inf
        self.path: Path = options.out / "starts.jsonl"
        self.device: str = options.device
        self.ghn = ghn_fast.from_pretrained(options.ghn)
        folders = {"signs": options.signs, "cifar10": options.cifar10}
        self.data = {name: load_pool(path) for name, path in folders.items() if path is not None}
        self.jobs = plan(options, list(self.data), ghn_digest(self.ghn))
        context = multiprocessing.get_context("fork")
        self.next = context.Value("i", 0)
        self.ended = context.Array("b", len(self.jobs))

    def take(self) -> int | None:
        with self.next.get_lock():
            number = self.next.value
            self.next.value += 1
        return None if number >= len(self.jobs) or self.is_over() else number

    def is_over(self) -> bool:
        return time.monotonic() > self.ends

    def work(self) -> None:
        """Takes runs until there are none left."""
        device = choose_device(self.device)
        failed = False
        while (number := self.take()) is not None:
            try:
                self._run(self._decided(self.jobs[number]), self._rivals(number), device)
            except Exception:  # of one run, which must not keep others from being run
                traceback.print_exc()
                failed = True
            self.ended[number] = True
        if failed:
            raise SystemExit("some runs failed; the same command tries them again")

    def _decided(self, job: Job) -> Job:
        """With the best rate of seed 0, once its runs have ended."""
        if job.rate > 0:
            return job
        same = self._ended([n for n, o in enumerate(self.jobs) if o.cell == job.cell and o.rate])
        return replace(job, rate=best(same).get(job.cell, 0.0))

    def _rivals(self, number: int) -> list[Job]:
        """The runs of the same start with earlier rates, once they have ended."""
        job, earlier = self.jobs[number], enumerate(self.jobs[:number])
        return self._ended([n for n, other in earlier if job.rate > 0 and other.cell == job.cell])

    def _ended(self, numbers: Sequence[int]) -> list[Job]:
        """What these of the first seed, of one start, have become; waits for them."""
        while not all(self.ended[n] for n in numbers) and not self.is_over():
            time.sleep(0.1)
        keys = {self.jobs[n].key for n in numbers}
        return [done for done in read(self.path) if done.key in keys]

    def _run(self, job: Job, rivals: Sequence[Job], device: torch.device) -> None:
        if self.is_over() or job.key in {done.key for done in read(self.path)}:
            return
        if not job.rate > 0:
            raise ValueError(f"{job.cell}: there is no run of the first seed to take the rate of")
        bar = max((rival.validation.get(str(DECIDING), 0.0) for rival in rivals), default=0.0)
        done = run(job, make_task(self.data[job.task], job.seed), self.ghn, device, bar)
        append_line(self.path, json.dumps(asdict(done)))
        reached = " ".join(f"{value:.1f}" for value in done.test.values())
        print(f"{done.key[:5]}: {reached} % in {done.seconds:.0f} s", flush=True)


def run_all(options: argparse.Namespace) -> None:
    """In as many processes as are asked for; they begin as copies of this one, with the data."""
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if "vit_tiny" in options.architectures:
        import timm  # noqa: F401  # once, before the processes part
    pool = Pool(options)
    if options.processes == 1:
        return pool.work()
    # Nothing has touched the GPU yet: each process gets a context of its own.
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=pool.work) for _ in range(options.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(1)


def chosen(jobs: Sequence[Job]) -> dict[Cell, list[Job]]:
    """{cell: its runs with the rate that was chosen}."""
    rates = best(jobs)
    return {
        cell: [job for job in jobs if job.cell == cell and job.rate == rate]
        for cell, rate in rates.items()
    }


def table(jobs: Sequence[Job]) -> str:
    """Mean and standard error over the seeds for each data set, architecture and start."""
    cells = chosen(jobs)
    for name in ("epochs", "batch", "ghn", "recipe"):
        own = [job for job in jobs if job.ghn or name != "ghn"]
        values = {getattr(job, name) for job in own}
        if len(values) > 1:
            raise SystemExit(f"the runs differ in {name}: {sorted(values)}")
    text = [_conditions(jobs)]
    for task in dict.fromkeys(job.task for job in jobs):
        text += ["", f"**{_title(task, jobs)}**", "", *_rows(task, cells)]
        run = {architecture for name, architecture, _ in cells if name == task}
        left = [name for name in ARCHITECTURES if name not in run]
        text += ["", f"Not run yet: {', '.join(left)}."] if left else []
        untuned = _untuned(task, jobs)
        text += ["", f"Not tried with all rates yet: {', '.join(untuned)}."] if untuned else []
    return "\n".join(text)


def _untuned(task: str, jobs: Sequence[Job]) -> list[str]:
    """The networks of which a start was not run with every rate."""
    tried: dict[Cell, set[float]] = {}
    for job in jobs:
        tried.setdefault(job.cell, set()).add(job.rate)
    most = max(map(len, tried.values()))
    few = {name for (own, name, _), rates in tried.items() if own == task and len(rates) < most}
    return [name for name in ARCHITECTURES if name in few]


def _conditions(jobs: Sequence[Job]) -> str:
    seeds = len({job.seed for job in jobs})
    counted = f"{seeds} seed{'s' if seeds > 1 else ''}"
    rates = ", ".join(f"{rate:g}" for rate in sorted({job.rate for job in jobs}))
    devices = ", ".join(sorted({job.device for job in jobs}))
    versions = ", ".join(sorted({job.torch for job in jobs}))
    ghn = next((job.ghn for job in jobs if job.ghn), "none")
    return (
        f"GHN {ghn} (digest of its weights); {counted}; learning rates {rates}; batches of "
        f"{jobs[0].batch}; {devices}, PyTorch {versions}."
    )


def _title(task: str, jobs: Sequence[Job]) -> str:
    train, held, test = next(job.pictures for job in jobs if job.task == task)
    names = {"signs": "Signs, 7 classes", "cifar10": "CIFAR-10, 100 pictures a class"}
    return f"{names[task]}: {train:,} pictures to train with, {held:,} held out, {test:,} tested"


def _rows(task: str, cells: Mapping[Cell, Sequence[Job]]) -> Iterator[str]:
    heads = ("at once", *(f"{n} epoch{'s' if n > 1 else ''}" for n in SHOWN[1:]))
    yield f"| network | start | rate | {' | '.join(heads)} |"
    yield "| --- | --- | ---: |" + " ---: |" * len(SHOWN)
    run = {architecture for name, architecture, _ in cells if name == task}
    for architecture in (name for name in ARCHITECTURES if name in run):
        for start in STARTS:
            if start == "mimetic" and architecture not in TRANSFORMERS:
                continue
            runs = cells.get((task, architecture, start), [])
            rate = f"{runs[0].rate:g}" if runs else "—"
            values = [_cell([run.test.get(str(epoch)) for run in runs]) for epoch in SHOWN]
            yield f"| {architecture} | {start} | {rate} | {' | '.join(values)} |"
    yield from _means(task, cells)


def _means(task: str, cells: Mapping[Cell, Sequence[Job]]) -> Iterator[str]:
    """Over the networks with all runs of the starts that any network can have."""
    common = [start for start in STARTS if start != "mimetic"]
    shown = [str(epoch) for epoch in SHOWN]
    whole = {
        cell for cell, runs in cells.items() if all({*shown} <= run.test.keys() for run in runs)
    }
    names = [n for n in ARCHITECTURES if whole.issuperset((task, n, start) for start in common)]
    for start in common if len(names) > 1 else ():
        own = [[run.test for run in cells[task, name, start]] for name in names]
        means = (
            statistics.fmean(statistics.fmean(test[epoch] for test in tests) for tests in own)
            for epoch in shown
        )
        values = " | ".join(f"**{mean:.1f}**" for mean in means)
        yield f"| **mean of {len(names)}** | {start} | | {values} |"


def _cell(values: Sequence[float | None]) -> str:
    """Mean and standard error; how many runs there are if not all got so far."""
    found = [value for value in values if value is not None]
    if not found:
        return "—"
    mean = f"{statistics.fmean(found):.1f}"
    if len(found) > 1:
        mean += f" ± {statistics.stdev(found) / math.sqrt(len(found)):.1f}"
    return mean if len(found) == len(values) else f"{mean} ({len(found)} of {len(values)} runs)"


def put(text: str, page: Path) -> None:
    """Replaces what is between the two comments of a page."""
    before, start, rest = page.read_text().partition(START_OF_TABLE)
    _, end, after = rest.partition(END_OF_TABLE)
    if not end:
        raise SystemExit(f"{page} has no {START_OF_TABLE} ... {END_OF_TABLE} to fill")
    write_text(page, f"{before}{start}\n{text}\n{end}{after}")


def show(options: argparse.Namespace) -> None:
    jobs = read(options.file)
    if not jobs:
        raise SystemExit(f"{options.file} has no runs")
    text = table(jobs)
    print(text)
    if options.into is not None:
        put(text, options.into)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="run what is missing")
    _add_options(runs)
    runs.set_defaults(command=run_all)
    shown = commands.add_parser("table", help="print the table, or fill a page with it")
    shown.add_argument("file", type=Path)
    shown.add_argument("--into", type=Path, help="a page with the two comments")
    shown.set_defaults(command=show)
    return parser.parse_args(arguments)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add: Callable[..., Any] = parser.add_argument
    add("--signs", help="folder of pictures of 7 signs, train and test")
    add("--cifar10", help="CIFAR-10 folder")
    add("--out", type=Path, required=True)
    add("--ghn", default="ghn2-cifar10", help="name, file or folder of a run")
    add("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    add("--starts", nargs="+", default=STARTS, choices=STARTS)
    add("--rates", type=float, nargs="+", default=RATES)
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=SHOWN[-1])
    add("--batch-size", type=int, default=BATCH)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--processes", type=int, default=1, help="that share the device")
    add("--threads", type=int, default=1, help="of each process on the CPU")
    add("--minutes", type=float, help="after which no run starts")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.command(options)


if __name__ == "__main__":
    main()
