"""Fine-tuning on 100 images a class from predicted, refined and random parameters.

    python bench/finetune.py --arch resnet18 --out runs/finetune
    python bench/finetune.py --arch resnet18 --out runs/finetune --starts random --device cuda
    python bench/finetune.py --arch resnet18 --out runs/finetune --report

Every start gets the same tuning: each learning rate of the grid once, on the first seed; the one
with the best accuracy on held-out training images at the end is run with all seeds. Test images
are looked at for the curves only. A run is a line of ``OUT/ARCH.jsonl`` once it is done, so that
what was stopped goes on, and several processes can share the starts; when all are there, the table
is printed and the curves are drawn to ``OUT/ARCH.png``. On a GPU it trains in bfloat16.

Refinement is that of arXiv 2207.10049: noise of 3e-5 and orthogonal weights in the last third of
the layers (from the 37th of ResNet-50's 54 weights on).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ghn_fast
from ghn_fast._system.device import to_device
from ghn_fast._system.files import append_line
from ghn_fast._system.processes import choose_device
from ghn_fast.data import Images, ImageStream, load_cifar10
from ghn_fast.evaluation import calibrate, top1

STARTS = ("random", "predicted", "predicted, refined")
RATES = (0.1, 0.03, 0.01)
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
BATCH = 64
NOISE = 3e-5
REFINED_FROM = 37 / 54
GRAD_CLIP = 5.0


@dataclass
class Run:
    """A fine-tuning.

    Attributes:
        start, lr, seed: of the run.
        epochs: after which it was evaluated; 0 is the start itself.
        validation, test: top-1 in percent then.
    """

    start: str
    lr: float
    seed: int
    epochs: list[int]
    validation: list[float]
    test: list[float]


@dataclass
class Task:
    """The images of the study: few to train with, and others to choose and to report with."""

    train: Images
    validation: Images
    test: Images


def make_task(data: str | None, per_class: int, evaluated: int, seed: int) -> Task:
    """``per_class`` training images of each class, chosen by the seed."""
    train = load_cifar10(data, "train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    chosen = [order[train.labels[order] == label][:per_class] for label in range(10)]
    validation, test = (load_cifar10(data, split).first(evaluated) for split in ("val", "test"))
    return Task(train.select(torch.cat(chosen)), validation, test)


def make_model(arch: str, start: str, ghn: str, seed: int, device: torch.device) -> nn.Module:
    from torchvision import models

    torch.manual_seed(seed)
    model = ghn_fast.adjust_net(models.get_model(arch, num_classes=10))
    if start != "random":
        ghn_fast.predict(model, ghn)
    if start == "predicted, refined":
        weights = sum(parameter.dim() >= 2 for parameter in model.parameters())
        first = round(REFINED_FROM * weights)
        generator = torch.Generator().manual_seed(seed)
        ghn_fast.refine_(model, noise=NOISE, first_layer=first, generator=generator)
    return model.to(device, memory_format=torch.channels_last)


def finetune(model: nn.Module, task: Task, run: Run, last: int, every: int) -> None:
    """Trains for ``last`` epochs, evaluating at the start and every so many; fills in the run."""
    stream = ImageStream(task.train, BATCH, run.seed)
    steps = last * stream.batches_per_epoch
    optimizer = torch.optim.SGD(
        model.parameters(), run.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    evaluate(model, task, run, 0)
    for epoch in range(1, last + 1):
        model.train()
        first = (epoch - 1) * stream.batches_per_epoch
        for step in range(first, first + stream.batches_per_epoch):
            optimizer.zero_grad(set_to_none=True)
            _loss(model, *stream[step]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
            optimizer.step()
            schedule.step()
        if epoch % every == 0 or epoch == last:
            evaluate(model, task, run, epoch)


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    device = next(model.parameters()).device
    images, labels = to_device(images, device), to_device(labels, device)
    # Faster on a GPU; much slower than float32 on a CPU without instructions for it.
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(images).float()
    return F.cross_entropy(logits, labels)


def evaluate(model: nn.Module, task: Task, run: Run, epoch: int) -> None:
    """With batch normalisation calibrated on the training images."""
    calibrate(model, task.train)
    run.epochs.append(epoch)
    run.validation.append(top1(model, task.validation, batch_statistics=False))
    run.test.append(top1(model, task.test, batch_statistics=False))


def read_runs(path: Path) -> list[Run]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [Run(**json.loads(line)) for line in lines if line.endswith("\n")]


def best_rate(runs: Sequence[Run], start: str, seed: int, rates: Sequence[float]) -> float:
    """The rate with the best validation accuracy at the end of the first seed's runs."""
    tuned = {run.lr: run.validation[-1] for run in runs if (run.start, run.seed) == (start, seed)}
    return max(rates, key=lambda rate: tuned[rate])


