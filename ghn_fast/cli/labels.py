"""``ghn-fast nets measure``, ``properties`` and ``search``: what is to be known of networks,
measured or predicted from their embeddings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ghn_fast.cli import options
from ghn_fast.cli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from ghn_fast.data import Images
    from ghn_fast.evaluation import Labels, NetworkLabels
    from ghn_fast.properties import Correlations

LabelFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Files that ghn-fast nets measure wrote, of equal settings; by default the labels "
        "that ghn_fast has with it."
    ),
]


def measure(
    out: Annotated[
        Path, typer.Option(help="JSON lines, one a network; what is there is not measured again.")
    ],
    ghn: options.Ghn = options.DEFAULT_GHN,
    split: Annotated[
        list[str] | None, typer.Option(help="May be repeated, taken in turn; by default val, test.")
    ] = None,
    num_nets: Annotated[int, typer.Option(min=1, help="The first so many of each split.")] = 500,
    steps: Annotated[int, typer.Option(min=1, help="Of SGD, 96 images each.")] = 150,
    width: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of its width that a network trains at.")
    ] = 0.25,
    images: Annotated[
        int, typer.Option(min=1, help="How many held-out training images to classify.")
    ] = 2000,
    data: options.DataSource = None,
    download: options.Download = False,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="After which no further network is begun.")
    ] = None,
    device: options.Device = "auto",
    known: Annotated[
        list[Path] | None,
        typer.Option(help="Labels made with another GHN: only what that predicts is measured."),
    ] = None,
) -> None:
    """Measure networks: accuracy after SGD, clean and with noise, time, and what costs nothing.

    In several processes, which may share a GPU, where networks of this size are mostly launches:
    torchrun --nproc-per-node 16 -m ghn_fast nets measure --out labels.jsonl --minutes 1
    """
    from ghn_fast._system.processes import choose_device, process_group
    from ghn_fast.cli.images import load_parts
    from ghn_fast.data import EncodedImages
    from ghn_fast.evaluation import load_labels, measure_labels
    from ghn_fast.ghn.hub import from_pretrained

    place = choose_device(device)
    with process_group(place) as processes:
        train, held_out = load_parts(processes, data, ("train", "val"), 32, download)
        chosen = held_out.first(images)
        measured = measure_labels(
            from_pretrained(ghn).to(place),
            chosen.in_memory() if isinstance(chosen, EncodedImages) else cast("Images", chosen),
            train,
            split or ("val", "test"),
            num_nets=num_nets,
            steps=steps,
            width=width,
            seconds=math.inf if minutes is None else 60 * minutes,
            device=place,
            labels_file=out,
            known=load_labels(known) if known else None,
            on_network=_print_network,
        )
        if processes.is_first:
            typer.echo(f"{len(measured.networks):,} networks in {out}")


def _print_network(network: NetworkLabels) -> None:
    typer.echo(
        f"{network.split} network {network.index}: {network.trained:.1f} % trained, "
        f"{network.noisy:.1f} % with noise, {network.predicted:.1f} % predicted, "
        f"{network.inference:.3g} us an image"
    )


def properties(labels: LabelFiles = None, ghn: options.Ghn = options.DEFAULT_GHN) -> None:
    """Predict properties of networks from their embeddings: Kendall's tau on networks of test.

    Fitted on networks of val, beside figures that cost little. Needs scikit-learn.
    """
    from ghn_fast.evaluation import load_labels
    from ghn_fast.ghn.hub import from_pretrained
    from ghn_fast.properties import correlations

    measured = load_labels(labels or ())
    _print_correlations(measured, ghn, correlations(measured, from_pretrained(ghn)))


def _print_correlations(labels: Labels, ghn: str, found: list[Correlations]) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from ghn_fast.properties import deviation_by_chance

    counts = [sum(n.split == split for n in labels.networks) for split in ("val", "test")]
    table = Table(
        title=f"Kendall's tau with what was measured of {counts[1]} networks of test; regressions "
        f"on {counts[0]} of val, embeddings by {ghn}; accuracy after {labels.steps} steps of SGD "
        f"at {labels.width:g} of the width, time on {labels.device}; orders that have nothing to "
        f"do with each other have a tau of 0 ± {deviation_by_chance(counts[1]):.2f}",
        title_justify="left",
    )
    table.add_column("predicted from")
    for of in found:
        table.add_column(of.name, justify="right")
    runs = {
        "embeddings": [of.embeddings for of in found],
        "statistics of the graph": [of.statistics for of in found],
    }
    for name, taus in runs.items():
        table.add_row(name, *(f"{np.mean(t):.2f} ± {np.std(t):.2f}" for t in taus))
    for name in found[0].free:
        table.add_row(name, *(f"{of.free[name]:.2f}" for of in found))
    Console().print(table)


def search(
    labels: LabelFiles = None,
    ghn: options.Ghn = options.DEFAULT_GHN,
    by: Annotated[
        str, typer.Option(help="accuracy, accuracy with noise, inference time or steps to learn.")
    ] = "accuracy",
    num_nets: Annotated[
        int, typer.Option(min=1, help="The first so many of the search split.")
    ] = 100_000,
    train: Annotated[
        int | None,
        typer.Option(min=1, help="Train what was found, and so many random ones, as labels were."),
    ] = None,
    data: options.DataSource = None,
    download: options.Download = False,
    device: options.Device = "auto",
) -> None:
    """Find the best of the 100,000 networks for search by a property predicted from embeddings.

    Fitted on all labels. Needs scikit-learn.
    """
    from ghn_fast._system.processes import choose_device
    from ghn_fast.evaluation import load_labels
    from ghn_fast.ghn.hub import from_pretrained
    from ghn_fast.nets import DeepNets1M
    from ghn_fast.properties import LARGER_IS_BETTER
    from ghn_fast.properties import search as find

    if by not in LARGER_IS_BETTER:
        raise UsageError(f"--by takes {', '.join(LARGER_IS_BETTER)}, not {by!r}")
    if train is not None and num_nets < 2:
        raise UsageError("--train compares with other networks: --num-nets takes 2 or more with it")
    place = choose_device(device)
    measured = load_labels(labels or ())
    nets = DeepNets1M("search", num_nets=num_nets)
    found = find(measured, from_pretrained(ghn), by, nets)
    rate = found.networks / found.seconds
    typer.echo(f"embedded {found.networks:,} networks, {rate:,.0f} a second")
    typer.echo(
        f"search:{found.index} has the best predicted {by}, {found.value:.4g}; the median is "
        f"{found.median:.4g}. ghn-fast nets sample --split search --index {found.index}"
    )
    if train is not None:
        _train(measured, found.index, num_nets, train, data, download, place)


def _train(
    labels: Labels,
    best: int,
    num_nets: int,
    count: int,
    data: str | None,
    download: bool,
    device: torch.device,
) -> None:
    """The network that was found and random ones, at the width and for the steps of the labels."""
    import random
    from statistics import fmean, stdev

    from ghn_fast._system.processes import ALONE
    from ghn_fast.cli.images import load_parts
    from ghn_fast.evaluation import top1
    from ghn_fast.evaluation.labels import train_at_width
    from ghn_fast.nets import sample_net_args

    others = [index for index in range(num_nets) if index != best]
    chosen = random.Random(0).sample(others, min(count, len(others)))
    train, held_out = load_parts(ALONE, data, ("train", "val"), 32, download)
    images = held_out.first(labels.num_images)
    reached = []
    for index in (best, *chosen):
        net_args = sample_net_args("search", 0, index)
        model, _ = train_at_width(net_args, train, labels.steps, labels.width, index, device)
        reached.append(top1(model, images))
        typer.echo(f"search:{index}: {reached[-1]:.1f} % after {labels.steps} steps")
    own, rest = reached[0], reached[1:]
    spread = f" ± {stdev(rest):.1f}" if len(rest) > 1 else ""
    typer.echo(
        f"found: {own:.1f} %; {len(rest)} random ones: {fmean(rest):.1f}{spread} %, "
        f"the best {max(rest):.1f} %"
    )
