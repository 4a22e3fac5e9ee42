"""LoGAH: a GHN-3 with a low-rank decoder (arXiv 2405.16287)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.decode.low_rank import LowRankDecoder, rounded_channels, weight_and_bias
from ghn_fast.ghn.embed.shape_encoder import ShapeEncoder
from ghn_fast.ghn.ghn3 import GHN3, GHN3Config
from ghn_fast.ghn.mlp import MLP
from ghn_fast.ghn.place.plan import Group
from ghn_fast.ghn.place.tiling import repeat
from ghn_fast.graph import LANGUAGE_NODE_TYPES

# hid, layers, heads, rank and the side of the largest block of each size of the paper (table 1).
SIZES = {
    "tiny": (64, 3, 8, 32, 2048),
    "small": (128, 5, 16, 90, 2048),
    "base": (256, 5, 16, 128, 2048),
    "large": (256, 12, 16, 256, 2560),
}

VOCABULARIES = (32000, 50257, 128256)
"""Of Llama 2, GPT-2 and Llama 3: numbers of channels that language models add."""


@dataclass(frozen=True)
class LoGAHConfig(GHN3Config):
    """Configuration of a LoGAH, with the names of the published checkpoints.

    Attributes:
        lora_r: rank of what is decoded, r.
        max_ck_lora: rows of each factor, K; no weight has more channels times kernel size.
        use_1d_decoder: vectors have a decoder of their own; else they are a column of a product.
        language: it knows the node types and vocabularies of language models.
    """

    max_shape: tuple[int, int, int, int] = (2048, 2048, 16, 16)
    num_classes: int = 10
    decoder: str = "low_rank"
    lora_r: int = 32
    max_ck_lora: int = 32768
    use_1d_decoder: bool = False
    language: bool = False

    @property
    def decodes_embeddings(self) -> bool:
        return True

    @property
    def is_of_language(self) -> bool:
        return self.language

    @property
    def node_types(self) -> tuple[str, ...]:
        return LANGUAGE_NODE_TYPES if self.language else super().node_types

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language and self.channel_nodes:
            raise ValueError("graphs of language models show no channel_nodes")
        if self.lora_r < 1 or self.max_ck_lora < 2 * self.lora_r:
            raise ValueError(
                f"lora_r must be positive and max_ck_lora at least twice as large, not "
                f"{self.lora_r} and {self.max_ck_lora}"
            )


class LoGAH(GHN3):
    """A LoGAH (arXiv 2405.16287).

    Parameter names and mathematics are those of the published checkpoints, but for layers that
    these hold and do not use.
    """

    config: LoGAHConfig
    decoder: LowRankDecoder  # type: ignore[assignment]

    def __init__(self, config: LoGAHConfig) -> None:
        super().__init__(config)
        hid = config.hid
        if config.use_1d_decoder:
            self.decoder_1d = MLP(hid, (2 * hid, hid), last_relu=False)
            self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(hid // 2, config.num_classes))
        else:
            del self.decoder_1d, self.bias_class

    def _make_shape_encoder(self, config: GHNConfig) -> ShapeEncoder:
        assert isinstance(config, LoGAHConfig)
        larger = VOCABULARIES if config.language else ()
        return ShapeEncoder(config.hid, config.num_classes, config.max_shape, larger)

    def _make_decoder(self, config: GHNConfig) -> LowRankDecoder:  # type: ignore[override]
        assert isinstance(config, LoGAHConfig)
        return LowRankDecoder(config.hid, config.lora_r, config.max_ck_lora)

    def _shrink_decoder(self) -> None:
        """Nothing: weights are products of two small factors, and normalised."""

    def _decode(self, x: Tensor, rule: str, shape: Sequence[int], fan_in: float | None) -> Tensor:
        """The classification layer has no head of its own."""
        if rule == "embedding":
            return repeat(self._kernels(x, (*shape, 1, 1)).flatten(3).squeeze(3), shape)
        if rule == "class_weight":
            rule = "weight"
        return super()._decode(x, rule, shape, fan_in)

    def _decode_groups(
        self, embeddings: Tensor, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Tensor]]:
        for group, tensors in super()._decode_groups(embeddings, groups):
            if group.std is not None and group.rule in ("weight", "transposed_weight"):
                spread = tensors.flatten(1).std(dim=1) + 1e-7
                scale = group.std / (group.factor * spread)
                tensors = tensors * scale.view(-1, *(1,) * (tensors.dim() - 1))
            yield group, tensors

    def _vectors_of(self, x: Tensor, rule: str, length: int) -> Tensor:
        if self.config.use_1d_decoder:
            return super()._vectors_of(x, rule, length)
        count = rounded_channels(length, self.config.max_shape[0])
        column = weight_and_bias(self.decoder, x, min(count, self.config.max_ck_lora // 2))
        return column[:, 0 if rule == "norm_weight" else 1]

    def _kernels(self, x: Tensor, wanted: Sequence[int]) -> Tensor:
        out, channels, height, width = wanted
        most_out, most_in = self.config.max_shape[:2]
        rows = self.config.max_ck_lora
        size = (
            min(out, most_out, rows // height),
            # The channels of a table of positions have no other limit.
            min(channels, most_in if out > 1 else channels, rows // width),
        )
        return self.decoder(x, (*size, height, width))


def logah(size: str = "tiny", num_classes: int = 10, **config: Any) -> LoGAH:
    """A LoGAH of a published size: ``"tiny"``, ``"small"``, ``"base"`` or ``"large"``.

    They have 2.5, 21, 78 and 289 million parameters.

    Raises:
        ValueError: another size, or an unknown field of :class:`LoGAHConfig`.

    Examples:
        >>> import ghn_fast.ghn
        >>> sum(p.numel() for p in ghn_fast.ghn.logah("tiny").parameters()) // 10_000
        254
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
    hid, layers, heads, rank, side = SIZES[size]
    values = {
        "max_shape": (side, side, 16, 16),
        "hid": hid,
        "layers": layers,
        "heads": heads,
        "lora_r": rank,
        "max_ck_lora": 16 * side,
    }
    chosen = LoGAHConfig.from_dict({**values, "num_classes": num_classes, **config})
    return LoGAH(cast(LoGAHConfig, chosen))
