"""Models by name: torchvision's, timm's, or anything that can be imported."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import nn

from ghn_fast.cli.errors import UsageError


def build_model(name: str, num_classes: int) -> nn.Module:
    """A randomly initialised model.

    Args:
        name: a torchvision classifier (``resnet50``), ``timm/<name>``, or
            ``package.module:callable``, which is called without arguments.
        num_classes: of the first two.

    Raises:
        UsageError: nothing has that name; suggests the nearest.
    """
    if name.startswith("timm/"):
        return _timm_model(name.removeprefix("timm/"), num_classes)
    if ":" in name:
        return _imported_model(name)
    return _torchvision_model(name, num_classes)


def _torchvision_model(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(_unknown("torchvision model", name, known))
    # Inception warns unless told that its slow initialisation is known; it is overwritten anyway.
    extra: dict[str, Any] = {"init_weights": False} if name in _SLOW_INITIALISATION else {}
    model: nn.Module = models.get_model(name, num_classes=num_classes, **extra)
    return model


_SLOW_INITIALISATION = ("inception_v3", "googlenet")


def _timm_model(name: str, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UsageError(f"timm/{name} needs timm: pip install timm") from None
    if not timm.is_model(name):
        raise UsageError(_unknown("timm model", name, timm.list_models()))
    model: nn.Module = timm.create_model(name, num_classes=num_classes)
    return model


def _imported_model(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot import {name!r}: {error}") from error
    model = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name!r} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"for example {known[0]}"
    return f"no {kind} is called {name!r}; {hint}"
