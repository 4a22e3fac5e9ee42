"""What a guess of a model's inputs is made of: tensors, sizes, and arguments by their names."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

DEFAULT_SIZE = 224
SEQUENCE_LENGTH = 16
IMAGE_SIZES = (DEFAULT_SIZE, 32, 28, 64, 96, 128, 256, 112, 48, 299, 384, 512)


@dataclass(frozen=True)
class Guess:
    """Calls that differ in one size, such as that of images or the length of sequences.

    Attributes:
        make: from a size to the call.
        sizes: in the order in which to try them.
        range: other sizes that may be searched; empty if the model says which it is.
    """

    make: Callable[[int], Call]
    sizes: Sequence[int]
    range: tuple[int, int] = (1, 0)


class Maker:
    """Makes tensors for a model, and what else its ``forward`` asks for by name.

    Args:
        model: any module.
        batch: the number of examples.
        device: of the tensors; by default the model's.
        modules: all of the model's, where they have been listed already.
        optional: also give arguments that have a default, where the name says what they are.
        thin: images and the like are one number, expanded: for a trace, which copies what it runs.
        method: to call in place of ``forward``.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        device: torch.device | str | None,
        modules: Sequence[nn.Module] | None = None,
        optional: bool = False,
        thin: bool = False,
        method: Callable[..., Any] | None = None,
    ) -> None:
        self.modules = list(model.modules()) if modules is None else modules
        parameters = (p for m in self.modules for p in m._parameters.values() if p is not None)
        first = next(parameters, torch.empty(0, device="cpu"))
        floating = (p.dtype for p in chain((first,), parameters) if p.is_floating_point())
        self.model, self.batch, self.thin = model, batch, thin
        self.device = device or first.device
        self.dtype = next(floating, torch.float32)
        self.required, self.names = arguments_of(method or model.forward)
        known = [name for name in _OPTIONAL if name in self.names and name not in self.required]
        self.optional = known if optional else []

    def zeros(self, *shape: int) -> Tensor:
        return self._filled(0, shape)

    def ones(self, *shape: int) -> Tensor:
        """Of images: where there may be several, one that is black is padding."""
        return self._filled(1, shape)

    def _filled(self, value: int, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.full((), value, dtype=self.dtype, device=self.device)
        tensor = tensor.expand(self.batch, *shape)
        return tensor if self.thin else tensor.contiguous()

    def ids(self, vocabulary: int, length: int = SEQUENCE_LENGTH) -> Tensor:
        """Different tokens, and no padding where there are enough."""
        first = 2 if vocabulary > length + 2 else 0
        ids = (first + torch.arange(length, device=self.device)) % max(1, vocabulary)
        return ids.expand(self.batch, -1).contiguous()

    def images(self, channels: int) -> Guess:
        """Square ones."""
        known = image_sizes(self.model, self.modules)
        sizes = tuple(dict.fromkeys((*known, *IMAGE_SIZES)))
        return Guess(lambda size: self.call(self.zeros(channels, size, size)), sizes, (1, 1024))

    def patches(self) -> Iterator[Guess]:
        """Square images, cut into the patches that the first convolution or, if there is none,
        the first linear layer reads: one a row, or as they are."""
        kinds = (nn.Conv2d | nn.Conv3d, nn.Linear)
        layers = (m for kind in kinds for m in self.modules if isinstance(m, kind))
        first = next(layers, None)
        shape = tuple(first.weight[0].shape) if first is not None else (1,)
        grids = [name for name in self.names if name.endswith(GRID) and name not in self.required]

        def make(shape: tuple[int, ...], side: int) -> Call:
            patches = self.ones(side * side, *shape).flatten(0, 1)
            args, others = self.call(patches)
            return args, others | {name: self.argument(name, patches) for name in grids}

        for each in dict.fromkeys(((math.prod(shape),), shape)):
            yield Guess(partial(make, each), (16, 8, 24))

    @property
    def channels(self) -> int:
        """Of images: by the first convolution, then by what is written down."""
        convolutions = (m for m in self.modules if isinstance(m, nn.Conv2d | nn.Conv3d))
        first = next(convolutions, None)
        if first is not None:
            return first.in_channels
        shape = _written_size(self.model)
        return int(shape[0]) if len(shape) == 3 else 3

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, as far as tables tell."""
        tables = (m for m in self.modules if isinstance(m, nn.Embedding))
        return max((table.num_embeddings for table in tables), default=2)

    def call(self, first: Tensor) -> Call:
        """A tensor as the first argument, and the others that are given."""
        given = [self.argument(name, first) for name in self.required[1:]]
        return (first, *given), {name: self.argument(name, first) for name in self.optional}

    def argument(self, name: str, first: Tensor) -> Any:
        """Another argument, by its name; by default one like the first."""
        width = self.width("cross_attention_dim", "joint_attention_dim", "text_embed_dim")
        if re.search(r"^t$|time|sigma|noise_level|step|label|^y$|class", name):
            return torch.ones(self.batch, dtype=torch.int64, device=self.device)
        if name.endswith(GRID):
            side = math.isqrt(len(first) // self.batch)
            return torch.tensor([[1, side, side]], device=self.device).repeat(self.batch, 1)
        if name == "edge_index":
            nodes = torch.arange(self.batch, device=self.device)
            return torch.stack([nodes, nodes.roll(1)])
        if re.search(r"ids|token|(?<!con)text", name) and first.is_floating_point():
            length = getattr(self.model, "context_length", SEQUENCE_LENGTH)
            return self.ids(self.vocabulary, length)
        if re.search(r"encoder_hidden|context|cond", name) and width:
            return self.zeros(SEQUENCE_LENGTH, width)
        if re.search(r"pooled", name) and width:
            return self.zeros(self.width("pooled_projection_dim") or width)
        if re.search(r"image|pixel|img|video", name) and not first.is_floating_point():
            return self.zeros(self.channels, DEFAULT_SIZE, DEFAULT_SIZE)
        return first.clone()

    def width(self, *names: str) -> int:
        """A size that the model's configuration names; 0 if it names none of them."""
        config = getattr(self.model, "config", None)
        values = (_written(config, name) for name in names)
        return next((value for value in values if isinstance(value, int)), 0)


GRID = "grid_thw"
"""How the names of arguments end that say how many patches (frames, height, width) images have."""

_OPTIONAL = (
    "timestep", "class_labels", "encoder_hidden_states", "pooled_projections",
    "decoder_input_values",
)  # fmt: skip
"""Arguments of denoising networks and of decoders, which have a default and cannot do without."""


def arguments_of(method: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """The names of a method's arguments that have no default, and all of them."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return [], []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.kind in positional and p.default is p.empty]
    return required, [p.name for p in parameters]


_LARGEST = 2048
"""Of a size that may be an image's; signals are longer."""
_SIZE_NAMES = ("img_size", "image_size", "in_size", "input_size", "img_dim", "image_dim")


def image_sizes(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[int]:
    """Of square images: what the model's parts say, then what is written down about it."""
    # Asking a module itself for what it has not takes microseconds.
    named = [d for m in modules if not (d := m.__dict__).keys().isdisjoint(_SIZE_NAMES)]
    for attributes in named:
        for name in _SIZE_NAMES:
            size = attributes.get(name)
            if size is not None and _is_size(size):
                yield _side(size)
    yield from _written_size(model)[-1:]


def _is_size(value: Any) -> bool:
    pair = value[-2:] if isinstance(value, (tuple, list)) else (value,)
    return all(type(side) is int and 4 <= side <= _LARGEST for side in pair) and len(set(pair)) == 1


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[-1])


def _written_size(model: nn.Module) -> tuple[int, ...]:
    """Of images, by the metadata of timm, diffusers or transformers."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if config is not None:
        return tuple(_written(config, "input_size") or ())
    config = getattr(model, "config", None)
    sizes = (_written(config, name) for name in ("sample_size", "image_size"))
    return next(((_side(size),) for size in sizes if _is_size(size)), ())


def _written(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
