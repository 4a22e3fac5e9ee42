"""``ghn-fast predict``: a model's parameters, and what they are worth."""

from __future__ import annotations

import copy
import time
from collections import Counter
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Annotated

import typer

from ghn_fast._system.files import write_text
from ghn_fast.cli import options
from ghn_fast.cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghn_fast.card import Accuracy
    from ghn_fast.data import Images
    from ghn_fast.graph import Graph
    from ghn_fast.prediction import PredictionReport

_PAGES = (".html", ".htm")
_NAMED = 3
"""Parameters that are kept for the same reason whose names are printed."""
LIKELY_BY_CHANCE = 2.0
"""Standard errors above chance up to which an accuracy is taken for guessing."""
OTHER_PICTURES = "ghn-fast fit MODEL --data FOLDER takes RGB pictures of any size"


def predict(
    model: options.Model,
    ghn: options.Ghn = options.DEFAULT_GHN,
    num_classes: Annotated[
        int | None,
        typer.Option(min=1, help="Classes of the model; by default those the GHN predicts."),
    ] = None,
    small_images: Annotated[
        bool | None,
        typer.Option(
            help="Fit the model's stem to 32x32 images; by default for a GHN of fewer than 1,000 "
            "classes."
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Shape of one example, such as 3x64x64, where it cannot be worked out from the "
            "model.",
        ),
    ] = None,
    input_ids: Annotated[
        int | None, typer.Option(min=1, help="Call the model with so many token ids.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the model's state dict here, as safetensors.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="Write a page here (HTML) that shows the graph, the first layer, the spread of "
            "activations and the accuracy."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep these parameters as they are: a name, a module or a pattern such as "
            "'layer4.*'; may be given several times."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Predict only these, in the same form.")
    ] = None,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill", help="The model is not initialised: give values to what is not decoded too."
        ),
    ] = False,
    data: options.Data = None,
    download: options.Download = False,
    images: options.Images = 1000,
    batch_size: options.BatchSize = 64,
) -> None:
    """Predict a model's parameters; tell what was decoded, how fast, and how good it is."""
    from ghn_fast.cli.inputs import advice_by_options, make_inputs
    from ghn_fast.cli.models import (
        check_ending,
        check_num_classes,
        model_builder,
        network_of,
        takes_any_size,
        write_model,
    )
    from ghn_fast.ghn.hub import from_pretrained
    from ghn_fast.nets import adjust_net
    from ghn_fast.prediction import predict as predict_parameters

    check_num_classes(model, num_classes)
    if out is not None:
        check_ending(out)
    if card is not None and card.suffix.lower() not in _PAGES:
        page = card.with_suffix(".html").name
        raise UsageError(f"--card {card}: the file is HTML: call it {page}")
    start = time.perf_counter()
    network = from_pretrained(ghn)
    loaded = time.perf_counter() - start
    classes = network.config.num_classes if num_classes is None else num_classes
    small = network.config.num_classes < 1000 if small_images is None else small_images

    is_measured = network.config.num_classes == 10 and small
    if is_measured and data is not None and not download:
        _check_folder(data)
    size = 224 if network_of(model) is not None and not small else None
    build = model_builder(model, classes, size)  # imports what it needs
    start = time.perf_counter()
    target = build()
    built = time.perf_counter() - start
    if small and ":" not in model and takes_any_size(model):
        target = adjust_net(target)
    inputs = make_inputs(target, input_shape, input_ids)
    random = None if card is None else _random_start(target, fill)
    with advice_by_options():
        _, report = predict_parameters(
            *(target, network, inputs),
            return_report=True,
            keep=keep or (),
            only=only or None,
            fill=fill,
        )
    report.stages["load"] = loaded
    _print_report(model, ghn, report, built)
    if out is not None:
        write_model(target, out, {"model": model, "ghn": ghn})
        typer.echo(f"wrote {out}")
    measured = None
    if is_measured:
        is_whole = not keep and not only
        measured = _measure(target, data, download, images, batch_size, is_whole)
    else:
        typer.echo(
            "accuracy: not measured, as CIFAR-10 is for GHNs of 10 classes and models for small "
            f"images; {OTHER_PICTURES}"
        )
    if card is not None and random is not None:
        graph = network.graph_of(target, example_inputs=inputs)
        _write_card(card, model, random, target, graph, report, inputs, measured)


def _random_start(model: nn.Module, fill: bool) -> nn.Module:
    """A copy of a model that is about to be predicted; initialised if the model is not."""
    from ghn_fast.ghn.place.materialise import materialised

    start = copy.deepcopy(model)
    if fill:
        with materialised(start):
            for module in start.modules():
                if isinstance(reset := getattr(module, "reset_parameters", None), MethodType):
                    reset()
    return start


