"""``ghn-fast train``: a GHN from generated networks and images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.cli import options

if TYPE_CHECKING:
    from ghn_fast.train import TrainConfig


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run in it goes on.")],
    data: options.Data = None,
    download: options.Download = False,
    config: Annotated[
        Path | None, typer.Option(help="A config.json, as saved with a run, to start from.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="End with a checkpoint after this time.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="End after so many steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, networks and images.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other field of ghn_fast.train.TrainConfig, value in JSON; may be repeated.",
        ),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Draw a progress bar.")] = True,
) -> None:
    """Train a GHN; in a folder with an unfinished run, go on where it stopped."""
    from ghn_fast.data import load_cifar10
    from ghn_fast.train import Trainer

    settings = _settings(out, config, overrides or [])
    given: dict[str, Any] = {"max_minutes": max_minutes, "steps": steps, "seed": seed}
    settings = replace(settings, **{name: v for name, v in given.items() if v is not None})
    images = [load_cifar10(data, split, download) for split in ("train", "val")]
    trainer = Trainer(settings, out, *images)
    if trainer.step > 0:
        typer.echo(f"going on at step {trainer.step} after {trainer.minutes:.1f} minutes")
    trainer.fit(show_progress=progress)
    typer.echo(f"step {trainer.step}, {trainer.minutes:.1f} minutes: {out / 'ghn.safetensors'}")


def _settings(out: Path, config: Path | None, overrides: list[str]) -> TrainConfig:
    """What was saved in the run's folder or in ``config``, with fields overridden."""
    from ghn_fast.train import TrainConfig

    saved = config if config is not None else out / "config.json"
    settings = TrainConfig()
    if config is not None or saved.exists():
        settings = TrainConfig.load(saved)
    return TrainConfig.from_dict({**settings.to_dict(), **dict(map(_override, overrides))})


def _override(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"--set takes FIELD=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
