"""What to call a model with, worked out from the model.

The model itself comes before what is written down about it: its first layer says how many
channels or features there are, its patches how large images are. What a model does not say is
tried (:mod:`ghn_fast.graph.trace.search`): usual sizes first, then the size at which a
layer over flattened maps gets what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ghn_fast._system.wrapped import unwrapped
from ghn_fast.graph.trace.configured import transformers_guesses
from ghn_fast.graph.trace.guess import DEFAULT_SIZE, GRID, SEQUENCE_LENGTH, Call, Guess, Maker
from ghn_fast.graph.trace.placeholders import RunMethod, placeholder_guesses

VIDEO_SIZES = (DEFAULT_SIZE, 112, 64, 32)
SIGNAL_LENGTHS = (DEFAULT_SIZE, 16000, 1024, 128, 4096)
_FRAMES = 16
_MOST_KINDS = 4
"""Of first layers whose inputs are tried."""


def guess_inputs(
    model: nn.Module, batch: int = 2, device: torch.device | str | None = None
) -> Call:
    """Positional and keyword arguments for one call: the first that :func:`guesses` has."""
    guess = next(guesses(model, batch, device))
    return guess.make(guess.sizes[0])


def guesses(
    model: nn.Module,
    batch: int = 2,
    device: torch.device | str | None = None,
    modules: Sequence[nn.Module] | None = None,
    thin: bool = False,
    run_method: RunMethod | None = None,
) -> Iterator[Guess]:
    """What a model may be called with, the likeliest first.

    An ``expected_input_sz`` attribute (a size or (channels, height, width)), a transformers
    ``config``, torchvision's detection, video and optical flow models are known. Else the first
    layers tell: images, signals, videos, sequences, features or token ids.

    Args:
        model: may be on any device and of any floating point type.
        batch: the number of images or sequences.
        device: where to make them; by default where the model is.
        modules: all of the model's, where they have been listed already.
        thin: as for :class:`~ghn_fast.graph.trace.guess.Maker`.
        run_method: runs methods of the model, which tell how many tokens an image takes.
    """
    model = unwrapped(model)
    maker = Maker(model, batch, device, modules, thin=thin)
    size = getattr(model, "expected_input_sz", None)
    if size is not None:
        shape = _image_shape(size)
        yield Guess(lambda last: maker.call(maker.zeros(*shape[:-1], last)), shape[-1:])
    if any(name.endswith(GRID) for name in maker.required):
        yield from maker.patches()
    if hasattr(getattr(model, "config", None), "model_type"):
        if run_method is not None:
            yield from placeholder_guesses(maker, run_method)
        yield from transformers_guesses(maker)
    yield from _torchvision_guesses(maker)
    yield from _guesses_by_layers(maker)
    fuller = Maker(model, batch, device, maker.modules, optional=True, thin=thin)
    if fuller.optional:
        yield from _guesses_by_layers(fuller)


def _guesses_by_layers(maker: Maker) -> Iterator[Guess]:
    kinds: set[type] = set()
    for layer in maker.modules:
        if type(layer) not in kinds and len(kinds) < _MOST_KINDS:
            found = list(_guesses_by(layer, maker))
            kinds |= {type(layer)} if found else set()
            yield from found
    channels = {3, maker.channels}
    for count in sorted(channels, key=lambda c: c != maker.channels):
        yield maker.images(count)


def _image_shape(size: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(size, int):
        return 3, size, size
    shape = tuple(int(s) for s in size)
    return (3, *shape) if len(shape) == 2 else shape


def _torchvision_guesses(maker: Maker) -> Iterator[Guess]:
    package, name = type(maker.model).__module__, type(maker.model).__name__
    if name == "Inception3":
        yield Guess(lambda size: maker.call(maker.zeros(3, size, size)), (299,))
    elif package.startswith("torchvision.models.detection"):
        yield Guess(lambda size: ((list(maker.zeros(3, size, size)),), {}), (DEFAULT_SIZE,))
    elif package.startswith("torchvision.models.optical_flow"):
        yield Guess(lambda size: maker.call(maker.zeros(3, size, size)), (128,))


def _guesses_by(layer: nn.Module, maker: Maker) -> Iterator[Guess]:
    """What a model gets whose first layer this may be."""

    def shaped(*before: int, after: int = 0, sizes: Sequence[int], most: int) -> Guess:
        """Of ``before``, then ``after`` times the size."""
        return Guess(
            lambda size: maker.call(maker.zeros(*before, *(size,) * after)), sizes, (1, most)
        )

    def sequences(width: int) -> Guess:
        return Guess(
            lambda length: maker.call(maker.zeros(length, width)), (SEQUENCE_LENGTH, 64), (1, 1024)
        )

    if isinstance(layer, nn.Embedding):
        count = layer.num_embeddings
        yield Guess(lambda n: maker.call(maker.ids(count, n)), (SEQUENCE_LENGTH, 64), (1, 1024))
    elif isinstance(layer, nn.RNNBase):
        yield sequences(layer.input_size)
    elif isinstance(layer, nn.MultiheadAttention):
        yield sequences(layer.embed_dim)
    elif isinstance(layer, nn.Linear):
        yield Guess(lambda width: maker.call(maker.zeros(width)), (layer.in_features,))
        yield sequences(layer.in_features)
    elif isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
        yield shaped(layer.in_channels, after=1, sizes=SIGNAL_LENGTHS, most=1 << 17)
    elif isinstance(layer, nn.Conv2d):
        yield maker.images(layer.in_channels)
    elif isinstance(layer, nn.Conv3d):
        yield shaped(layer.in_channels, _FRAMES, after=2, sizes=VIDEO_SIZES, most=512)
        yield shaped(layer.in_channels, after=3, sizes=(32, 64), most=128)
    elif isinstance(layer, nn.ConvTranspose2d):
        yield shaped(layer.in_channels, after=2, sizes=(1, 4, 8, 32), most=64)
    elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
        yield maker.images(getattr(layer, "num_features", getattr(layer, "num_channels", 3)))
    elif isinstance(layer, nn.BatchNorm1d):
        yield Guess(lambda width: maker.call(maker.zeros(width)), (layer.num_features,))
        yield shaped(layer.num_features, after=1, sizes=SIGNAL_LENGTHS, most=1 << 17)
    elif isinstance(layer, nn.LayerNorm):
        shape = tuple(layer.normalized_shape)
        yield Guess(lambda n: maker.call(maker.zeros(n, *shape)), (SEQUENCE_LENGTH,), (1, 1024))
        yield Guess(lambda last: maker.call(maker.zeros(*shape[:-1], last)), shape[-1:])
