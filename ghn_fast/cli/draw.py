"""``ghn-fast draw``: the graph of a model as a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghn_fast.cli import options

if TYPE_CHECKING:
    from ghn_fast.graph import Graph


def draw(
    model: options.Model,
    out: Annotated[
        Path | None, typer.Option(help="Picture, .svg, .png or .pdf; by default <model>.svg.")
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Classes of the model; by default 1000, of a network of DeepNets-1M 10, or "
            "1000 with --large-images.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of a network of DeepNets-1M.")] = 0,
    large_images: Annotated[
        bool, typer.Option("--large-images", help="A network of DeepNets-1M for 224 x 224 images.")
    ] = False,
) -> None:
    """Draw the graph of a model: node types by colour and shape, from top to bottom."""
    graph = _graph(model, num_classes, seed, large_images)
    path = out if out is not None else Path(re.sub(r"[/:]", "-", model) + ".svg")
    graph.draw(path, title=f"{model}: {graph.num_nodes} nodes")
    typer.echo(f"wrote {path} ({graph.num_nodes} nodes, {len(graph.edges)} edges)")


def _graph(name: str, num_classes: int | None, seed: int, large_images: bool) -> Graph:
    from ghn_fast.cli.models import build_model, check_num_classes, network_of
    from ghn_fast.graph import Graph
    from ghn_fast.nets import DeepNets1M

    if (network := network_of(name)) is not None:
        split, index = network
        limit = None if split == "predefined" else index + 1
        return DeepNets1M(split, seed, limit, large_images, num_classes=num_classes)[index]
    check_num_classes(name, num_classes)
    return Graph.from_model(build_model(name, num_classes or 1000))
