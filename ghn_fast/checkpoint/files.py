"""Checkpoint files, from bytes to tensors: our own, and those of the two public codes.

Ours are safetensors with the configuration as JSON in the header's metadata. Published files are
``torch.save`` dictionaries (GHN-1, GHN-2, MLP; keys ``state_dict`` and ``config``) and joblib
dumps of a bare state dict (GHN-3). Nothing that is in a file is ever executed.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn_fast._system.files import replace
from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.checkpoint.tensor_pickle import (
    LEGACY_MAGIC,
    is_compressed_pickle,
    load_tensor_pickle,
)

FORMAT_VERSION = 1
_FORMAT_KEY = "ghn_fast.format"
_CONFIG_KEY = "ghn_fast.config"
_RESERVED = ("format", _FORMAT_KEY, _CONFIG_KEY)
_LARGEST_HEADER = 100_000_000  # of a safetensors file, by its specification
_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def load(path: str | Path) -> tuple[Mapping[str, Any] | None, dict[str, Tensor]]:
    """Reads a checkpoint of this package, of ppuda or of ghn3, as it is.

    Args:
        path: a file, or a folder that ``save_pretrained`` wrote.

    Returns:
        The configuration, None where the file has none, and the tensors on the CPU, by the names
        and in the dtypes of the file. :func:`ghn_fast.ghn.files.load` makes a GHN's of them.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, written by a newer
            version, or asks to run something.
    """
    return _read(checkpoint_file(path))


def load_metadata(path: str | Path) -> dict[str, str]:
    """What was passed as ``metadata`` when one of our checkpoints was saved; else empty.

    Raises:
        CheckpointError: the file is missing or truncated.
    """
    path = checkpoint_file(path)
    if _kind(path) != "safetensors":
        return {}
    header = _safetensors_header(path)
    return {key: value for key, value in header.items() if key not in _RESERVED}


def save(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a checkpoint as safetensors; an existing file is replaced only once it is complete.

    Args:
        state: the tensors by name.
        config: the configuration, of values that JSON has.
        metadata: anything worth knowing (data, steps, scores), as strings.
        dtype: of the tensors in the file, for example ``torch.float16``; as they are by default.

    Raises:
        ValueError: a reserved key in ``metadata``, a ``dtype`` that checkpoints do not have, or a
            value that it cannot hold.
        OSError: the file could not be written.
    """
    packed = {name: _packed(name, value, dtype) for name, value in state.items()}
    header = _header(config, metadata or {})
    replace(Path(path), lambda aside: _write_safetensors(aside, packed, header))


def checkpoint_file(path: str | Path) -> Path:
    """The file that is meant: itself, or the one in a folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}{_beside(path)}")
    return path


# ---------------------------------------------------------------- writing


def _packed(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    packed = value.detach().to("cpu", dtype or value.dtype).contiguous()
    if packed.dtype not in _SAFETENSORS_TYPES.values():
        raise ValueError(f"{name} would be of {packed.dtype}, which checkpoints do not have")
    if not packed.isfinite().all() and value.isfinite().all():
        raise ValueError(f"{name} has values that {packed.dtype} cannot hold")
    return packed


def _header(config: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    reserved = sorted(set(metadata) & set(_RESERVED))
    if reserved:
        raise ValueError(f"metadata may not have the reserved keys {', '.join(reserved)}")
    return {
        **metadata,
        "format": "pt",
        _FORMAT_KEY: str(FORMAT_VERSION),
        _CONFIG_KEY: json.dumps(dict(config)),
    }


def _write_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(state, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"no checkpoint could be written: {error}") from error


# ---------------------------------------------------------------- reading


def _read(path: Path) -> tuple[Mapping[str, Any] | None, dict[str, Tensor]]:
    """The configuration, None where the file has none, and the tensors."""
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    content = load_tensor_pickle(path) if kind == "pickle" else _load_torch(path, kind)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not the state dict of a GHN"
        )
    config = None
    if isinstance(content.get("state_dict"), Mapping):
        config = content.get("config")
        content = content["state_dict"]
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: {others[0]!r} is not a tensor of a state dict")
    # Tensors of a zip file are mapped: they get memory of their own, as above.
    mapped = kind == "zip"
    return config, {str(n): value.clone() if mapped else value for n, value in content.items()}


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(LEGACY_MAGIC):
        return "legacy"
    if head.startswith(b"\x80") or is_compressed_pickle(head):
        return "pickle"
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is the Git LFS pointer of a checkpoint; fetch the file itself: git lfs pull"
        )
    what = "is empty" if not head else f"begins with {head[:8]!r}"
    raise CheckpointError(
        f"{path} {what}; a checkpoint is a safetensors, torch.save or joblib file"
    )


def _safetensors_header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def _safetensors_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file whose header the library has checked.

    Read rather than mapped, as the library would: a mapping that is copied from needs twice the
    memory, and one that is kept crashes the process when the file is written over.
    """
    state = {}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _SAFETENSORS_TYPES:
                raise CheckpointError(f"{path}: {name} is of type {entry['dtype']}")
            dtype = _SAFETENSORS_TYPES[entry["dtype"]]
            tensor = torch.empty(entry["shape"], dtype=dtype, device="cpu")
            file.seek(8 + size + entry["data_offsets"][0])
            if file.readinto(tensor.view(-1).view(torch.uint8).numpy().data) != tensor.nbytes:
                raise CheckpointError(f"{path} is truncated")
            state[name] = tensor
    return state


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any] | None, dict[str, Tensor]]:
    header = _safetensors_header(path)
    version = header.get(_FORMAT_KEY, "0")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this version of ghn_fast reads up to "
            f"{FORMAT_VERSION}, please upgrade it"
        )
    state = _safetensors_state(path)
    if _CONFIG_KEY not in header:
        return None, state
    try:
        config = json.loads(header[_CONFIG_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its configuration is no JSON: {error}") from error
    return config, state


def _load_torch(path: Path, kind: str) -> Any:
    """A torch.save file through PyTorch's own restricted unpickler.

    Zip files are mapped, so that what is not used (the optimiser's state) is not read either.
    ghn3's trainer puts its command line into the file, which is a Namespace of plain values.
    """
    if kind == "zip" and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is truncated: the directory at its end is missing")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:
        # PyTorch raises almost any type of exception for a damaged file.
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is truncated or damaged: {first_line}") from error


def _refusal(path: Path, message: str) -> str:
    """PyTorch's refusal in our words: its own advises to switch the protection off."""
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused is None:
        detail = message.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        return f"{path} is damaged, or holds more than tensors: {detail}"
    return (
        f"{path}: the file asks for {refused[1]}, which a checkpoint does not need. Nothing of "
        "the file was run; do not load it by other means unless you trust where it comes from"
    )


def _beside(path: Path) -> str:
    """What else is in the folder of a file that is missing."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    endings = (".safetensors", ".pt", ".pth")
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in endings)
    return f"; {path.parent} has {', '.join(names[:8])}" if names else ""
