"""What runs below Python: operations of scripted modules and of compiled extensions.

Their calls are no Python calls, but they reach PyTorch's dispatcher. Above autograd's keys that
would be after composite operations were taken apart; below them a linear layer, an attention or a
recurrent layer is still one operation, and is read by the same rule as the call of that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ghn_fast.graph.trace.recorder import Recorder


@contextmanager
def dispatched(recorder: Recorder) -> Iterator[None]:
    """A recorder that runs a model for real also sees what it does not do in Python."""
    with torch._C._AutoDispatchBelowAutograd(), _Dispatched(recorder):
        yield


class _Dispatched(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.recorder.inside:
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            return self.recorder.read(func, args, kwargs or {})
