"""Pictures as text: the words are colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.nets.families.parts import waves

_SIZE = 0.02 * 2**0.5
"""With which waves are as large as the random tables of BERT and GPT-2."""


class Words(nn.Module):
    """(N, 3, H, W) to (N, 1 + T) ids: 0, then which of ``shades``**3 colours each patch has."""

    def __init__(self, patch: int, shades: int) -> None:
        super().__init__()
        self.patch, self.shades = patch, shades

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        # Most normalised colours are between -2 and 2.
        shades = (patches.mean(dim=(4, 5)) + 2) * self.shades / 4
        red, green, blue = shades.long().clamp(0, self.shades - 1).flatten(2).unbind(1)
        return F.pad(1 + (red * self.shades + green) * self.shades + blue, (1, 0))


class Tables(nn.Module):
    """(N, T) words to (N, T, C): the sum of rows for a word, its type and its position.

    A GHN does not decode tables, and could learn nothing of rows that every network draws for
    itself: three of BERT's blocks that were trained while the words' rows were drawn anew at each
    step stayed at 10 % of the images. So rows are waves of the colour and of the position, which
    all networks have in common; with these the blocks had 36 % after 400 steps.

    Args:
        shades: of red, green and blue.
        positions: the most words; 0 for no such table.
        channels: C.
        types: as many rows, of zeros, all but the first for nothing; 0 for no such table.
    """

    def __init__(self, shades: int, positions: int, channels: int, types: int = 0) -> None:
        super().__init__()
        levels = torch.linspace(0, 6, shades)
        colours = _SIZE * waves(torch.cartesian_prod(levels, levels, levels), channels)
        self.words = _table(F.pad(colours, (0, 0, 1, 0)))
        self.types = _table(torch.zeros(types, channels)) if types else None
        places = torch.arange(positions).unsqueeze(1)
        self.positions = _table(_SIZE * waves(places, channels)) if positions else None

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        if self.types is not None:
            x = x + self.types(torch.zeros_like(words))
        if self.positions is not None:
            x = x + self.positions(torch.arange(words.shape[1], device=words.device))
        return x


def _table(rows: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(rows, freeze=False)
