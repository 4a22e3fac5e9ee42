"""Checkpoint files, from bytes to tensors: our own, and those of the two public codes.

Ours are safetensors with the configuration as JSON in the header's metadata. Published files are
``torch.save`` dictionaries (GHN-1, GHN-2, MLP; keys ``state_dict`` and ``config``) and joblib
dumps of a bare state dict (GHN-3). Nothing that is in a file is ever executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghn_fast._system.errors import FileError, failures, shown
from ghn_fast._system.files import replace
from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.checkpoint.tensor_pickle import is_tensor_pickle, load_tensor_pickle

FORMAT_VERSION = 1
_FORMAT_KEY = "ghn_fast.format"
_CONFIG_KEY = "ghn_fast.config"
_RESERVED = ("format", _FORMAT_KEY, _CONFIG_KEY)
_LARGEST_HEADER = 4_000_000
"""Of a safetensors file; that of 10,000 tensors has 1.5 MB."""
_LONGEST_CONFIG = 10_000
_SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_READ_TYPES = {
    **_SAFETENSORS_TYPES,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Of other files too, so that they are told by their tensors, as those of torch.save are."""


def load(path: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """Reads a checkpoint of this package, of ppuda or of ghn3, as it is.

    Args:
        path: a file, or a folder that ``save_pretrained`` wrote.

    Returns:
        The configuration as it stands in the file, unchecked, None where there is none, and the
        tensors on the CPU, by the names and in the dtypes of the file.
        :func:`ghn_fast.ghn.files.load` makes a GHN's of them.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, written by a newer
            version, or asks to run something.
    """
    path = checkpoint_file(path)
    if _kind(path) == "safetensors":
        with failures(path, CheckpointError):
            config, state = _read_safetensors(path)
    else:
        config, state = load_tensor_pickle(path, _state_and_config)
    with failures(path, CheckpointError):
        _check_state(state)
    return config, state


def load_metadata(path: str | Path) -> dict[str, str]:
    """What was passed as ``metadata`` when one of our checkpoints was saved; else empty.

    Raises:
        CheckpointError: the file is missing or truncated.
    """
    path = checkpoint_file(path)
    if _kind(path) != "safetensors":
        return {}
    with failures(path, CheckpointError):
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
        CheckpointError: there is none, or no file can have such a name.
    """
    with failures(path, CheckpointError):
        file = Path(path).expanduser()
        if file.is_dir():
            # What `save_pretrained` writes, or a run of training.
            inside = (file / "model.safetensors", file / "ghn.safetensors")
            file = next((path for path in inside if path.is_file()), inside[0])
        if file.is_file():
            return file
        beside = _beside(file)
    raise CheckpointError(f"there is no checkpoint {file}{beside}")


# ---------------------------------------------------------------- writing


def _packed(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    if value.is_meta or value.layout is not torch.strided:
        raise ValueError(f"{name} has no values in memory, or is sparse, which checkpoints are not")
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


def _kind(path: Path) -> str:
    with failures(path, CheckpointError), path.open("rb") as file:
        head = file.read(64)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
            return "safetensors"
        if is_tensor_pickle(head):
            return "pickle"
        if head.startswith(b"version https://git-lfs"):
            raise FileError(
                "it is the Git LFS pointer of a checkpoint; fetch the file itself: git lfs pull"
            )
        what = "is empty" if not head else f"begins with {head[:8]!r}"
        raise FileError(f"it {what}; a checkpoint is a safetensors, torch.save or joblib file")


def _state_and_config(content: Any) -> tuple[Any, dict[str, Any]]:
    """What is wanted of a pickle: the configuration, None where it has none, and the tensors."""
    if type(content) is not dict:
        raise FileError(f"it holds {shown(content)}, not the state dict of a GHN")
    config = None
    if type(content.get("state_dict")) is dict:
        config, content = content.get("config"), content["state_dict"]
    return config, content


def _check_state(state: Mapping[Any, Any]) -> None:
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, Tensor):
            raise FileError(f"{shown(name)} is not a tensor of a state dict")


def _safetensors_header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _safetensors_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file whose header the library has checked: they have the file's size.

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
            if entry["dtype"] not in _READ_TYPES:
                raise FileError(f"{name} is of type {entry['dtype']}")
            dtype = _READ_TYPES[entry["dtype"]]
            tensor = torch.empty(entry["shape"], dtype=dtype, device="cpu")
            file.seek(8 + size + entry["data_offsets"][0])
            if file.readinto(tensor.view(-1).view(torch.uint8).numpy().data) != tensor.nbytes:
                raise EOFError("it ends early")
            state[name] = tensor
    return state


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    header = _safetensors_header(path)
    version = header.get(_FORMAT_KEY, "0")
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > FORMAT_VERSION:
        raise FileError(
            f"it has format version {version}; this version of ghn_fast reads up to "
            f"{FORMAT_VERSION}, please upgrade it"
        )
    config = _parsed(header[_CONFIG_KEY]) if _CONFIG_KEY in header else None
    return config, _safetensors_state(path)


def _parsed(config: str) -> Any:
    """A configuration is a dictionary of numbers, strings and lists of numbers."""
    if len(config) > _LONGEST_CONFIG:
        raise FileError("its configuration is longer than that of any GHN")
    try:
        return json.loads(config)
    except ValueError as error:
        raise FileError(f"its configuration is no JSON: {error}") from error


def _beside(path: Path) -> str:
    """What else is in the folder of a file that is missing."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    endings = (".safetensors", ".pt", ".pth")
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in endings)
    return f"; {path.parent} has {', '.join(names[:8])}" if names else ""
