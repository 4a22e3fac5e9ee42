"""``ghn-fast nets measure``: what has to be measured to know it of a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ghn_fast.cli import options

if TYPE_CHECKING:
    from ghn_fast.data import Images
    from ghn_fast.evaluation import NetworkLabels


def measure(
    out: Annotated[
        Path, typer.Option(help="JSON lines, one a network; what is there is not measured again.")
    ],
    ghn: options.Ghn = "ghn2-cifar10",
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
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:N; auto is a GPU if there is one.")
    ] = "auto",
) -> None:
    """Measure networks: accuracy after SGD, clean and with noise, time, and what costs nothing.

    In several processes, which may share a GPU, where networks of this size are mostly launches:
    torchrun --nproc-per-node 16 -m ghn_fast nets measure --out labels.jsonl --minutes 1
    """
    from ghn_fast._system.processes import choose_device, process_group
    from ghn_fast.checkpoint import from_pretrained
    from ghn_fast.cli.images import load_parts
    from ghn_fast.data import EncodedImages
    from ghn_fast.evaluation import measure_labels

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
