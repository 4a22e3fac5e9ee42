"""GHNs as Hugging Face users know their models: ``from_pretrained`` and its counterparts.

The names and arguments are those of :class:`huggingface_hub.PyTorchModelHubMixin`, which is not
inherited from because importing it takes longer than predicting a ResNet-50. The functions behind
know the class that inherits these, so they are imported where used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound="Pretrained")


class Pretrained:
    """Loading from and saving to folders and Hugging Face repositories."""

    @classmethod
    def from_pretrained(cls: type[T], name_or_path: str | Path, **options: Any) -> T:
        """See :func:`ghn_fast.from_pretrained`.

        Raises:
            TypeError: the checkpoint is one of another class of GHN.
        """
        from ghn_fast.ghn.hub import from_pretrained

        ghn = from_pretrained(name_or_path, **options)
        if not isinstance(ghn, cls):
            raise TypeError(f"{name_or_path} is a {type(ghn).__name__}, not a {cls.__name__}")
        return ghn

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """See :func:`ghn_fast.ghn.hub.save_pretrained`."""
        from ghn_fast.ghn.hub import save_pretrained

        return save_pretrained(self, save_directory, **options)  # type: ignore[arg-type]

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """See :func:`ghn_fast.ghn.hub.push_ghn_to_hub`."""
        from ghn_fast.ghn.hub import push_ghn_to_hub

        return push_ghn_to_hub(self, repo_id, **options)  # type: ignore[arg-type]
