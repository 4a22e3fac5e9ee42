"""Models by name, torchvision's, timm's, DeepNets-1M's or anything imported, and their files."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ghn_fast._system.files import replace
from ghn_fast.cli.errors import UsageError


def build_model(name: str, num_classes: int, image_size: int | None = None) -> nn.Module:
    """A randomly initialised model.

    Args:
        name: a torchvision classifier (``resnet50``), ``timm/<name>``, a network of DeepNets-1M
            (``val:3``), or ``package.module:callable``.
        num_classes: of the last where it takes it by that name.
        image_size: of those whose tables of positions are made for one size, and of the last as
            above; None for their own.

    Raises:
        UsageError: nothing has that name, with the nearest suggested, or it cannot be made for
            that size.
    """
    return model_builder(name, num_classes, image_size)()


def model_builder(
    name: str, num_classes: int, image_size: int | None = None
) -> Callable[[], nn.Module]:
    """:func:`build_model` to be called later, with all imported and looked up that it needs.

    What it takes then is the initialisation's time alone.
    """
    function, options = recipe(name, num_classes, image_size)
    if is_imported(name):
        return partial(_imported_model, name, options)
    return partial(_known_model, name, function, options, image_size)


def _known_model(
    name: str, function: str, options: dict[str, Any], image_size: int | None
) -> nn.Module:
    try:
        return _called(function, options)
    except (AssertionError, TypeError, ValueError) as error:
        raise UsageError(
            f"{name} cannot be made for images of {image_size} pixels: {error}"
        ) from error


def recipe(
    name: str, num_classes: int, image_size: int | None = None
) -> tuple[str, dict[str, Any]]:
    """What makes a model: the function's name and its arguments.

    Raises:
        UsageError: nothing has that name.
    """
    if (network := network_of(name)) is not None:
        return "ghn_fast.nets.build_net", _network_options(*network, num_classes, image_size)
    if is_imported(name):
        return name.replace(":", "."), _imported_options(name, num_classes, image_size)
    if name.startswith("timm/"):
        return "timm.create_model", _timm_options(name[5:], num_classes, image_size)
    return "torchvision.models.get_model", _torchvision_options(name, num_classes, image_size)


def is_imported(name: str) -> bool:
    """Whether it is ``package.module:callable``."""
    return ":" in name and not name.startswith("timm/") and network_of(name) is None


def check_num_classes(name: str, num_classes: int | None) -> None:
    """That a model can have as many classes as were asked for; None where none were.

    Raises:
        UsageError: it is made by a callable that takes no number of classes.
    """
    if num_classes is None or not is_imported(name):
        return
    if "num_classes" not in recipe(name, num_classes)[1]:
        raise UsageError(
            f"{name} has no parameter num_classes, and so decides itself how many it has: leave "
            "--num-classes out"
        )


def network_of(name: str) -> tuple[str, int] | None:
    """The split and the number of a network of DeepNets-1M; None if the name is none of one."""
    from ghn_fast.nets import SPLITS

    split, _, index = name.partition(":")
    return (split, int(index)) if split in SPLITS and index.isdecimal() else None


def _network_options(
    split: str, index: int, num_classes: int, image_size: int | None
) -> dict[str, Any]:
    from ghn_fast.data.images import LARGEST_SMALL_SIZE
    from ghn_fast.nets import DeepNets1M, check_image_size, to_dict

    is_large = image_size is not None and image_size > LARGEST_SMALL_SIZE
    limit = None if split == "predefined" else index + 1
    try:
        if image_size is not None:
            check_image_size(image_size, is_large)
        net_args = dict(DeepNets1M(split, 0, limit, is_large)[index].net_args or {})
    except (ValueError, IndexError) as error:
        raise UsageError(f"{split}:{index}: {error}") from None
    if net_args["genotype"] != "resnet50":
        net_args["genotype"] = to_dict(net_args["genotype"])
    return {"net_args": net_args, "num_classes": num_classes, "is_imagenet_input": is_large}


def _called(function: str, options: dict[str, Any]) -> nn.Module:
    module, _, attribute = function.rpartition(".")
    model: nn.Module = getattr(importlib.import_module(module), attribute)(**options)
    return model


def _torchvision_options(name: str, num_classes: int, image_size: int | None) -> dict[str, Any]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known and name in models.list_models():
        raise UsageError(
            f"torchvision's {name} is not known by name, as only its plain classifiers of pictures "
            "are: pass a function of your own that makes it without weights, as "
            "package.module:callable"
        )
    if name not in known:
        raise UsageError(_unknown("torchvision model", name, known))
    options: dict[str, Any] = {"name": name, "num_classes": num_classes}
    if name in _SLOW_INITIALISATION:
        # They warn unless told that it is known; it is overwritten anyway.
        options["init_weights"] = False
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size
    if image_size is not None and name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    return options


_SLOW_INITIALISATION = ("inception_v3", "googlenet")


def _timm_options(name: str, num_classes: int, image_size: int | None) -> dict[str, Any]:
    try:
        import timm
    except ImportError:
        raise UsageError(f"timm/{name} needs timm: pip install timm") from None
    if not timm.is_model(name):
        raise UsageError(_unknown("timm model", name, timm.list_models()))
    options: dict[str, Any] = {"model_name": name, "num_classes": num_classes}
    if image_size is not None and _has_fixed_size(name):
        options["img_size"] = image_size
    return options


def _has_fixed_size(name: str) -> bool:
    import timm

    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return settings is not None and settings.fixed_input_size


def takes_any_size(name: str) -> bool:
    """Whether a model of torchvision or timm is made for images of no size in particular."""
    if name.startswith("timm/"):
        return not _has_fixed_size(name[5:])
    return not name.startswith(("vit_", "maxvit_"))


def check_ending(out: Path) -> None:
    """That a file's name does not say another format than that of :func:`write_model`.

    Raises:
        UsageError: it is one by which ``torch.load`` would be expected to read it.
    """
    if out.suffix in _PICKLES:
        raise UsageError(
            f"--out {out}: the file is safetensors: call it {out.with_suffix('.safetensors').name}"
        )


_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def write_model(model: nn.Module, out: Path, metadata: Mapping[str, str]) -> None:
    """Writes a model's state dict as safetensors, for ``--out``.

    Raises:
        UsageError: it cannot be written there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    content = {"format": "pt", **metadata}
    try:
        replace(out, lambda aside: save_model(model, str(aside), metadata=content))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write {out} ({error}); pass another file as --out") from None


