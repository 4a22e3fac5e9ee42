"""The trained classifier of a file, as ``ghn-fast fit`` writes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.models import build_model, is_imported

if TYPE_CHECKING:
    from torch import nn

    from ghn_fast.train import Teacher


def load_teacher(text: str, classes: list[str], image_size: int) -> Teacher:
    """The teacher that ``FILE`` or ``NAME@FILE`` means.

    Args:
        text: a safetensors file, before which NAME says whose weights it has; what ``ghn-fast
            fit`` wrote says it itself. A file alone never decides what is imported.
        classes: of the images to train with, in the order of their labels.
        image_size: for files that do not say it.

    Raises:
        UsageError: there is no such file, it is of other classes, or not of that model.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    from ghn_fast.train import Teacher

    given, _, name_of_file = text.rpartition("@")
    file = Path(name_of_file).expanduser()
    try:
        with safe_open(file, "pt") as opened:
            said: dict[str, str] = opened.metadata() or {}
        its_classes = json.loads(said.get("classes", json.dumps(classes)))
        mean, std = (json.loads(said[key]) if key in said else None for key in ("mean", "std"))
        size = int(said.get("image_size", image_size))
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a teacher: {error}") from None
    if its_classes != classes:
        raise UsageError(f"{file} is of {_shown(its_classes)}, the images of {_shown(classes)}")
    model = _build(given or _own_name(file, said), len(classes), size, said)
    try:
        load_model(model, file)
    except RuntimeError as error:
        raise UsageError(f"{file} does not have the weights of that model: {error}") from None
    return Teacher(model, mean, std)


def _own_name(file: Path, said: dict[str, str]) -> str:
    name = said.get("model")
    if name is None:
        raise UsageError(f"{file} does not say of which model it is: give NAME@{file}")
    if is_imported(name):
        raise UsageError(
            f"{file} is of {name}, which would have to be imported: if you trust it, give "
            f"{name}@{file}"
        )
    return name


def _build(name: str, classes: int, size: int, said: dict[str, str]) -> nn.Module:
    from ghn_fast._system.batch_norm import track_statistics
    from ghn_fast.nets import adjust_net

    model = track_statistics(build_model(name, classes, size))
    return adjust_net(model) if said.get("small_stem") == "True" else model


def _shown(classes: list[str]) -> str:
    few = ", ".join(map(str, classes[:3]))
    return f"{len(classes)} classes ({few}{', ...' if len(classes) > 3 else ''})"
