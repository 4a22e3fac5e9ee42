"""What a model of transformers is called with, by its class and its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from ghn_fast.graph.trace.guess import (
    DEFAULT_SIZE,
    IMAGE_SIZES,
    SEQUENCE_LENGTH,
    Call,
    Guess,
    Maker,
)

_AUDIO_LENGTHS = (16000, 4000, 48000)
_SPECTRUM_LENGTHS = (64, 128, 1024)
_SEVERAL = (2, 3)
"""Images that are matched with each other; a whole one and its two halves (LLaVA-NeXT)."""
_IDS, _DECODED = "input_ids", "decoder_input_ids"
_MARKS = "image_embeds_position_mask"
"""Which tokens stand for what is seen, ``latent_query_num`` of them (Kosmos-2)."""
_FUSED_VIEWS = 4
"""Of a long sound: the whole of it and three pieces (CLAP, arXiv 2211.06687)."""


def transformers_guesses(maker: Maker) -> Iterator[Guess]:
    """By ``main_input_name``; with token ids beside images or sounds where a text part reads
    them."""
    config: Any = maker.model.config
    main = getattr(maker.model, "main_input_name", "input_ids")
    main = main if isinstance(main, str) else main[0]  # OneFormer names two
    if main == "input_ids":
        for others in (*_beside(maker, config), {}):
            yield Guess(partial(_reading, maker, config, others), (16, 8, 64), (1, 512))
        for name in (name for name in HEARD if name in maker.names):
            yield from HEARD[name](maker, config, texts(maker, config, SEQUENCE_LENGTH))
    elif main in HEARD:
        yield from HEARD[main](maker, config, _decoder(maker, config, SEQUENCE_LENGTH))
    elif main.startswith("pixel"):
        yield from pictures(maker, config, main)
    elif main == "past_values" and isinstance(getattr(config, "context_length", None), int):
        yield Guess(partial(_series, maker, config), (config.context_length,))


def texts(maker: Maker, config: Any, length: int) -> dict[str, Any]:
    text = getattr(config, "text_config", None) or config
    ids = maker.ids(_vocabulary(text), length)
    inputs = {"input_ids": ids, **_decoder(maker, config, length)}
    if "bbox" in maker.names:
        inputs["bbox"] = ids.new_zeros(*ids.shape, 4)
    return inputs


def _reading(maker: Maker, config: Any, others: dict[str, Any], length: int) -> Call:
    return (), {**texts(maker, config, length), **others}


def _beside(maker: Maker, config: Any) -> Iterator[dict[str, Any]]:
    """Texts of other kinds, such as proteins, that have an encoder; images that are read beside
    texts, if their size is known; then several of them."""
    for kind in re.findall(r"\b(\w+)_input_ids\b", " ".join(maker.names)):
        part = getattr(config, f"{kind}_encoder_config", None)
        if part is not None:
            ids = maker.ids(_vocabulary(part))
            yield {f"{kind}_input_ids": ids, f"{kind}_attention_mask": torch.ones_like(ids)}
    vision = _part(config, "vision_config")
    if (vision is config and "pixel_values" not in maker.names) or not _sides(vision):
        return
    for shape in _picture_shapes(maker, vision, _side(vision)):
        yield {"pixel_values": maker.zeros(*shape)}


def _vocabulary(config: Any) -> int:
    size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else 18


def _decoder(maker: Maker, config: Any, length: int) -> dict[str, Any]:
    """What an encoder's decoder reads: (B, T) tokens; one of sounds (B, T, channels)."""
    if not getattr(config, "is_encoder_decoder", False) or _DECODED not in maker.names:
        return {}
    text = _part(config, "decoder", "decoder_config", "text_config")
    ids, channels = maker.ids(_vocabulary(text), length), getattr(text, "num_channels", None)
    if text is not config and channels:
        ids = ids[..., None].repeat(1, 1, channels)
    return {_DECODED: ids}


def _part(config: Any, *names: str) -> Any:
    """The first configuration of a part that there is; else that of the whole."""
    parts = (getattr(config, name, None) for name in names)
    return next((part for part in parts if part is not None), config)


def _side(config: Any) -> int:
    size = next(iter(_sides(config)), DEFAULT_SIZE)
    return size if isinstance(size, int) else int(size[-1])


def _sides(config: Any) -> list[Any]:
    """Of images, as they are written down."""
    sizes = (getattr(config, name, None) for name in ("image_size", "input_size"))
    return [size for size in sizes if size]


