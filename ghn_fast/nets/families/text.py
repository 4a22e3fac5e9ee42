"""Models of text, to which a picture is one: BERT (arXiv 1810.04805), GPT-2 and 3 (2005.14165),
Llama (2302.13971)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ghn_fast.nets.families.attention import Attention, Rotation, SeparateAttention
from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import IMAGE_SIZE, Residual, Token, TokenMean, mlp, residuals
from ghn_fast.nets.families.transformer import pre_norm_layer
from ghn_fast.nets.families.words import Tables, Words

Block = Callable[[int, int, int, int], nn.Module]
"""Makes one of a width, with so many heads, a hidden width, and the number of words."""


def text(draw: Draw, num_classes: int) -> nn.Module:
    """A word for every patch of 2 to 8 pixels, two to twelve blocks of one kind."""
    patch, shades = draw.pick((2, 4, 4, 4, 8)), draw.pick((4, 6, 8))
    heads, layers = draw.pick((1, 2, 3, 4, 6, 8)), draw.pick((2, 3, 4, 5, 6, 7, 8, 10, 12))
    width = heads * draw.pick((16, 32, 32, 64))
    hidden = width * draw.pick((2, 3, 4, 4))
    block, types = draw.pick(((bert, 0), (bert, 2), (gpt, 0), (llama, 0)))
    tokens = 1 + (IMAGE_SIZE // patch) ** 2
    positions = 0 if block is llama else tokens
    parts: list[nn.Module] = [Words(patch, shades), Tables(shades, positions, width, types)]
    parts += [nn.LayerNorm(width)] if block is bert else []
    parts += [block(width, heads, hidden, tokens) for _ in range(layers)]
    if block is bert:
        pooler = nn.Linear(width, width), draw.pick((nn.Tanh, nn.Tanh, nn.ReLU))()
        ends = draw.pick(((TokenMean(),), (Token(0), *pooler), (Token(0), *pooler)))
    else:
        norm = nn.LayerNorm(width) if block is gpt else nn.RMSNorm(width)
        ends = norm, draw.pick((Token(-1), Token(-1), TokenMean()))
    return nn.Sequential(*parts, *ends, nn.Linear(width, num_classes, bias=block is bert))


def bert(width: int, heads: int, hidden: int, tokens: int) -> nn.Module:
    """Normalised after each sum."""
    attention, perceptron = SeparateAttention(width, heads), mlp(width, hidden, nn.GELU)
    return nn.Sequential(
        *(Residual(attention), nn.LayerNorm(width)), *(Residual(perceptron), nn.LayerNorm(width))
    )


def gpt(width: int, heads: int, hidden: int, tokens: int) -> nn.Module:
    """Normalised before each branch; no word sees what follows."""
    return pre_norm_layer(width, heads, hidden, partial(Attention, causal=True))


def llama(width: int, heads: int, hidden: int, tokens: int) -> nn.Module:
    """As GPT's, without biases and means."""
    attention = SeparateAttention(width, heads, Rotation(tokens, width // heads))
    return residuals(partial(nn.RMSNorm, width), attention, Gated(width, hidden))


class Gated(nn.Module):
    """A perceptron whose hidden values are gated (arXiv 2002.05202)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(channels, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, channels, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))
