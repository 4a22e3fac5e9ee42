"""``ghn-fast eval``: accuracy on networks that a GHN has never seen."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghn_fast.cli import options

if TYPE_CHECKING:
    from ghn_fast.evaluation import EvaluationResult, NetworkResult


def evaluate(
    ghn: options.Ghn = "ghn2-cifar10",
    split: Annotated[
        str, typer.Option(help="test, val, wide, deep, dense, bnfree, search or predefined.")
    ] = "test",
    num_nets: Annotated[int, typer.Option(min=1, help="The first so many of the split.")] = 50,
    images: options.Images = 1000,
    data: options.Data = None,
    download: options.Download = False,
    batch_size: options.BatchSize = 64,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    random: Annotated[
        bool, typer.Option("--random", help="Also evaluate PyTorch's random initialisation.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for per-network results; evaluation goes on from them."),
    ] = None,
) -> None:
    """Evaluate a GHN on networks of a split of DeepNets-1M, with batch statistics."""
    from ghn_fast.checkpoint import from_pretrained
    from ghn_fast.data import load_cifar10
    from ghn_fast.evaluation import evaluate as run

    network = from_pretrained(ghn)
    test = load_cifar10(data, "test", download)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    results = [
        run(
            network,
            split,
            test,
            num_nets=num_nets,
            num_images=images,
            batch_size=batch_size,
            seed=seed,
            baseline=baseline,
            results_file=out / f"{split}-{baseline}.json" if out is not None else None,
            on_network=partial(_print_network, baseline),
        )
        for baseline in (("ghn", "random") if random else ("ghn",))
    ]
    _print_table(ghn, results)


def _print_network(baseline: str, result: NetworkResult) -> None:
    typer.echo(
        f"{baseline} network {result.index}: {result.top1:.1f} % "
        f"({result.parameters / 1e6:.2f} M parameters, {result.seconds:.1f} s)"
    )


def _print_table(ghn: str, results: list[EvaluationResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = results[0]
    table = Table(
        title=f"top-1 in % of {len(first.networks)} networks of split {first.split}, seed "
        f"{first.seed}, on {first.num_images:,} CIFAR-10 test images, batch statistics of "
        f"{first.batch_size}",
        title_justify="left",
    )
    for column in ("parameters by", "mean", "standard error", "std", "best", "worst"):
        table.add_column(column, justify="left" if column == "parameters by" else "right")
    for result in results:
        summary = result.summary()
        figures = ("mean", "standard_error", "std", "best", "worst")
        name = ghn if result.baseline == "ghn" else "random initialisation"
        table.add_row(name, *(f"{summary[figure]:.1f}" for figure in figures))
    Console().print(table)