def _write_card(
    path: Path,
    name: str,
    random: nn.Module,
    predicted: nn.Module,
    graph: Graph,
    report: PredictionReport,
    inputs: dict[str, Tensor] | tuple[Tensor, ...] | None,
    measured: tuple[Tensor, Accuracy] | None,
) -> None:
    """Both models are shown on the pictures that were measured with, or on noise."""
    from ghn_fast.card import card, noise_for

    seen, accuracy = measured or (noise_for(random, inputs), None)
    page = card(name, random, predicted, graph, report, seen, accuracy)
    try:
        write_text(path, page)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error}); pass another file as --card") from None
    typer.echo(f"wrote {path}")


def _print_report(model: str, ghn: str, report: PredictionReport, built: float) -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{model} by {ghn}", title_justify="left")
    for column in ("rule", "tensors", "parameters"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    tensors, sizes = Counter[str](), Counter[str]()
    for name, shape in report.predicted.items():
        tensors[report.rules[name]] += 1
        sizes[report.rules[name]] += torch.Size(shape).numel()
    for rule, count in tensors.most_common():
        table.add_row(rule, f"{count:,}", f"{sizes[rule]:,}")
    table.add_section()
    table.add_row("decoded", f"{len(report.predicted):,}", f"{report.num_predicted:,}")
    if report.unpredicted:
        rest = report.num_parameters - report.num_predicted
        table.add_row("not decoded", f"{len(report.unpredicted):,}", f"{rest:,}")
    console.print(table)
    for reason in dict.fromkeys(report.unpredicted.values()):
        names = [name for name, why in report.unpredicted.items() if why == reason]
        others = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        listed = ", ".join(names[:_NAMED]) + others
        console.print(f"{listed}: {reason}", markup=False, highlight=False, soft_wrap=True)
    stages = ", ".join(
        f"{stage} {spent:.3f} s" for stage, spent in report.stages.items() if stage != "load"
    )
    console.print(
        f"predicted in {report.seconds:.3f} s ({stages}); loading the GHN took "
        f"{report.stages['load']:.3f} s",
        highlight=False,
    )
    console.print(f"random initialisation took {built:.3f} s", highlight=False)


def _check_folder(data: Path) -> None:
    """That CIFAR-10 is there, before anything is predicted that would then not be measured."""
    from ghn_fast.data import find_cifar10

    if find_cifar10(data) is None:
        raise UsageError(
            f"--data {data} is no folder of CIFAR-10: pass another, or --download to get it there"
        )


def _measure(
    model: nn.Module,
    data: Path | None,
    download: bool,
    num_images: int,
    batch_size: int,
    is_whole: bool,
) -> tuple[Tensor, Accuracy] | None:
    """A batch of CIFAR-10 and the accuracy on all of it; None, and why, where there is none."""
    from ghn_fast.evaluation import batches_in_order

    test = _test_images(model, data, download, num_images)
    if test is None:
        return None
    accuracy = _print_accuracy(model, test, batch_size, is_whole)
    return next(batches_in_order(test, batch_size))[0], accuracy


def _test_images(
    model: nn.Module, data: Path | None, download: bool, num_images: int
) -> Images | None:
    """Of CIFAR-10; None, and why, where the model's accuracy cannot be measured."""
    from ghn_fast.data import find_cifar10, load_cifar10
    from ghn_fast.evaluation import batches_in_order

    if data is None and not download and find_cifar10() is None:
        typer.echo("accuracy: not measured, no CIFAR-10 found; pass --data FOLDER or --download")
        return None
    test = load_cifar10(data, "test", download).first(num_images)
    try:
        classes = _class_count(model, next(batches_in_order(test.first(2)))[0])
    except Exception as error:  # of a user's code, which may be for other inputs
        typer.echo(
            f"accuracy: not measured, the model does not classify RGB images of 32 pixels "
            f"({error}); {OTHER_PICTURES}"
        )
        return None
    if classes == test.num_classes:
        return test
    typer.echo(
        f"accuracy: not measured, the model has {classes} classes and CIFAR-10 has "
        f"{test.num_classes}"
    )
    return None


def _print_accuracy(
    model: nn.Module, test: Images, batch_size: int, is_whole: bool = True
) -> Accuracy:
    """Of a model that was predicted as a whole, or in the part that was asked for."""
    from ghn_fast.card import Accuracy
    from ghn_fast.evaluation import top1

    accuracy = top1(model, test, batch_size)
    typer.echo(
        f"top-1 on {len(test):,} CIFAR-10 test images, batch statistics of "
        f"{min(batch_size, len(test))}: "
        f"{accuracy:.1f} % (chance is 10 %)"
    )
    guesses = accuracy <= 10 + LIKELY_BY_CHANCE * 30 / len(test) ** 0.5
    if guesses and is_whole:
        typer.echo(
            "this is what guessing gives: the prediction does not help this model; ghn-fast fit "
            "compares it with the random start, and keeps the better"
        )
    elif guesses:
        typer.echo("this is what guessing gives, by a model that was predicted in part")
    return Accuracy(accuracy, len(test))


def _class_count(model: nn.Module, images: Tensor) -> int:
    """By what it returns, as only that tells it of any model."""
    import torch

    from ghn_fast._system.batches import logits_of, run

    with torch.no_grad():
        return int(logits_of(run(model.eval(), images)).shape[-1])
