"""GHNs by name: shipped with the package, on disk, or in a Hugging Face repository."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from ghn_fast._system.errors import failures
from ghn_fast._system.files import write_text
from ghn_fast.checkpoint.errors import CheckpointError
from ghn_fast.checkpoint.files import checkpoint_file
from ghn_fast.ghn.files import load_ghn, save
from ghn_fast.ghn.model import GHN

DEFAULT = "ghn2-cifar10"
WEIGHTS_FILE = "model.safetensors"

_GHN3_REPOSITORY = "SamsungSAILMontreal/ghn3"
_GHN3_FILES = {
    "ghn3-t": "ghn3tm8.pt",
    "ghn3-s": "ghn3sm8.pt",
    "ghn3-l": "ghn3lm8.pt",
    "ghn3-xl": "ghn3xlm16.pt",
}
_GHN3_ALIASES = {
    "ghn3-tiny": "ghn3-t",
    "ghn3-small": "ghn3-s",
    "ghn3-large": "ghn3-l",
    "ghn3-xlarge": "ghn3-xl",
    **{file: name for name, file in _GHN3_FILES.items()},
}
_REPOSITORY = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w-][\w.-]*(?:/[\w-][\w.-]*)*))?")
_LONGEST_NAME = 300
_FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".pkl", ".joblib", ".ckpt", ".gz", ".z")


def from_pretrained(
    name_or_path: str | Path = DEFAULT,
    device: torch.device | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    check_finite: bool = True,
) -> GHN:
    """A trained GHN, in evaluation mode.

    Args:
        name_or_path: the name of a GHN shipped with the package (see :func:`shipped`); a file of
            this package, of ppuda or of ghn3, or a folder from ``save_pretrained``; one of
            ``ghn3-t``, ``ghn3-s``, ``ghn3-l``, ``ghn3-xl``; or a Hugging Face repository as
            ``owner/name`` or ``owner/name:file``.
        device: where to put it; the CPU by default.
        revision: of a Hugging Face repository; this and the next four as in
            :func:`huggingface_hub.hf_hub_download`.
        token: to read a private repository with.
        cache_dir: where downloads are kept; what is there is found without a network.
        force_download: even if it is there.
        local_files_only: raise an error instead of downloading.
        check_finite: refuse parameters with values that are not finite.

    Raises:
        TypeError: ``name_or_path`` is neither a name nor a path.
        CheckpointError: nothing has that name (with the nearest that exist), it cannot be
            downloaded, or the file is not a GHN's checkpoint.

    Examples:
        >>> ghn = ghn_fast.from_pretrained("ghn2-cifar10")
        >>> ghn.config.num_classes
        10
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        kind = type(name_or_path).__name__
        raise TypeError(f"name_or_path must be a name or a path, not {kind}")
    name = os.fspath(name_or_path)
    weights = weights_folder() / f"{name}.safetensors"
    if name in shipped():
        with resources.as_file(weights) as path:
            return load_ghn(path, device, check_finite)
    with failures(name, CheckpointError):
        path = Path(name_or_path).expanduser()
        exists = path.exists()
    if exists:
        return load_ghn(path, device, check_finite)
    repository, file = _repository(name)
    download = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    return load_ghn(_download(repository, file, download), device, check_finite)


def shipped() -> list[str]:
    """The names of the GHNs that come with the package."""
    folder = weights_folder()
    if not folder.is_dir():
        return []
    suffix = ".safetensors"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def list_models() -> list[str]:
    """Every name that :func:`from_pretrained` knows without a path or a repository.

    Examples:
        >>> "ghn2-cifar10" in ghn_fast.list_models()
        True
    """
    return [*shipped(), *_GHN3_FILES]


