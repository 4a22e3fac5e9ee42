"""``ghn-fast eval``: accuracy on networks that a GHN has never seen."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghn_fast.cli import options
from ghn_fast.cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.evaluation import EvaluationResult, NetworkResult

EVALUATED = ("test", "wide", "deep", "dense", "bnfree", "predefined")
"""What ``--split all`` stands for: the splits that results are published for."""


def evaluate(
    ghn: options.Ghn = options.DEFAULT_GHN,
    split: Annotated[
        str,
        typer.Option(
            help="test, val, wide, deep, dense, bnfree, search, predefined; all, for those with "
            "published results; zoo (torchvision's and timm's networks); families/val or "
            "families/test, or one family of them: families/test/residual."
        ),
    ] = "test",
    num_nets: Annotated[
        int | None,
        typer.Option(min=1, help="The first so many networks of each split; by default all."),
    ] = None,
    images: options.Images = 1000,
    data: options.DataSource = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Height and width of images, for other data sets than CIFAR-10; by default what "
            "the GHN was trained with.",
        ),
    ] = None,
    download: options.Download = False,
    batch_size: options.BatchSize = 64,
    norm: Annotated[
        str,
        typer.Option(
            help="batch: normalise by each batch's statistics; calibrated: by those of training "
            "images."
        ),
    ] = "batch",
    seed: Annotated[int, typer.Option(help="Of the split; the published splits' is 0.")] = 0,
    random: Annotated[
        bool, typer.Option("--random", help="Also evaluate PyTorch's random initialisation.")
    ] = False,
    sgd_steps: Annotated[
        int | None, typer.Option(min=1, help="Also train each network with SGD for so many steps.")
    ] = None,
    sgd_epochs: Annotated[
        float | None, typer.Option(min=0.0, help="The same, in epochs of 96-image batches.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Networks at once on a CPU, one core each; 0: one per core.")
    ] = 0,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for per-network results; evaluation goes on from them."),
    ] = None,
) -> None:
    """Evaluate a GHN on networks that it has never seen.

    In several processes: torchrun --nproc-per-node N -m ghn_fast eval ...
    """
    from ghn_fast._system.processes import choose_device, process_group
    from ghn_fast.cli.images import load_parts, normalisation
    from ghn_fast.data import normalised_by
    from ghn_fast.data.load import is_cifar10
    from ghn_fast.evaluation import SGD_BATCH
    from ghn_fast.evaluation import evaluate as run
    from ghn_fast.ghn.hub import from_pretrained

    if sgd_steps is not None and sgd_epochs is not None:
        raise UsageError("give --sgd-steps or --sgd-epochs, not both")
    if sgd_epochs is not None and not sgd_epochs > 0:
        raise UsageError(f"--sgd-epochs takes more than 0, not {sgd_epochs:g}")
    place = choose_device(device)
    with process_group(place) as processes:
        network = from_pretrained(ghn).to(place)
        uses_train = norm == "calibrated" or sgd_steps is not None or sgd_epochs is not None
        wanted = ("test", "train") if uses_train else ("test",)
        size = image_size or network.config.image_size or 32
        _, mean, std = normalisation("auto", network.config)
        loaded = load_parts(processes, data, wanted, size, download)
        parts = [normalised_by(part, mean, std) for part in loaded]
        test, train = parts[0], parts[1] if uses_train else None
        if train is not None and sgd_epochs is not None:
            sgd_steps = max(1, round(sgd_epochs * (len(train) // SGD_BATCH)))
        baselines = ["ghn", *(["random"] if random else []), *(["sgd"] if sgd_steps else [])]
        splits = EVALUATED if split == "all" else (split,)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        results = [
            run(
                network,
                name,
                test,
                num_nets=num_nets,
                num_images=images,
                batch_size=batch_size,
                seed=seed,
                baseline=baseline,
                norm=norm,
                train=train,
                sgd_steps=sgd_steps or 0,
                threads=threads,
                device=place,
                results_file=None
                if out is None
                else out / f"{name.replace('/', '-')}-{baseline}.jsonl",
                on_network=partial(_print_network, name, baseline),
            )
            for name in splits
            for baseline in baselines
        ]
        if processes.is_first:
            _print_tables(ghn, results, is_cifar10=is_cifar10(data))


def _print_network(split: str, baseline: str, result: NetworkResult) -> None:
    typer.echo(
        f"{split} {baseline} network {result.name or result.index}: {result.top1:.1f} % "
        f"({result.parameters / 1e6:.2f} M parameters, {result.seconds:.1f} s)"
    )


def _print_tables(ghn: str, results: list[EvaluationResult], is_cifar10: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from ghn_fast.evaluation.published import DIFFERENCES

    first = results[0]
    norm = (
        "calibrated"
        if first.norm == "calibrated"
        else f"statistics of batches of {min(first.batch_size, first.num_images)}"
    )
    table = Table(
        title=f"top-1 in % on {first.num_images:,} test images, networks of seed {first.seed}, "
        f"batch normalisation by {norm}",
        title_justify="left",
    )
    figures = ("networks", "mean", "standard error", "std", "best", "worst")
    for column in ("split", "parameters by", *figures):
        table.add_column(column, justify="right" if column in figures else "left")
    for split in dict.fromkeys(result.split for result in results):
        own = [result for result in results if result.split == split]
        for result in own:
            for row in _rows(ghn, result):
                table.add_row(*row)
        for row in _published_rows(split) if is_cifar10 else ():
            table.add_row(*row, style="dim")
        table.add_section()
    console = Console()
    for split in dict.fromkeys(result.split for result in results):
        own = [result for result in results if result.split == split]
        if own[0].networks[0].name:
            console.print(_named_table(ghn, own))
    console.print(table)
    if is_cifar10 and any(_published_rows(result.split) for result in results):
        console.print(DIFFERENCES)


def _named_table(ghn: str, results: list[EvaluationResult]) -> Table:
    """A line for each network that has a name, of one split."""
    from rich.table import Table

    table = Table(title=f"{results[0].split}, network by network", title_justify="left")
    table.add_column("network")
    columns = [_way(ghn, result) for result in results]
    for column in ("parameters", "not predicted", *columns):
        table.add_column(column, justify="right")
    for networks in zip(*(result.networks for result in results), strict=True):
        first = networks[0]
        share = f"{100 * max(n.left for n in networks) / first.parameters:.2g} %"
        figures = (f"{network.top1:.1f}" for network in networks)
        table.add_row(first.name, f"{first.parameters / 1e6:.1f} M", share, *figures)
    return table


def _way(ghn: str, result: EvaluationResult) -> str:
    names = {"ghn": ghn, "random": "random initialisation", "sgd": f"SGD, {result.sgd_steps} steps"}
    return names[result.baseline]


def _rows(ghn: str, result: EvaluationResult) -> list[list[str]]:
    """A line for the split, or one for each of the predefined networks."""
    name = _way(ghn, result)
    if result.split == "predefined":
        return [
            [PREDEFINED_NAMES[network.index], name, "1", f"{network.top1:.1f}"]
            for network in result.networks
        ]
    summary = result.summary()
    figures = [summary[key] for key in ("mean", "standard_error", "std", "best", "worst")]
    count = str(len(result.networks))
    return [
        [
            result.split,
            name,
            count,
            *("-" if figure is None else f"{figure:.1f}" for figure in figures),
        ]
    ]


PREDEFINED_NAMES = ("resnet50", "vit")


def _published_rows(split: str) -> list[list[str]]:
    from ghn_fast.evaluation.published import CIFAR10
    from ghn_fast.nets.deepnets1m import SIZES

    rows = []
    for key in PREDEFINED_NAMES if split == "predefined" else (split,):
        count = "1" if split == "predefined" else str(SIZES.get(split, 0))
        for name, published in CIFAR10.items():
            if key in published:
                mean, best = published[key]
                rows.append(
                    [key, name, count, f"{mean:.1f}", "", "", f"{best:.1f}" if best else ""]
                )
    return rows
