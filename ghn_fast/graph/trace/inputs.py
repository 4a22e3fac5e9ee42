"""What to call a model with, worked out from the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_SIZE = 224
_SEQUENCE_LENGTH = 16
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_FIRST_LAYERS = (nn.Embedding, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def unwrapped(model: nn.Module) -> nn.Module:
    """What ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` wrapped."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, _PARALLEL):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def guess_inputs(
    model: nn.Module, batch: int = 2, device: torch.device | str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for one call of the model.

    An ``expected_input_sz`` attribute (a size or (channels, height, width)), timm's
    ``pretrained_cfg``, a transformers ``config``, torchvision's Inception (299), detection, video
    and optical flow models are known; everything else gets 3 x 224 x 224 images, or token ids
    where the first layer is an embedding.

    Args:
        model: may be on any device and of any floating point type.
        batch: the number of images or sequences.
        device: where to make them; by default where the model is.
    """
    model = unwrapped(model)
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def images(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, dtype=dtype, device=device)

    size = getattr(model, "expected_input_sz", None)
    if size is not None:
        return (images(*_image_shape(size)),), {}
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if config is not None:
        return (images(*_timm_shape(config)),), {}
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "model_type"):
        return (), _transformers_inputs(model, config, images, device)
    return _torchvision_inputs(model, images, device), {}


def _image_shape(size: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(size, int):
        return 3, size, size
    shape = tuple(int(s) for s in size)
    return (3, *shape) if len(shape) == 2 else shape


def _timm_shape(config: Any) -> tuple[int, ...]:
    size = config.get("input_size") if isinstance(config, Mapping) else config.input_size
    return tuple(size or (3, DEFAULT_SIZE, DEFAULT_SIZE))


def _transformers_inputs(
    model: nn.Module, config: Any, images: Any, device: torch.device | str
) -> dict[str, Any]:
    vision = getattr(config, "vision_config", None)
    text = getattr(config, "text_config", None)
    inputs: dict[str, Any] = {}
    has_images = any(hasattr(c, "image_size") for c in (config, vision) if c is not None)
    if has_images:
        inputs["pixel_values"] = images(*_config_image(vision or config))
    elif hasattr(config, "num_channels") and hasattr(config, "depths"):
        inputs["pixel_values"] = images(config.num_channels, DEFAULT_SIZE, DEFAULT_SIZE)
    if not inputs or text is not None:
        batch = images().shape[0]
        tokens = torch.arange(2, 2 + _SEQUENCE_LENGTH, device=device)
        limit = getattr(text or config, "vocab_size", _SEQUENCE_LENGTH + 2)
        ids = (tokens % limit).expand(batch, -1).contiguous()
        inputs["input_ids"] = ids
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids.clone()
    return inputs


def _config_image(config: Any) -> tuple[int, ...]:
    size = config.image_size
    pair = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return (getattr(config, "num_channels", 3), *pair)


def _torchvision_inputs(
    model: nn.Module, images: Any, device: torch.device | str
) -> tuple[Any, ...]:
    package, name = type(model).__module__, type(model).__name__
    if name == "Inception3":
        return (images(3, 299, 299),)
    if package.startswith("torchvision.models.detection"):
        return (list(images(3, DEFAULT_SIZE, DEFAULT_SIZE)),)
    if package.startswith("torchvision.models.optical_flow"):
        return images(3, 128, 128), images(3, 128, 128)
    if package.startswith("torchvision.models.video"):
        return (images(3, 16, DEFAULT_SIZE, DEFAULT_SIZE),)
    first = next((m for m in model.modules() if isinstance(m, _FIRST_LAYERS)), None)
    if isinstance(first, nn.Embedding):
        batch = images().shape[0]
        ids = torch.arange(_SEQUENCE_LENGTH, device=device) % first.num_embeddings
        return (ids.expand(batch, -1).contiguous(),)
    channels = getattr(first, "in_channels", 3)
    if isinstance(first, nn.Linear):
        return (images(first.in_features),)
    if isinstance(first, nn.Conv1d):
        return (images(channels, DEFAULT_SIZE),)
    if isinstance(first, nn.Conv3d):
        return (images(channels, 16, DEFAULT_SIZE, DEFAULT_SIZE),)
    return (images(channels, DEFAULT_SIZE, DEFAULT_SIZE),)
