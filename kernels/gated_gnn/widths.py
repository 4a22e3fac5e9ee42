"""Sizes that the kernels are compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import triton
from torch import Tensor

_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])

ROWS = 4 if _TRITON >= (3, 5) else 16
"""Nodes of a level that are processed at once; levels of DeepNets-1M have 1.7 on average.

A product of fewer than 16 rows is refused by Triton before 3.5, which PyTorch before 2.9 brings.
"""

_BLOCK_HEARD = 64


@dataclass
class Widths:
    """Of states and of the hidden layers; ``width_ve`` is 0 where there is no mlp_ve."""

    hid: int
    width: int
    width_ve: int

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> Widths:
        return cls(len(weights[3]), len(weights[0]), len(weights[8]) if len(weights) > 8 else 0)

    @property
    def hidden(self) -> int:
        return self.width + self.width_ve

    @property
    def said(self) -> int:
        return (2 if self.width_ve else 1) * self.hid

    def kept(self) -> list[int]:
        """Of what a pass keeps of a node: m, gates, hidden and said."""
        return [self.hid, 4 * self.hid, self.hidden, self.said]

    def options(self, ascending: bool) -> dict[str, int | bool]:
        """Of a pass that visits the nodes in this order."""
        return {
            "ASCENDING": ascending,
            "HID": self.hid,
            "WIDTH": self.width,
            "WIDTH_VE": self.width_ve,
            "ROWS": ROWS,
            "BLOCK_H": _block(self.hid),
            "BLOCK_W": _block(max(self.width, self.width_ve)),
            "BLOCK_HEARD": _BLOCK_HEARD,
            "num_warps": 4 if self.hid <= 64 else 8,
            # Loads must not be moved before the barriers.
            "num_stages": 1,
        }


def _block(size: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), 64)