def _imported_model(name: str, options: dict[str, Any]) -> nn.Module:
    factory = _imported(name)
    try:
        with _current_folder_first():
            model = factory(**options) if _is_factory(factory) else factory
    except TypeError as error:
        given = ", ".join(f"{option}={value}" for option, value in options.items())
        raise UsageError(f"{name} cannot be called as ({given}): {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name!r} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def _imported_options(name: str, num_classes: int, image_size: int | None) -> dict[str, Any]:
    """Those that the callable takes by name.

    ``**kwargs`` take a number of classes, but no size: torchvision's functions pass them on.
    """
    factory = _imported(name)
    try:
        parameters = inspect.signature(factory).parameters.values() if _is_factory(factory) else ()
    except ValueError:  # some that are written in C do not tell
        return {}
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken.add("num_classes")
    options = {"num_classes": num_classes, "image_size": image_size}
    return {key: value for key, value in options.items() if key in taken and value is not None}


def _imported(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        with _current_folder_first():
            return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        plain = module_name.removesuffix(".py").replace("/", ".")
        hint = f"; a module has no .py: {plain}:{attribute}" if module_name != plain else ""
        raise UsageError(f"cannot import {name!r}: {error}{hint}") from error


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """For imports of the user's: scripts have their own folder there, ``python -m`` the current.

    Not for longer, as its files could hide what is imported later.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _is_factory(imported: Any) -> bool:
    return callable(imported) and not isinstance(imported, nn.Module)


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"for example {known[0]}"
    return f"no {kind} is called {name!r}; {hint}"
