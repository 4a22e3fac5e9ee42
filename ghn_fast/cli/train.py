"""``ghn-fast train``: a GHN from generated networks and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.cli import options

if TYPE_CHECKING:
    from ghn_fast.train import TrainConfig, Trainer


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run in it goes on.")],
    data: options.DataSource = None,
    download: options.Download = False,
    config: Annotated[
        Path | None, typer.Option(help="A config.json, as saved with a run, to start from.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A named configuration to start from: default, ghn2-paper, ghn3-paper."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N; auto is a GPU if there is one.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="End with a checkpoint after this time; by default 90, with the papers' presets "
            "never."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="End after so many steps, or after --max-minutes if that is sooner."),
    ] = None,
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
    """Train a GHN; in a folder with an unfinished run, go on where it stopped.

    For several processes: torchrun --nproc-per-node N -m ghn_fast train ...
    """
    from ghn_fast.cli.images import load_parts
    from ghn_fast.cli.teacher import load_teacher
    from ghn_fast.data import load_class_names
    from ghn_fast.train import Trainer, choose_device, process_group
    from ghn_fast.train.denormals import flush_denormals
    from ghn_fast.train.resume import EXPORT_FILE
    from ghn_fast.train.schedule import LONGEST_WARMUP

    flush_denormals()
    given: dict[str, Any] = {
        "max_minutes": max_minutes,
        "steps": steps,
        "seed": seed,
        "data": data,
        "device": device,
    }
    given = {name: value for name, value in given.items() if value is not None}
    settings = _settings(out, config, preset, {**dict(map(_override, overrides or [])), **given})
    lowered = int(LONGEST_WARMUP * (settings.steps or 0))
    if settings.steps is not None and settings.warmup_steps > lowered:
        typer.echo(
            f"warm-up: {lowered} steps, a tenth of the run, instead of {settings.warmup_steps}"
        )
    if settings.steps is None:
        typer.echo(f"warm-up: {settings.warmup_steps} steps, but at most a tenth of the run")
    with process_group(choose_device(settings.device)) as processes:
        parts, size = ("train", "val"), settings.image_size
        images, validation = load_parts(processes, settings.data, parts, size, download)
        teacher = None
        if settings.teacher is not None:
            teacher = load_teacher(settings.teacher, load_class_names(settings.data), size)
        trainer = Trainer(settings, out, images, validation, teacher)
        if trainer.step > 0 and processes.is_first:
            typer.echo(_found(trainer))
        trainer.fit(show_progress=progress)
        number = None if trainer.finished else trainer.signal
        if processes.is_first:
            done = f"step {trainer.step}, {trainer.minutes:.1f} minutes: {out / EXPORT_FILE}"
            typer.echo(done if number is None else _interrupted(trainer))
    if number is not None:
        raise typer.Exit(128 + number)


def _found(trainer: Trainer) -> str:
    """Of a run that has begun."""
    from ghn_fast.train.resume import EXPORT_FILE

    if not trainer.finished:
        return f"going on at step {trainer.step} after {trainer.minutes:.1f} minutes"
    return (
        "this run is finished already; to train on from it, begin another in another folder with "
        f"--set init={trainer.folder / EXPORT_FILE}"
    )


def _interrupted(trainer: Trainer) -> str:
    config = trainer.config
    end = f"{config.max_minutes:g} minutes" if config.steps is None else f"step {config.steps}"
    return (
        f"interrupted at step {trainer.step} after {trainer.minutes:.1f} minutes, before {end}; "
        "the same command goes on from here"
    )


def plot(
    run: Annotated[Path, typer.Argument(help="Folder of a run, with its log.jsonl.")],
    out: Annotated[Path | None, typer.Option(help="The PNG; by default curves.png in it.")] = None,
) -> None:
    """Draw the curves of a training run again, from its log."""
    from ghn_fast.train import plot_run

    typer.echo(plot_run(run, out))


def _settings(
    out: Path, config: Path | None, preset: str | None, changes: dict[str, Any]
) -> TrainConfig:
    """What ``config``, ``preset`` or the run's own folder has, with fields changed."""
    from ghn_fast.train import TrainConfig

    if config is not None and preset is not None:
        raise typer.BadParameter("give --config or --preset, not both")
    saved = config if config is not None else out / "config.json"
    if preset is not None:
        return TrainConfig.preset(preset, **changes)
    if config is not None or saved.exists():
        return TrainConfig.load(saved, **changes)
    return TrainConfig.from_dict(changes)


def _override(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"--set takes FIELD=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
