"""``ghn-fast fit``: from labelled pictures to a classifier."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast._system.files import replace
from ghn_fast.cli import options
from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.images import NORMALISATIONS, normalisation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ghn_fast.data import ImageSource
    from ghn_fast.finetune import FinetuneConfig, History
    from ghn_fast.ghn import GHN
    from ghn_fast.head import HeadReport
    from ghn_fast.prediction import PredictionReport
    from ghn_fast.start import StartReport

LARGEST_SMALL_STEM = 64
"""Pixels up to which stems are fitted to small images by default."""
BEST, PREDICTED, RANDOM = "best", "predicted", "random"


def fit(
    model: options.Model,
    data: Annotated[
        str,
        typer.Option(
            help="Pictures: a folder with a folder for each class, with or without train, val and "
            "test folders around them; Parquet files; what datasets.save_to_disk wrote; or "
            "owner/name of a data set on the Hugging Face hub."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The trained model, as safetensors.")] = Path(
        "model.safetensors"
    ),
    ghn: options.Ghn = options.DEFAULT_GHN,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Height and width; by default what the GHN was trained with."),
    ] = None,
    small_images: Annotated[
        bool | None,
        typer.Option(
            help="Fit the model's stem to small images; by default up to 64 pixels, for a GHN of "
            "fewer than 1,000 classes."
        ),
    ] = None,
    normalise: Annotated[
        str,
        typer.Option(
            help="By whose mean and deviation: cifar10, imagenet, or auto, which is those of the "
            "GHN's own pictures; of a GHN that does not say them, cifar10 for fewer than 1,000 "
            "classes."
        ),
    ] = "auto",
    epochs: Annotated[
        int, typer.Option(min=0, help="Of training after the output layer is fitted; 0 for none.")
    ] = 0,
    lr: Annotated[float, typer.Option(help="Largest learning rate, of AdamW.")] = 0.001,
    batch_size: options.BatchSize = 64,
    refine: Annotated[
        bool | None,
        typer.Option(
            help="Refine what was predicted (ghn_fast.refine_), or not; by default whichever is "
            "better, as with --start best."
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="predicted, refined (which is predicted too), random, or best: whichever has the "
            "best features for these pictures, by what an output layer in closed form makes of "
            "them."
        ),
    ] = BEST,
    compare: Annotated[
        str | None, typer.Option(help="random: also train from random initialisation, to compare.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Of the initial weights, the noise of refining and the order of images.",
        ),
    ] = 0,
    device: options.Device = "auto",
    progress: Annotated[bool, typer.Option(help="Draw a progress bar.")] = True,
) -> None:
    """Make a classifier of pictures: predict, calibrate, fit the output layer, train if asked.

    Interrupted, the same command goes on after the last whole epoch, from a file that lies beside
    --out until all is done (its name ends in .unfinished).
    """
    from ghn_fast._system.processes import choose_device
    from ghn_fast.evaluation.results import ghn_digest, images_digest
    from ghn_fast.finetune import FinetuneConfig
    from ghn_fast.ghn.hub import from_pretrained
    from ghn_fast.start import UnusableError, starts_of

    _check_place(out)
    if compare not in (None, "random"):
        raise UsageError(f"--compare takes random, not {compare!r}")
    try:
        starts_of(start, refine)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if refine and start == RANDOM and compare is None:
        raise UsageError("--refine refines what is predicted, and with --start random nothing is")
    if normalise not in NORMALISATIONS:
        raise UsageError(f"--normalise takes {', '.join(NORMALISATIONS)}, not {normalise!r}")
    if not 0 < lr < float("inf"):
        raise UsageError(f"--lr takes more than 0, not {lr:g}")
    place = choose_device(device)
    network = from_pretrained(ghn)
    is_small = network.config.num_classes < 1000
    size = image_size or network.config.image_size or (32 if is_small else 224)
    by, mean, std = normalisation(normalise, network.config)
    task = _Task.load(data, size, by, mean, std)
    has_small_stem = small_images
    if has_small_stem is None:
        has_small_stem = is_small and size <= LARGEST_SMALL_STEM
    job = _Job(model, network, ghn, task, has_small_stem, refine, batch_size, seed)
    if small_images and not job.fits_stem():
        raise UsageError(f"{model} has no stem that --small-images could fit")
    job.check(trains=epochs > 0)
    task.describe()
    predicted = PREDICTED if start in (BEST, RANDOM) else start
    starts = (start,) if compare is None else (predicted, RANDOM)
    fitted: dict[str, _Fitted] = {}
    parts = (task.train, task.validation, task.test)
    of = f"GHN {ghn_digest(network)}, pictures {images_digest(*parts)}"
    for wanted in starts:
        try:
            begun, each = job.begin(wanted, out, place)
        except UnusableError:  # which has been said
            if len(starts) == 1:
                raise
            continue
        choice = f"best of {'/'.join(starts_of(wanted, refine))}"
        name = f"{model}, {each}, {choice}, {of}, size {size}, small stem {has_small_stem}"
        config = FinetuneConfig(epochs, lr, batch_size, seed, name)
        history = _train(begun, each, task, config, _state_file(out, each), progress)
        fitted[each] = _Fitted(begun, history, each)
    kept = fitted[_kept(fitted)]
    job.write(kept, out)
    if compare is not None or epochs > 0:
        _show_curves({each: one.history for each, one in fitted.items()}, job, out)
    typer.echo(f"wrote {out}, {kept}; how it is loaded and what it takes is in its metadata")
    for each in fitted:
        _state_file(out, each).unlink(missing_ok=True)


def _check_place(out: Path) -> None:
    """That a model can be written there, and its curves beside it."""
    from ghn_fast.cli.models import check_ending

    check_ending(out)
    if out.is_dir() or out.suffix == ".png":
        raise UsageError(f"--out is the file of the model, {out / 'model.safetensors'} for example")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out} is in a folder that does not exist")


def _kept(fitted: dict[str, _Fitted]) -> str:
    """The start that ends with the best validation accuracy, the first of several."""
    histories = {start: one.history for start, one in fitted.items()}
    return max(histories, key=lambda start: histories[start].validation[histories[start].best])


def _state_file(out: Path, start: str) -> Path:
    return out.with_name(f"{out.stem}-{start}.unfinished")


@dataclass
class _Task:
    """Labelled pictures in three parts."""

    train: ImageSource
    validation: ImageSource
    test: ImageSource
    classes: list[str]
    size: int
    normalisation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(
        cls,
        data: str,
        size: int,
        normalisation: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> _Task:
        from ghn_fast.data import load_class_names, load_images, normalised_by
        from ghn_fast.data.load import is_cifar10

        if is_cifar10(data) and size != 32:
            raise UsageError(f"CIFAR-10's images have 32 pixels, not --image-size {size}")
        train, validation, test = (
            normalised_by(load_images(data, part, size), mean, std)
            for part in ("train", "val", "test")
        )
        names = load_class_names(data)
        return cls(train, validation, test, names, size, normalisation, mean, std)

    def describe(self) -> None:
        mean, std = (", ".join(f"{v:.3f}" for v in values) for values in (self.mean, self.std))
        typer.echo(
            f"pictures: {len(self.train):,} to train with, {len(self.validation):,} to choose by, "
            f"{len(self.test):,} to test with, of {self.train.num_classes} classes, "
            f"{self.size} x {self.size}"
        )
        typer.echo(f"normalised as {self.normalisation}: mean {mean}, deviation {std}")
        counts = self.train.labels.bincount(minlength=len(self.classes)).tolist()
        absent = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            typer.echo(f"never predicted, without a picture: {', '.join(absent[:5])}{more}")


@dataclass
class _Fitted:
    model: nn.Module
    history: History
    start: str

    def __str__(self) -> str:
        return f"the {self.start} start {_after(self.history)}"


@dataclass
class _Job:
    """What is made of which pictures."""

    name: str
    ghn: GHN
    ghn_name: str
    task: _Task
    has_small_stem: bool
    refine: bool | None
    batch_size: int
    seed: int

    def build_plain(self) -> nn.Module:
        """Random, as its library makes it for the classes and the size of the pictures."""
        import torch

        from ghn_fast.cli.models import build_model

        torch.manual_seed(self.seed)
        return build_model(self.name, self.task.train.num_classes, self.task.size)

    def build(self) -> nn.Module:
        """The same, with a stem for small images where that is wanted."""
        from ghn_fast.nets import adjust_net

        model = self.build_plain()
        if self.fits_stem():
            adjust_net(model)
        return model

    def fits_stem(self) -> bool:
        from ghn_fast.cli.models import takes_any_size

        return self.has_small_stem and ":" not in self.name and takes_any_size(self.name)

    def check(self, trains: bool) -> None:
        """Refuses what cannot be built, or cannot take pictures of that size, before all else."""
        import torch

        from ghn_fast._system.batches import device_of, logits_of

        model, size = self.build(), self.task.size
        if model is self.build():
            raise UsageError(
                f"{self.name} is the same model each time, and starts need a new one: name a "
                "function or a class that makes it"
            )
        try:
            with torch.no_grad():
                count = min(self.batch_size, 2)
                images = torch.zeros(count, 3, size, size, device=device_of(model))
                output = model.train(trains)(images)
        except (AssertionError, RuntimeError, ValueError) as error:
            if wanted := re.search(r"to have (\d+) channels, but got 3 channels", str(error)):
                raise UsageError(
                    f"pictures are given as RGB, also grey ones: the first layer of {self.name} "
                    f"has to take 3 channels, not {wanted[1]}"
                ) from error
            if count == 1 and "more than 1 value per channel" in str(error):
                raise UsageError(
                    f"batch norm of {self.name} cannot be trained with one picture at a time: "
                    "--batch-size 2 or more"
                ) from error
            raise UsageError(
                f"{self.name} cannot take pictures of {size} pixels ({error}); pass another "
                "--image-size if that is what it lacks"
            ) from error
        outputs, classes = logits_of(output).shape[-1], self.task.train.num_classes
        if outputs > classes:
            typer.echo(
                f"{self.name} has {outputs} outputs for {classes} classes; the others are never "
                "predicted (a parameter num_classes would be told how many are wanted)"
            )

    def begin(self, start: str, out: Path, device: torch.device) -> tuple[nn.Module, str]:
        """The model with a start, and which that is; what was interrupted has got its own."""
        import torch

        from ghn_fast._system.device import place
        from ghn_fast.start import start_, starts_of

        model = self.build()
        for each in starts_of(start, self.refine):
            if _state_file(out, each).exists():
                place(model, device)
                return model, each
        with warnings.catch_warnings():
            # By --normalise, and said.
            warnings.filterwarnings("ignore", "the pictures are normalised by")
            report = start_(
                model,
                self.task.train,
                self.ghn,
                start=start,
                refine=self.refine,
                generator=torch.Generator().manual_seed(self.seed),
                device=device,
                batch_size=self.batch_size,
                on_report=self._tell,
            )
        self._tell_choice(report)
        return model, report.start

    def _tell_choice(self, report: StartReport) -> None:
        best, heads = report.start, report.heads
        others = [head.accuracy for start, head in heads.items() if start != best]
        if best == RANDOM and others:
            typer.echo(
                f"random initialisation is ahead, {heads[best].accuracy:.1f} against "
                f"{max(others):.1f} % of {heads[best].held_out:,} held-out "
                "pictures: prediction does not help here, and the random start is kept"
            )
        if report.head is not heads[best]:
            self._tell(best, report.head)

    def _tell(self, start: str, report: PredictionReport | HeadReport | ValueError) -> None:
        from ghn_fast.head import HeadReport

        if isinstance(report, ValueError):
            typer.echo(f"{start} cannot be used: {report}")
        elif isinstance(report, HeadReport):
            typer.echo(f"{start}: output layer {report}")
        else:
            typer.echo(
                f"{start}: {report.num_predicted:,} parameters by {self.ghn_name} in "
                f"{report.seconds:.2f} s"
            )

    def write(self, fitted: _Fitted, out: Path) -> None:
        from ghn_fast._version import __version__
        from ghn_fast.cli.models import write_model
        from ghn_fast.data.encoded import crop_share

        task, best = self.task, fitted.history.best
        metadata = {
            "model": self.name,
            "ghn": self.ghn_name,
            "ghn_fast": __version__,
            "classes": json.dumps(task.classes),
            "image_size": str(task.size),
            "small_stem": str(self.fits_stem()),
            "mean": json.dumps(task.mean),
            "std": json.dumps(task.std),
            "crop": f"{crop_share(task.size):g}",
            "pixels": "the central square of `crop` of the shorter side, scaled to `image_size` "
            "(bilinear, antialiased, as by Pillow), RGB from 0 to 1, less `mean`, divided by `std`",
            "start": fitted.start,
            "epochs": str(best),
            "top1": f"{fitted.history.test[best]:.1f}",
            "load": self._loading(fitted.model),
        }
        write_model(fitted.model.cpu(), out, metadata)

    def _loading(self, model: nn.Module) -> str:
        """Lines of Python that load the file ``path``, without ghn_fast."""
        from ghn_fast.cli.models import recipe

        function, arguments = recipe(self.name, self.task.train.num_classes, self.task.size)
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return "\n".join(
            [
                "import torch",
                f"import {function.rpartition('.')[0]}",
                f"model = {function}({given})",
                *_replaced_layers(self.build_plain(), model),
                "import safetensors.torch",
                "state = model.state_dict()",
                "state.update(safetensors.torch.load_file(path))",
                "model.load_state_dict(state)",
                "model.eval()",
            ]
        )


def _replaced_layers(plain: nn.Module, model: nn.Module) -> list[str]:
    """Lines that give a model of a library the layers of one whose stem was fitted."""
    own = {name: repr(layer) for name, layer in plain.named_modules()}
    return [
        _replaced_layer(name, layer)
        for name, layer in model.named_modules()
        if not any(layer.children()) and own.get(name) != repr(layer)
    ]


def _replaced_layer(name: str, layer: nn.Module) -> str:
    from torch import nn

    pools = (nn.MaxPool2d, nn.AvgPool2d)  # whose repr leaves settings out
    if type(layer).__module__.startswith("torch.nn.") and not isinstance(layer, pools):
        return f"model.set_submodule({name!r}, torch.nn.{layer!r})"
    settings = {setting: vars(layer)[setting] for setting in ("stride", "kernel_size")}
    return f"vars(model.get_submodule({name!r})).update({settings})"


def _train(
    model: nn.Module,
    start: str,
    task: _Task,
    config: FinetuneConfig,
    state_file: Path,
    progress: bool,
) -> History:
    """From the first parameters or from where an interrupted run was."""
    from rich.progress import Progress

    from ghn_fast.finetune import DivergedError, StateError, finetune_
    from ghn_fast.head import chance

    by_chance = chance(task.test.labels)

    def tell(epoch: int, history: History) -> None:
        loss = f"loss {history.loss[-1]:.3f}, " if epoch else ""
        bar.console.print(
            f"{start}, epoch {epoch}: {loss}{history.test[-1]:.1f} % of {len(task.test):,} "
            f"test pictures (chance is {by_chance:.1f} %)",
            highlight=False,
            soft_wrap=True,
        )

    def tell_resumed(epoch: int) -> None:
        bar.console.print(
            f"{start}: going on from {state_file}, after epoch {epoch}",
            highlight=False,
            soft_wrap=True,
        )

    with Progress(disable=not progress or config.epochs == 0) as bar:
        row = bar.add_task(start, total=None)
        try:
            return finetune_(
                model,
                task.train,
                task.validation,
                task.test,
                config,
                state_file=state_file,
                on_step=lambda done, whole: bar.update(row, completed=done, total=whole),
                on_epoch=tell,
                on_resume=tell_resumed,
            )
        except StateError as error:
            raise UsageError(f"{error} (--out)") from error
        except KeyboardInterrupt:
            if state_file.exists():
                bar.console.print("interrupted: the same command goes on after the last epoch")
            raise
        except DivergedError as error:
            bar.console.print(f"{start}: {error} (--lr); its best epoch is kept", highlight=False)
            return error.history


def _show_curves(histories: dict[str, History], job: _Job, out: Path) -> None:
    _tell_result(histories, len(job.task.validation))
    picture = out.with_suffix(".png")
    _plot(histories, f"{job.name}, {job.task.size} pixels", picture)
    typer.echo(f"wrote {picture}")


def _tell_result(histories: dict[str, History], chosen_by: int) -> None:
    final = {start: history.test[history.best] for start, history in histories.items()}
    for start, history in histories.items():
        typer.echo(
            f"{start}: {final[start]:.1f} % {_after(history)}, "
            f"{history.validation[history.best]:.1f} % of {chosen_by:,} pictures to choose by"
        )
    others = [accuracy for start, accuracy in final.items() if start != RANDOM]
    if others and final.get(RANDOM, 0.0) > max(others):
        typer.echo("random initialisation ends ahead: prediction does not help here")


def _after(history: History) -> str:
    epochs = len(history.validation) - 1
    return f"after epoch {history.best} of {epochs}" if epochs else "without training"


def _plot(histories: dict[str, History], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    for start, history in histories.items():
        axes.plot(range(len(history.test)), history.test, marker="o", label=start)
    axes.set(xlabel="epoch", ylabel="top-1 on test pictures, %", title=title)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    replace(path, lambda aside: figure.savefig(aside, format="png", dpi=120))
