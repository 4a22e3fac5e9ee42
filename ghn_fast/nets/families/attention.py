"""Attention in the ways that networks of several families have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attend(nn.Module):
    """What (N, heads, T, D) queries read of (N, heads, S, E) values, each by a softmax over keys.

    Causal queries see no keys that come after them; ``scale`` is of the products, by default as in
    arXiv 1706.03762.
    """

    def __init__(self, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.causal, self.scale = causal, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=self.causal, scale=self.scale
        )


class Product(nn.Module):
    """Of two matrices that are both computed."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class Attention(nn.Module):
    """Among (N, T, C) tokens; one linear layer makes queries, keys and values."""

    def __init__(self, channels: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.attend = Attend(causal)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(*parts.unbind(0)).transpose(1, 2).flatten(2))


class SeparateAttention(nn.Module):
    """Of (N, T, C) tokens, by default to each other; queries, keys and values have a layer each.

    With ``rotation`` as Llama's: causal, without biases.
    """

    def __init__(self, channels: int, heads: int, rotation: Rotation | None = None) -> None:
        super().__init__()
        self.heads, self.rotation = heads, rotation
        self.query, self.key, self.value, self.out = (
            nn.Linear(channels, channels, bias=rotation is None) for _ in range(4)
        )
        self.attend = Attend(causal=rotation is not None)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        seen = x if seen is None else seen
        pairs = (self.query, x), (self.key, seen), (self.value, seen)
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer, tokens in pairs
        )
        if self.rotation is not None:
            query, key = self.rotation(query), self.rotation(key)
        return self.out(self.attend(query, key, value).transpose(1, 2).flatten(2))


class Rotation(nn.Module):
    """Turns pairs of (N, heads, T, D) by angles that grow with T (arXiv 2104.09864)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        speeds = 10_000 ** (torch.arange(0, -channels, -2) / channels)
        angles = torch.arange(tokens).unsqueeze(1) * torch.cat([speeds, speeds])
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin
