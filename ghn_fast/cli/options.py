"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_GHN = "ghn2-cifar10"
"""That of :func:`ghn_fast.ghn.hub.resolve`, which --help does not wait for."""
Model = Annotated[
    str,
    typer.Argument(
        help="A torchvision model (resnet50), timm/<name>, package.module:callable, or a network "
        "of DeepNets-1M (val:3)."
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N; auto is a GPU if there is one.")
]
Ghn = Annotated[str, typer.Option(help="Which GHN: a name, a file, or a Hugging Face repository.")]
Images = Annotated[int, typer.Option(min=1, help="How many test images to classify.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
Data = Annotated[
    Path | None,
    typer.Option(help="CIFAR-10 folder; by default it is looked for in the usual places."),
]
DataSource = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Images: a folder of CIFAR-10; a folder with a folder of pictures for each class, "
        "with or without train, val and test folders around them; Parquet files; what "
        "datasets.save_to_disk wrote; or owner/name of a data set on the Hugging Face hub. By "
        "default CIFAR-10 is looked for in the usual places.",
    ),
]
Download = Annotated[
    bool, typer.Option("--download", help="Download CIFAR-10 (170 MB) where none is found.")
]
