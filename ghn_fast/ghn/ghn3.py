"""GHN-3: a Graphormer in place of the gated graph network (arXiv 2303.04143)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.decode.decoder import ConvDecoder
from ghn_fast.ghn.embed.graphormer import MAX_DEGREE, MAX_INPUT_DISTANCE, Graphormer, centrality
from ghn_fast.ghn.model import GHN
from ghn_fast.graph import GraphBatch

# hid (also the channels of the largest block), layers and heads of each published size.
SIZES = {"t": (64, 3, 8), "s": (128, 5, 16), "l": (256, 12, 16), "xl": (384, 24, 16)}


@dataclass(frozen=True)
class GHN3Config(GHNConfig):
    """Configuration of a GHN-3; the defaults are those of the smallest published one, T/m8.

    Attributes:
        layers: of the Graphormer.
        heads: of its attention, a divisor of ``hid``.
    """

    max_shape: tuple[int, int, int, int] = (64, 64, 16, 16)
    num_classes: int = 1000
    hypernet: str = "graphormer"
    hid: int = 64
    layers: int = 3
    heads: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        decoder = type(self).decoder
        if self.hypernet != "graphormer" or self.decoder != decoder or not self.ve:
            raise ValueError(f"a GHN-3 is a graphormer with virtual edges and a {decoder} decoder")
        if self.layers < 1:
            raise ValueError(f"layers must be positive, not {self.layers}")
        if self.heads < 1 or self.hid % self.heads:
            raise ValueError(f"heads must divide hid {self.hid}, {self.heads} do not")


class GHN3(GHN):
    """A GHN-3 (arXiv 2303.04143).

    Parameter names and mathematics are those of the published checkpoints.
    """

    config: GHN3Config
    interpolates = True

    def __init__(self, config: GHN3Config) -> None:
        super().__init__(config)
        hid = config.hid
        self.decoder: CentredConvDecoder
        self.centrality_embed_in = nn.Embedding(MAX_DEGREE + 1, hid)
        self.centrality_embed_out = nn.Embedding(MAX_DEGREE + 1, hid)
        self.input_dist_embed = nn.Embedding(MAX_INPUT_DISTANCE + 1, hid)
        self._initialise()

    def _make_gnn(self, config: GHNConfig) -> nn.Module:
        assert isinstance(config, GHN3Config)
        return Graphormer(config.hid, config.layers, config.heads)

    def _make_decoder(self, config: GHNConfig) -> ConvDecoder:
        return CentredConvDecoder(config.hid, config.max_shape, config.num_classes)

    def _propagate(self, x: Tensor, batch: GraphBatch) -> Tensor:
        degree_in, degree_out, depth = centrality(batch)
        x = x + self.centrality_embed_in(degree_in) + self.centrality_embed_out(degree_out)
        propagated: Tensor = self.gnn(x + self.input_dist_embed(depth), batch)
        return propagated

    def _resize(self, blocks: Tensor, wanted: Sequence[int]) -> Tensor:
        if min(wanted[2:]) <= min(blocks.shape[3:]):
            return super()._resize(blocks, wanted)
        grid = F.interpolate(blocks.flatten(0, 1), size=tuple(wanted[2:]), mode="bilinear")
        return grid.unflatten(0, blocks.shape[:2])

    @torch.no_grad()
    def _initialise(self) -> None:
        """Narrow embeddings, and small predictions at first, which larger GHNs need to train."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)
        self._shrink_decoder()

    def _shrink_decoder(self) -> None:
        decoder = self.decoder
        for head in (self.decoder_1d.fc, decoder.conv, decoder.class_layer_predictor):
            last = cast(nn.Linear, head[-1])
            last.weight.div_(5)
            last.bias.zero_()


class CentredConvDecoder(ConvDecoder):
    """Decodes the centre of the largest block, where GHN-2 takes its corner (section 3.3)."""

    def _pointwise_layer(self, in_features: int, out_features: int) -> nn.Module:
        """The published checkpoints of GHN-3 hold these layers as linear."""
        return nn.Linear(in_features, out_features)

    def _span(self, size: int, most: int) -> slice:
        start = max(0, most // 2 - size // 2)
        return slice(start, start + size)


def ghn3(size: str = "t", num_classes: int = 1000, **config: Any) -> GHN3:
    """A GHN-3 of a published size: ``"t"``, ``"s"``, ``"l"`` (T, S and L/m8) or ``"xl"`` (XL/m16).

    Raises:
        ValueError: another size, or an unknown field of :class:`GHN3Config`.

    Examples:
        >>> ghn_fast.ghn3(num_classes=10).config.hypernet
        'graphormer'
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
    hid, layers, heads = SIZES[size]
    values = {"max_shape": (hid, hid, 16, 16), "hid": hid, "layers": layers, "heads": heads}
    chosen = GHN3Config.from_dict({**values, "num_classes": num_classes, **config})
    return GHN3(cast(GHN3Config, chosen))