def _picture_shapes(maker: Maker, config: Any, side: int) -> Iterator[tuple[int, ...]]:
    """Of one image or a video; where images are read one by one, of several in a row."""
    first = next((m for m in maker.modules if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    channels: int = getattr(first, "in_channels", 0) or getattr(config, "num_channels", 3)
    frames: int = getattr(config, "num_frames", 0) or getattr(config, "frames_per_clip", 0)
    if isinstance(first, nn.Conv3d):
        yield frames or 16, channels, side, side
    else:
        yield channels, side, side
        yield from ((n, channels, side, side) for n in ((frames,) if frames else _SEVERAL))


def pictures(maker: Maker, config: Any, name: str = "pixel_values") -> Iterator[Guess]:
    vision = getattr(config, "vision_config", None) or config
    marked = getattr(config, "latent_query_num", None) if _MARKS in maker.names else None
    length = marked or SEQUENCE_LENGTH
    ids = {key: maker.ids(maker.vocabulary, length) for key in maker.required if _IDS in key}
    if _IDS in maker.names and getattr(config, "text_config", None) is not None:
        ids[_IDS] = maker.ids(_vocabulary(config.text_config), length)
    if marked and _IDS in ids:
        ids[_MARKS] = torch.ones_like(ids["input_ids"], dtype=torch.bool)
    known = (_side(vision),) if _sides(vision) else ()
    sizes = tuple(dict.fromkeys((*known, *IMAGE_SIZES)))

    def guess(index: int, others: dict[str, Any]) -> Guess:
        def make(side: int) -> Call:
            shape = list(_picture_shapes(maker, vision, side))[index]
            extents = filter(_EXTENT.search, maker.required)
            inputs = {key: _extent(maker, key, shape) for key in extents}
            return (), {name: maker.ones(*shape), **others, **inputs}

        return Guess(make, sizes, (1, 1024))

    others = {**ids, **_decoder(maker, config, SEQUENCE_LENGTH)}
    for index, _ in enumerate(_picture_shapes(maker, vision, DEFAULT_SIZE)):
        yield guess(index, others)
    if ids:
        yield guess(0, {})
        yield Guess(partial(_reading, maker, config, {}), (SEQUENCE_LENGTH,))


def _extent(maker: Maker, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Heights and widths of images (B, 2), or which of their pixels are no padding."""
    size = (maker.batch, 2) if "size" in name else (maker.batch, *shape[:-3], *shape[-2:])
    value = shape[-1] if "size" in name else 1
    return torch.full(size, value, dtype=torch.int64, device=maker.device)


def _sounds(maker: Maker, config: Any, others: dict[str, Any]) -> Iterator[Guess]:
    """Waves, or the spectra that some models call values; ``others`` are given with waves."""
    bins = getattr(config, "num_mel_bins", None)
    if bins:
        length = getattr(config, "max_length", None) or 1024
        yield Guess(lambda n: ((), {"input_values": maker.zeros(n, bins)}), (length,), (1, 4096))
    yield Guess(lambda n: ((), {"input_values": maker.zeros(n)} | others), _AUDIO_LENGTHS)
    channels = getattr(config, "audio_channels", 1)
    step = getattr(config, "hop_length", None) or 1

    def heard(n: int) -> Call:
        inputs = {"input_values": maker.zeros(channels, n)}
        if "input_features" in maker.required:
            inputs["input_features"] = maker.zeros(n // step, _bins(maker, config))
        return (), inputs

    yield Guess(heard, _AUDIO_LENGTHS)


def _spectra(maker: Maker, config: Any, others: dict[str, Any]) -> Iterator[Guess]:
    """(B, bins, T), (B, T, bins) or, of one view or several, (B, views, T, bins); ``others`` are
    given with them."""
    bins = _bins(maker, config)
    config = _part(config, *_LISTENERS)
    views = _FUSED_VIEWS if getattr(config, "enable_fusion", False) else 1
    if "is_longer" in maker.names:
        longer = torch.ones(maker.batch, 1, dtype=torch.bool, device=maker.device)
        others = {**others, "is_longer": longer}
    positions = getattr(config, "max_source_positions", None)
    window = getattr(config, "n_window", None)
    known = (2 * size for size in (positions, window) if size)
    lengths = (*known, *_SPECTRUM_LENGTHS)

    def call(length: int, *shape: int) -> Call:
        inputs = {"input_features": maker.zeros(*shape), **others}
        for name in filter(_HEARD_MASK.fullmatch, maker.names):
            inputs[name] = torch.ones(maker.batch, length, dtype=torch.int64, device=maker.device)
        return (), inputs

    yield Guess(lambda length: call(length, bins, length), lengths, (1, 4096))
    yield Guess(lambda length: call(length, length, bins), lengths, (1, 4096))
    yield Guess(lambda length: call(length, views, length, bins), lengths, (1, 4096))


def _bins(maker: Maker, config: Any) -> int:
    """Of a spectrum: as it is written down, else what the first convolution reads."""
    config = _part(config, *_LISTENERS)
    names = (
        "input_size",
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_projection_input_dim",
        "input_dim",
    )
    first = next((m.in_channels for m in maker.modules if isinstance(m, nn.Conv1d)), 80)
    return next((getattr(config, name) for name in names if getattr(config, name, None)), first)


def _series(maker: Maker, config: Any, length: int) -> Call:
    """Values (B, T) or (B, T, channels) of a time series, and what is known of each step."""
    channels = getattr(config, "num_input_channels", None)
    size = getattr(config, "input_size", 1)
    width = (channels,) if channels else (size,) * (size > 1)
    past = length + max(getattr(config, "lags_sequence", None) or (0,))
    inputs = {"past_values": maker.zeros(past, *width)}
    if "past_time_features" in maker.names:
        features, ahead = config.num_time_features, config.prediction_length
        features += config.num_dynamic_real_features
        inputs["past_observed_mask"] = torch.ones_like(inputs["past_values"])
        inputs["past_time_features"] = maker.zeros(past, features)
        inputs["future_values"] = maker.zeros(ahead, *width)
        inputs["future_time_features"] = maker.zeros(ahead, features)
    return (), inputs


_LISTENERS = ("audio_config", "speech_config", "encoder_config", "semantic_model_config")
_EXTENT = re.compile("image_sizes|pixel.*mask")
"""Arguments that say how large images are."""
_HEARD_MASK = re.compile("((input_)?features?(_attention)?|padding)_mask")
"""Which steps of a spectrum are no padding."""
HEARD = {"input_features": _spectra, "input_values": _sounds}