def planned(path: Path, starts: Sequence[str], rates: Sequence[float], seeds: int) -> Iterator[Run]:
    """The runs that are left, tuning first; what to run next depends on what was found."""
    for start in starts:
        yield from _missing(path, [Run(start, rate, 0, [], [], []) for rate in rates])
    for start in starts:
        rate = best_rate(read_runs(path), start, 0, rates)
        yield from _missing(path, [Run(start, rate, seed, [], [], []) for seed in range(seeds)])


def _missing(path: Path, runs: Sequence[Run]) -> Iterator[Run]:
    done = {(run.start, run.lr, run.seed) for run in read_runs(path)}
    return (run for run in runs if (run.start, run.lr, run.seed) not in done)


def is_complete(runs: Sequence[Run], seeds: int) -> bool:
    """Whether every start has been run with all seeds."""
    return all(len({run.seed for run in runs if run.start == start}) >= seeds for start in STARTS)


def chosen_runs(runs: Sequence[Run], rates: Sequence[float]) -> dict[str, list[Run]]:
    """{start: its runs with the rate that was chosen}."""
    rate = {start: best_rate(runs, start, 0, rates) for start in STARTS}
    return {start: [r for r in runs if (r.start, r.lr) == (start, rate[start])] for start in STARTS}


def table(chosen: dict[str, list[Run]]) -> str:
    """Test accuracy of each start over the epochs, mean and deviation over the seeds."""
    epochs = next(iter(chosen.values()))[0].epochs
    shown = sorted({0, *epochs[1:4], epochs[len(epochs) // 2], epochs[-1]})
    lines = [
        "| start | lr | seeds | " + " | ".join(f"epoch {epoch}" for epoch in shown) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(shown),
    ]
    for start, runs in chosen.items():
        cells = [_cell([run.test[run.epochs.index(epoch)] for run in runs]) for epoch in shown]
        lines.append(f"| {start} | {runs[0].lr} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


def plot(chosen: dict[str, list[Run]], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for start, runs in chosen.items():
        curves = torch.tensor([run.test for run in runs])
        low, high = curves.min(dim=0).values, curves.max(dim=0).values
        axes.plot(runs[0].epochs, curves.mean(dim=0), marker="o", label=f"{start}, lr {runs[0].lr}")
        axes.fill_between(runs[0].epochs, low, high, alpha=0.2)
    axes.set(xlabel="epoch", ylabel="top-1 on test images, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet18", help="a classifier of torchvision")
    parser.add_argument("--ghn", default="ghn2-cifar10")
    parser.add_argument("--data", help="CIFAR-10 folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="epochs between evaluations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", nargs="+", default=STARTS, choices=STARTS, help="to run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--evaluated", type=int, default=1000, help="validation and test images")
    parser.add_argument("--report", action="store_true", help="only print and draw what is there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.arch}.jsonl"
    if not options.report:
        device = choose_device(options.device)
        for run in planned(path, options.starts, options.rates, options.seeds):
            task = make_task(options.data, options.per_class, options.evaluated, run.seed)
            model = make_model(options.arch, run.start, options.ghn, run.seed, device)
            finetune(model, task, run, options.epochs, options.every)
            append_line(path, json.dumps(asdict(run)))
            print(f"{run.start}, lr {run.lr}, seed {run.seed}: {run.test[-1]:.1f} %", flush=True)
    runs = read_runs(path)
    if not options.report and not is_complete(runs, options.seeds):
        return
    chosen = chosen_runs(runs, options.rates)
    print(table(chosen))
    title = f"{options.arch}, {options.per_class} training images a class"
    plot(chosen, title, options.out / f"{options.arch}.png")


if __name__ == "__main__":
    main()
