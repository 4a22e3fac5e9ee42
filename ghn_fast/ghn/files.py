"""GHNs and checkpoints: a GHN's file checked against its configuration, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ghn_fast._system.errors import FileError, failures, shown
from ghn_fast.checkpoint import files
from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.ghn.config import IMAGE_SETTINGS, GHNConfig
from ghn_fast.ghn.logah import LoGAHConfig
from ghn_fast.ghn.make import config_class, make_ghn
from ghn_fast.ghn.model import GHN
from ghn_fast.ghn.published import infer_config, is_ghn, published_config, published_state

_LARGEST_SIZE = 1_000_000
"""Of a configuration: not every one leaves a trace in the shapes of the tensors."""


def load(path: str | Path, check_finite: bool = True) -> tuple[GHNConfig, dict[str, Tensor]]:
    """Reads a checkpoint of this package, of ppuda or of ghn3.

    Args:
        path: a file, or a folder that ``save_pretrained`` wrote.
        check_finite: refuse parameters with values that are not finite.

    Returns:
        The configuration and the parameters in float32, on the CPU, with the names and shapes of
        ``make_ghn(config).state_dict()``.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, written by a newer
            version, asks to run something, its tensors do not fit its configuration, or they
            have values that are not finite.
    """
    ghn, state = _load(files.checkpoint_file(path), check_finite)
    return ghn.config, state


def load_ghn(
    path: str | Path, device: torch.device | str | None = None, check_finite: bool = True
) -> GHN:
    """The GHN of a checkpoint, in evaluation mode.

    Needs the memory of its parameters once: they are not initialised before they are loaded.

    Raises:
        CheckpointError: see :func:`load`.
    """
    ghn, state = _load(files.checkpoint_file(path), check_finite)
    ghn.load_state_dict(state, assign=True)
    return ghn.to(device or "cpu").eval()


def empty_ghn(config: GHNConfig) -> GHN:
    """A GHN whose parameters are on the meta device: shapes without memory."""
    with torch.device("meta"), _Uninitialised():
        return make_ghn(config)


class _Uninitialised(TorchFunctionMode):
    """Skips operations in place, with which modules initialise their parameters.

    On the meta device they change nothing, but the first of them imports SymPy, which takes
    longer than loading a checkpoint and predicting with it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.startswith("_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def save(
    ghn: GHN,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a checkpoint as safetensors; an existing file is replaced only once it is complete.

    Args:
        metadata: anything worth knowing (data, steps, scores), as strings.
        dtype: of the parameters in the file, for example ``torch.float16``; as they are by
            default. Loading gives float32.

    Raises:
        ValueError: a reserved key in ``metadata``, a ``dtype`` that checkpoints do not have, or a
            value that it cannot hold.
        OSError: the file could not be written.
    """
    files.save(ghn.state_dict(), ghn.config.to_dict(), path, metadata, dtype)


def _load(path: Path, check_finite: bool) -> tuple[GHN, dict[str, Tensor]]:
    """The GHN, still empty, and what fits into it."""
    values, tensors = files.load(path)
    with failures(path, CheckpointError):
        state = published_state(tensors)
        if not is_ghn(state):
            raise FileError(_another_kind(tensors))
        del tensors
        inferred = infer_config(state)
        config = inferred if values is None else _config(values, inferred)
        _compare(config, inferred)
        ghn = empty_ghn(config)
        return ghn, _fitted(ghn, state, check_finite)


def _config(values: Any, inferred: GHNConfig) -> GHNConfig:
    """The configuration of a file, each value of the type that it must have."""
    if type(values) is not dict or any(type(name) is not str for name in values):
        raise FileError(f"the configuration is {shown(values)}, not a dictionary of names")
    values = published_config(values)
    if isinstance(inferred, LoGAHConfig):
        values.setdefault("language", inferred.language)  # published files do not say
    kind = config_class(values)
    for field in fields(kind):
        if not _is_like(values.get(field.name, field.default), field.default):
            raise FileError(f"the configuration's {field.name} is {_stated(values[field.name])}")
    try:
        return kind.from_dict(values)
    except ValueError as error:
        raise FileError(
            f"{error}; a newer version of ghn_fast may know such GHNs, please upgrade it"
        ) from error


def _is_like(value: Any, default: Any) -> bool:
    """Of the same type; sequences, which JSON has as lists, of sizes or of any numbers."""
    if type(default) is not tuple:
        return type(value) is type(default)
    kinds = (int,) if default else (int, float)
    return type(value) in (list, tuple) and all(type(number) in kinds for number in value)


def _compare(config: GHNConfig, inferred: GHNConfig) -> None:
    """Before the GHN is built: a configuration may ask for any size, tensors have theirs."""
    stated, found = config.to_dict(), inferred.to_dict()
    # These leave no trace in the shapes.
    silent = {"weight_norm", "flat_kernels", "raised_layer_scales", *IMAGE_SETTINGS}
    if config.hypernet != "gatedgnn":
        silent.add("ve")
    if config.decoder == "low_rank":
        silent |= {"max_shape", "num_classes"}
    differing = [
        f"{name} {_stated(stated.get(name))}, the tensors {_stated(found.get(name))}"
        for name in sorted({*stated, *found} - silent)
        if stated.get(name) != found.get(name)
    ]
    if differing:
        raise FileError(f"the configuration says {'; '.join(differing)}")
    if max(*config.max_shape, config.num_classes) > _LARGEST_SIZE:
        raise FileError("the configuration has a larger max_shape or num_classes than any GHN")


def _stated(value: Any) -> str:
    short = type(value) in (list, tuple) and len(value) <= 4
    return f"({', '.join(map(shown, value))})" if short else shown(value)


def _fitted(ghn: GHN, state: dict[str, Tensor], check_finite: bool) -> dict[str, Tensor]:
    """The state dict with the shapes and the dtype of the GHN's own."""
    wanted = {name: tuple(value.shape) for name, value in ghn.state_dict().items()}
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or unknown:
        raise FileError(
            "the tensors do not fit the configuration: "
            + "; ".join(
                f"{what} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )
    fitted = {}
    for name, shape in wanted.items():
        # Each is let go of before the next is cast, so that casting needs little memory.
        fitted[name] = _fit(name, state.pop(name), shape)
        if check_finite and not torch.stack(fitted[name].aminmax()).isfinite().all():
            raise FileError(
                f"{name} has values that are not finite; with check_finite=False it is loaded"
            )
    return fitted


def _fit(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    # 1x1 convolutions in one public code are linear layers in the other.
    if _squeezed(tuple(value.shape)) != _squeezed(shape):
        raise FileError(
            f"{name} has shape {tuple(value.shape)}; its configuration asks for {shape}"
        )
    if not value.is_floating_point():
        raise FileError(f"{name} is of {value.dtype}, not of a floating type")
    return value.detach().reshape(shape).to(torch.float32).contiguous()


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _another_kind(state: Mapping[str, Tensor]) -> str:
    weights_first = sorted(state, key=lambda name: -state[name].dim())
    names = ", ".join(weights_first[:4])
    return f"it is not a GHN's checkpoint: its tensors are {names or 'none'} ..."
