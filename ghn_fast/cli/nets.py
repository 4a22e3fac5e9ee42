"""``ghn-fast nets``: the networks of DeepNets-1M and of the families that people use."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ghn_fast.graph import Graph
    from ghn_fast.nets import DeepNets1M
    from ghn_fast.nets.stats import NetsStats

app = typer.Typer(
    help="Sample, describe, export, measure and rank networks of DeepNets-1M; sample families.",
    no_args_is_help=True,
)

Split = Annotated[
    str,
    typer.Option(
        help="train, val, test, wide, deep, dense, bnfree, search or predefined; sample and stats "
        "also families/train, families/val and families/test, or one family of them: "
        "families/test/residual."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the networks; the evaluation splits are of seed 0.")]
Large = Annotated[bool, typer.Option("--large-images", help="For 224 x 224 images, 1000 classes.")]
NetsDir = Annotated[
    Path | None, typer.Option(help="Read published files in this folder instead of sampling.")
]
EVALUATION = ("val", "test", "wide", "deep", "dense", "bnfree")
_SPLITS_OF_LIST = (*EVALUATION, "predefined")


@app.command()
def sample(
    split: Split = "train",
    index: Annotated[
        int,
        typer.Option(
            min=0, help="Of the first network; sampled splits have more than were published."
        ),
    ] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many networks.")] = 1,
    seed: Seed = 0,
    large_images: Large = False,
    nets_dir: NetsDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with all arguments.")
    ] = False,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the graphs into this folder, as SVG.")
    ] = None,
) -> None:
    """Print some networks: their arguments, cells and sizes."""
    numbers = range(index, index + count)
    if _is_of_families(split, large_images, nets_dir):
        graphs = [_print_member(split, seed, number, as_json) for number in numbers]
    else:
        nets = _nets(split, seed, large_images, nets_dir, index + count)
        graphs = [_print_net(nets, number, as_json) for number in numbers]
    if draw is not None:
        from ghn_fast._system.files import write_text
        from ghn_fast.graph.draw import svg

        for number, graph in zip(numbers, graphs, strict=True):
            write_text(draw / f"{split.replace('/', '-')}-{number}.svg", svg(graph))


def _is_of_families(split: str, large_images: bool, nets_dir: Path | None) -> bool:
    from ghn_fast.nets.families import FAMILIES, SPLITS, family_split

    whole, family = family_split(split)
    if not split.startswith("families/"):
        return False
    if whole not in SPLITS:
        raise UsageError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if family is not None and family not in FAMILIES:
        raise UsageError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    if large_images or nets_dir is not None:
        raise UsageError(f"the networks of {split!r} are for 32 x 32 images and in no files")
    return True


def _print_net(nets: DeepNets1M, number: int, as_json: bool) -> Graph:
    graph = nets[number]
    if as_json:
        line = {"split": nets.split, "index": number, **_plain_arguments(graph)}
        typer.echo(json.dumps(line))
    else:
        _print_network(nets, number, graph)
    return graph


def _print_member(split: str, seed: int, number: int, as_json: bool) -> Graph:
    from rich.console import Console

    from ghn_fast.nets.families import family_split, sample_member

    whole, family = family_split(split)
    member = sample_member(whole, seed, number, family=family)
    sizes = {"parameters": member.parameters, "multiply_adds": member.multiply_adds}
    if as_json:
        line = {"split": split, "index": number, "family": member.family, **sizes}
        typer.echo(json.dumps({**line, "modules": str(member.model)}))
        return member.graph
    console = Console(highlight=False)
    console.print(_heading(split, number, member.graph, *sizes.values()))
    console.print(f"  {member.family}", markup=False)
    console.print("  " + str(member.model).replace("\n", "\n  "), markup=False)
    return member.graph


def _heading(split: str, number: int, graph: Graph, parameters: int, multiply_adds: int) -> str:
    from ghn_fast.nets.stats import longest_path

    return (
        f"[bold]{split}:{number}[/bold]  {graph.num_nodes} nodes, {len(graph.edges)} edges, "
        f"depth {longest_path(graph)}, {_short(parameters)} parameters, "
        f"{_short(multiply_adds)} multiply-adds"
    )


def _nets(
    split: str, seed: int, large_images: bool, nets_dir: Path | None, needed: int | None = None
) -> DeepNets1M:
    """The networks, as many of a sampled split as are needed."""
    from ghn_fast.nets import DeepNets1M

    nets = DeepNets1M(split, seed, large_images=large_images, nets_dir=nets_dir)
    if needed is None or needed <= len(nets):
        return nets
    if nets.is_sampled:
        return DeepNets1M(split, seed, num_nets=needed, large_images=large_images)
    raise UsageError(f"split {split!r} has {len(nets):,} networks, not {needed:,}")


def _plain_arguments(graph: Graph) -> dict[str, Any]:
    from ghn_fast.nets import Genotype, to_dict

    assert graph.net_args is not None
    genotype = graph.net_args["genotype"]
    plain = to_dict(genotype) if isinstance(genotype, Genotype) else genotype
    return {**graph.net_args, "genotype": plain}


def _sizes(nets: DeepNets1M, arguments: dict[str, Any]) -> tuple[int, int]:
    """Parameters, those that do not reach the output too, and multiply-adds."""
    from ghn_fast.nets.stats import parameters_and_multiply_adds

    return parameters_and_multiply_adds(arguments, nets.num_classes, nets.large_images)


def _print_network(nets: DeepNets1M, index: int, graph: Graph) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    arguments = _plain_arguments(graph)
    console.print(_heading(nets.split, index, graph, *_sizes(nets, arguments)))
    genotype = arguments.pop("genotype")
    console.print("  " + ", ".join(f"{name} {value}" for name, value in arguments.items()))
    if isinstance(genotype, str):
        console.print(f"  {genotype} of torchvision")
        return
    for cell in ("normal", "reduce"):
        steps = [
            f"{2 + i // 2} = {_term(*genotype[cell][i])} + {_term(*genotype[cell][i + 1])}"
            for i in range(0, len(genotype[cell]), 2)
        ]
        output = ", ".join(map(str, genotype[f"{cell}_concat"]))
        console.print(f"  {cell}: {'; '.join(steps)}; output {output}", markup=False)


def _term(operation: str, state: int) -> str:
    return f"{operation}({state})"


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


@app.command("list")
def list_networks(
    split: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated; by default those for evaluation and predefined."),
    ] = None,
    large_images: Large = False,
) -> None:
    """List what splits contain, a line for each network, and a digest of each split."""
    for name in split or _SPLITS_OF_LIST:
        nets = _nets(name, 0, large_images, None)
        for index in range(len(nets)):
            typer.echo(_line(nets, index))
        typer.echo(f"{name}: {len(nets):,} networks, SHA-256 {nets.digest()}")


def _line(nets: DeepNets1M, index: int) -> str:
    from ghn_fast.nets import Genotype

    graph = nets[index]
    assert graph.net_args is not None
    arguments, genotype = graph.net_args, graph.net_args["genotype"]
    parameters, _ = _sizes(nets, _plain_arguments(graph))
    sizes = f"{graph.num_nodes} nodes, {_short(parameters)} parameters"
    if not isinstance(genotype, Genotype):
        return f"{nets.split}:{index}  {sizes}: {genotype} of torchvision"
    cells = f"{arguments['n_cells']} cells of {len(genotype.normal) // 2} steps"
    operations = ", ".join(sorted(set(genotype.operations)))
    return f"{nets.split}:{index}  {sizes}: {cells}, width {arguments['C']}; {operations}"


# Statistics.


@app.command()
def stats(
    split: Split = "train",
    count: Annotated[
        int | None, typer.Option(min=1, help="The first so many; by default all, at most 1000.")
    ] = None,
    seed: Seed = 0,
    large_images: Large = False,
    nets_dir: NetsDir = None,
    bins: Annotated[int, typer.Option(min=2, help="Of the histograms.")] = 10,
) -> None:
    """Describe networks: sizes, depth, degrees, operations, parameters and FLOPs."""
    from rich.console import Console

    from ghn_fast.nets.stats import measure, measure_members

    if _is_of_families(split, large_images, nets_dir):
        measured, num_classes = measure_members(split, seed, count or 1000), 10
    else:
        nets = _nets(split, seed, large_images, nets_dir, count)
        measured = measure(nets, count or min(len(nets), 1000), os.cpu_count() or 1)
        num_classes = nets.num_classes
    console = Console(highlight=False)
    _print_summary(console, split, large_images, num_classes, measured)
    for name, values in _columns(measured).items():
        _print_histogram(console, name, values, bins)
    degrees = [(f"{degree}", int(n)) for degree, n in enumerate(measured.degrees) if n]
    _print_bars(console, "edges at a node", degrees)
    from ghn_fast.graph import NODE_TYPES

    types = zip(NODE_TYPES, measured.types.tolist(), strict=True)
    _print_bars(console, "types of nodes", sorted(types, key=lambda t: -t[1]))


def _columns(measured: NetsStats) -> dict[str, np.ndarray]:
    return {
        "nodes": measured.nodes,
        "edges": measured.edges,
        "depth": measured.depth,
        "parameters": measured.parameters,
        "multiply-adds": measured.multiply_adds,
    }


def _print_summary(
    console: Any, split: str, large_images: bool, num_classes: int, measured: NetsStats
) -> None:
    import numpy as np
    from rich.table import Table

    images = "224 x 224" if large_images else "32 x 32"
    table = Table(
        title=f"{len(measured.nodes):,} networks of split {split}, {images} images, "
        f"{num_classes} classes; FLOPs are twice the multiply-adds",
        title_justify="left",
    )
    for column in ("", "min", "5 %", "median", "mean", "95 %", "max"):
        table.add_column(column, justify="right" if column else "left")
    columns = _columns(measured)
    columns["edges per node"] = measured.edges / measured.nodes
    for name, values in columns.items():
        figures = [*np.quantile(values, (0, 0.05, 0.5)), values.mean()]
        figures += [*np.quantile(values, (0.95, 1))]
        table.add_row(name, *(_short(figure) for figure in figures))
    console.print(table)


def _print_histogram(console: Any, name: str, values: np.ndarray, bins: int) -> None:
    import numpy as np

    wide = values.max() > 50 * max(values.min(), 1)
    low, high = float(values.min()), float(values.max())
    spaced = np.geomspace(max(low, 1), high, bins + 1) if wide else np.linspace(low, high, bins + 1)
    counts, edges = np.histogram(values, spaced)
    bars = [
        (f"{_short(left)} to {_short(right)}", int(number))
        for left, right, number in zip(edges, edges[1:], counts, strict=False)
    ]
    _print_bars(console, name, bars)


def _print_bars(console: Any, title: str, bars: Sequence[tuple[str, int]]) -> None:
    """Bars with their labels, several of which may be the same: they are rounded."""
    from rich.bar import Bar
    from rich.table import Table

    console.print(f"\n[bold]{title}[/bold]")
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(width=40)
    numbers = [number for _, number in bars]
    largest, total = max(numbers), sum(numbers)
    for label, number in bars:
        share = f"{100 * number / total:.1f} %"
        table.add_row(label, share, Bar(max(largest, 1), 0, number))
    console.print(table)


# Export.


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
    split: Annotated[
        list[str], typer.Option(help="Which split; may be repeated, or eval for those of its file.")
    ],
    count: Annotated[
        int | None, typer.Option(min=1, help="The first so many; by default all.")
    ] = None,
    index_range: Annotated[
        str | None,
        typer.Option("--range", metavar="FIRST:END", help="These networks, numbered from 0."),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; by default as many as there are cores.")
    ] = None,
) -> None:
    """Write networks as published files; an interrupted export goes on where it stopped."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from ghn_fast.nets import export_nets

    splits = _export_ranges(split, count, index_range)
    columns = (TextColumn("networks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("export", total=None)
            paths = export_nets(
                out,
                splits,
                seed,
                workers or os.cpu_count() or 1,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    for path in paths:
        typer.echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _export_ranges(
    names: list[str], count: int | None, index_range: str | None
) -> dict[str, range]:
    from ghn_fast.nets.deepnets1m import SIZES

    if count is not None and index_range is not None:
        raise UsageError("give --count or --range, not both")
    given = None if count is None else range(count)
    if index_range is not None:
        first, _, end = index_range.partition(":")
        if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
            raise UsageError(f"--range must be FIRST:END, such as 0:1000, not {index_range!r}")
        given = range(int(first), int(end))
    splits = [part for name in names for part in (EVALUATION if name == "eval" else (name,))]
    return {name: given or range(SIZES.get(name, 0)) for name in splits}