def resolve(ghn: GHN | str | Path | None = None) -> GHN:
    """A GHN itself, or that of a name or file, by default the shipped one, loaded once.

    It is in evaluation mode, and predicting with it does not change it. A file that was written
    anew is loaded anew.

    Raises:
        TypeError: ``ghn`` is none of these.
    """
    if isinstance(ghn, GHN):
        return ghn
    if ghn is not None and not isinstance(ghn, (str, os.PathLike)):
        raise TypeError(
            f"ghn must be a GHN, a name or a path, not {type(ghn).__name__}; what predict calls "
            "the model with is example_inputs="
        )
    name = os.fspath(ghn or DEFAULT)
    path = Path(name).expanduser()
    if not path.exists() or name in shipped():
        return _loaded(name, None)
    file = checkpoint_file(path).resolve()
    status = file.stat()
    return _loaded(str(file), (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _loaded(name: str, version: tuple[int, ...] | None) -> GHN:
    return from_pretrained(name)


def save_pretrained(
    ghn: GHN,
    save_directory: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    model_card_kwargs: Mapping[str, Any] | None = None,
    **push_to_hub_kwargs: Any,
) -> str | None:
    """Writes a folder as Hugging Face repositories are: weights, ``config.json``, a model card.

    Args:
        config: instead of the GHN's own configuration in ``config.json``, which is for people;
            loading reads the configuration that is in the weights' file.
        repo_id, push_to_hub, push_to_hub_kwargs: also push it, see :func:`push_ghn_to_hub`.
        model_card_kwargs: lines added to the model card, name and text.

    Returns:
        The URL of the commit if it was pushed, else None.
    """
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    save(ghn, folder / WEIGHTS_FILE)
    values = dict(config or ghn.config.to_dict())
    write_text(folder / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")
    card = folder / "README.md"
    if not card.exists():
        write_text(card, _model_card(ghn, model_card_kwargs or {}))
    if not push_to_hub:
        return None
    return push_ghn_to_hub(ghn, repo_id or folder.name, **push_to_hub_kwargs)


def push_ghn_to_hub(ghn: GHN, repo_id: str, **options: Any) -> str:
    """Uploads a GHN to a Hugging Face repository, which is made if there is none.

    Args:
        options: as in :meth:`huggingface_hub.PyTorchModelHubMixin.push_to_hub`: ``private``,
            ``token``, ``branch``, ``commit_message``, ``create_pr`` ...

    Returns:
        The URL of the commit.
    """
    from huggingface_hub import PyTorchModelHubMixin

    url: str = PyTorchModelHubMixin.push_to_hub(ghn, repo_id, **options)  # type: ignore[arg-type]
    return url


def weights_folder() -> Any:
    """What comes with the package: GHNs, their model cards, labels that were made with them."""
    return resources.files("ghn_fast") / "weights"


def _repository(name: str) -> tuple[str, str]:
    """The Hugging Face repository and the file in it that a name stands for.

    No part of the file's name begins with a dot: it would lead out of the repository's folder.
    """
    published = _GHN3_FILES.get(_GHN3_ALIASES.get(name, name))
    if published is not None:
        return _GHN3_REPOSITORY, published
    match = _REPOSITORY.fullmatch(name)
    if match is None or match[1].endswith(_FILE_ENDINGS):
        raise CheckpointError(_unknown(name))
    default = _GHN3_FILES["ghn3-xl"] if match[1] == _GHN3_REPOSITORY else WEIGHTS_FILE
    return match[1], match[2] or default


def _unknown(name: str) -> str:
    if len(name) > _LONGEST_NAME:
        return f"there is no GHN {name!r}: it is too long to be one's name"
    path = Path(name).expanduser()
    if path.suffix in _FILE_ENDINGS and path.parent.is_dir():
        candidates = [str(entry) for entry in path.parent.iterdir() if entry.is_file()]
    else:
        candidates = [*list_models(), *_GHN3_ALIASES]
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    near.sort(key=lambda known: _common_beginning(known, name), reverse=True)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(list_models())}"
    return f"there is no GHN {name!r}, neither by name nor as a path; {hint}"


def _common_beginning(first: str, second: str) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _download(repository: str, file: str, options: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    where = f"{repository}:{file}"
    try:
        return Path(hf_hub_download(repository, file, **options))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{where} is not in the cache and the Hugging Face Hub cannot be reached; on a "
            f"machine with a network run `hf download {repository} {file}`, then copy the file "
            "here and pass its path"
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"there is no {where} on the Hugging Face Hub, or it is private and needs a token"
        ) from error
    except Exception as error:  # of the network, of which there are several libraries
        raise CheckpointError(f"cannot download {where}: {error}") from error


def _model_card(ghn: GHN, extra: Mapping[str, Any]) -> str:
    parameters = sum(parameter.numel() for parameter in ghn.parameters())
    lines = [
        "---",
        "library_name: ghn_fast",
        "license: mit",
        "tags:",
        "- graph-hypernetwork",
        "- parameter-prediction",
        "- pytorch_model_hub_mixin",
        "---",
        "",
        f"# {type(ghn).__name__} with {parameters:,} parameters",
        "",
        "A Graph HyperNetwork predicts all parameters of a neural network in one forward pass.",
        "",
        "```python",
        "import ghn_fast, torchvision",
        "",
        'ghn = ghn_fast.from_pretrained("this repository")',
        "model = ghn_fast.predict(torchvision.models.resnet50(), ghn=ghn)",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in {**ghn.config.to_dict(), **extra}.items()),
    ]
    return "\n".join(lines) + "\n"
