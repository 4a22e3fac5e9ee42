"""What distinguishes one GHN from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ghn_fast.graph import CHANNEL_NODE_TYPES, NODE_TYPES

OWN_SETTINGS = ("flat_kernels", "channel_nodes", "raised_layer_scales")
"""What only GHNs of this package may have; off for the published ones."""
IMAGE_SETTINGS = ("mean", "std", "image_size")
"""What only GHNs of this package say: of the images that they were trained with."""
MOST_SHIFTED = 1000
"""What pixels from 0 to 1 are shifted by, or multiplied or divided by, at most."""
LARGEST_IMAGE_SIZE = 1024
"""A file says at which size pictures are decoded, so that it must not be any."""
HYPERNETS = ("gatedgnn", "mlp", "graphormer")
DECODERS = ("conv", "mlp", "low_rank")


@dataclass(frozen=True)
class GHNConfig:
    """Configuration of a GHN, field for field as in the published checkpoints.

    Attributes:
        max_shape: (out, in, height, width) of the largest block that is decoded; larger
            parameters are tiled from it.
        num_classes: outputs of the classification layers it predicts.
        hypernet: ``"gatedgnn"``, ``"mlp"`` for the baseline that ignores the edges, or
            ``"graphormer"`` (GHN-3, whose configuration is a :class:`GHN3Config`).
        decoder: ``"conv"``, ``"mlp"`` (the baseline of arXiv 2110.13100, appendix), or
            ``"low_rank"`` (LoGAH, whose configuration is a :class:`LoGAHConfig`).
        weight_norm: normalise predicted parameters (arXiv 2110.13100, section 3.4).
        ve: virtual edges (section 3.3).
        layernorm: layer norm of the node embeddings before decoding.
        hid: width of the node embeddings, a multiple of 4.
        flat_kernels: a linear layer over flattened maps of C x h x w is decoded as what it
            computes, a convolution with a kernel (out, C, h, w). The published GHNs decode a
            matrix (out, C * h * w), whose blocks repeat without regard to the maps.
        channel_nodes: its graphs show where channels are split and shuffled, and weights behind a
            shuffle are decoded for the channels that they multiply, by the places that these come
            from (:mod:`ghn_fast.graph.trace.channels`). Those of the published GHNs do not.
        raised_layer_scales: layer scales that have the small constant which training from random
            weights starts from (arXiv 2103.17239, section 2) become 0.1, so that a branch whose
            weights are predicted takes part (:mod:`ghn_fast.ghn.place.follow`). With the published
            GHNs they keep their values.
        mean, std: by which the channels of the images that it was trained with were normalised;
            empty where nothing says so.
        image_size: height and width of those images, at most 1024, or 0.

    Raises:
        ValueError: a value that no GHN can have.

    Examples:
        >>> ghn_fast.GHNConfig(hid=16, max_shape=(32, 32, 3, 3)).decoder
        'conv'
    """

    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    num_classes: int = 10
    hypernet: str = "gatedgnn"
    decoder: str = "conv"
    weight_norm: bool = True
    ve: bool = True
    layernorm: bool = True
    hid: int = 32
    flat_kernels: bool = False
    channel_nodes: bool = False
    raised_layer_scales: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_shape", tuple(int(size) for size in self.max_shape))
        if len(self.max_shape) != 4 or min(self.max_shape) < 1:
            raise ValueError(f"max_shape must be four positive sizes, not {self.max_shape}")
        if self.max_shape[2] != self.max_shape[3]:
            raise ValueError(f"max_shape must be square in space, not {self.max_shape}")
        if self.hypernet not in HYPERNETS:
            raise ValueError(f"hypernet must be one of {HYPERNETS}, not {self.hypernet!r}")
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {DECODERS}, not {self.decoder!r}")
        if self.decoder == "mlp" and self.max_shape[0] != self.max_shape[1]:
            raise ValueError(
                f"max_shape must have as many outputs as inputs for decoder='mlp', whose published "
                f"checkpoints tell neither from the other, not {self.max_shape}"
            )
        if self.hid < 4 or self.hid % 4:
            raise ValueError(f"hid must be a positive multiple of 4, not {self.hid}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be positive, not {self.num_classes}")
        for name, smallest in (("mean", -MOST_SHIFTED), ("std", 1 / MOST_SHIFTED)):
            values = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, values)
            in_range = all(smallest <= value <= MOST_SHIFTED for value in values)
            if len(values) not in (0, 3) or not in_range:
                raise ValueError(
                    f"{name} must be a number from {smallest:g} to {MOST_SHIFTED} for each of "
                    f"three channels, not {values}"
                )
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must be given together")
        if not 0 <= self.image_size <= LARGEST_IMAGE_SIZE:
            raise ValueError(
                f"image_size must be from 0 to {LARGEST_IMAGE_SIZE}, not {self.image_size}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GHNConfig:
        """From the dictionary in a checkpoint.

        Raises:
            ValueError: a field that is not known.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown settings of a GHN: {', '.join(unknown)}")
        return cls(**values)

    @property
    def node_types(self) -> tuple[str, ...]:
        """The types that nodes of its graphs have, in the order of their embedding."""
        return CHANNEL_NODE_TYPES if self.channel_nodes else NODE_TYPES

    @property
    def decodes_embeddings(self) -> bool:
        """Whether such GHNs were trained on networks that look up rows of a table."""
        return False

    @property
    def is_of_language(self) -> bool:
        """Whether it was trained on language models, whose graphs tell more (LoGAH)."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The fields; published checkpoints and their readers do not know those of this package."""
        values = asdict(self)
        for name in (*OWN_SETTINGS, *IMAGE_SETTINGS):
            if not values[name]:
                del values[name]
        return values
