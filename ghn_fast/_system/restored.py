"""Models that are as they were found once something has been measured on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Puts every module's mode and every batch norm's settings back, whatever happens inside.

    Statistics come back as the tensors that they were: what is written into them stays. Inside, a
    compiled model runs as it is written, as hooks are not seen by what was compiled before them.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [(norm, _settings(norm)) for norm in model.modules() if isinstance(norm, _BatchNorm)]
    is_compiled = any(_is_compiled(module) for module, _ in modes)
    try:
        with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, (buffers, tracks, momentum) in norms:
            norm._buffers.update(buffers)
            norm.track_running_stats, norm.momentum = tracks, momentum


@contextmanager
def restored_after_errors(model: nn.Module) -> Iterator[None]:
    """Puts modes back, and takes statistics from norms that had none, if something is raised.

    The values of other tensors are the caller's. The model may be moved inside, so buffers are not
    put back as the tensors that they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        yield
    except BaseException:
        for module, mode in modes:
            module.training = mode
        for norm, tracks in zip(norms, tracked, strict=True):
            norm._buffers.update(dict.fromkeys(norm._buffers))
            norm.track_running_stats = tracks
        raise


def _is_compiled(module: nn.Module) -> bool:
    """By torch.compile or its own method; PyTorch's compiler is not imported to find out."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def _settings(norm: _BatchNorm) -> tuple[dict[str, Any], bool, float | None]:
    return dict(norm._buffers), norm.track_running_stats, norm.momentum
