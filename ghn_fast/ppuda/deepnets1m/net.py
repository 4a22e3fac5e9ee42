"""``ppuda.deepnets1m.net``: DeepNets-1M networks, which there return a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ghn_fast._system.batch_norm import track_statistics
from ghn_fast._system.collection import uncollected
from ghn_fast.nets import Genotype
from ghn_fast.nets import Network as CoreNetwork
from ghn_fast.nets.space.network import _fresh, _ghost

__all__ = ["Network"]


class Network(CoreNetwork):
    """A `ghn_fast.Network` with the arguments and the result of the public code.

    Args:
        C, num_classes, genotype, n_cells, ks, is_imagenet_input, stem_pool, stem_type, preproc,
            C_mult, fc_layers, fc_dim, glob_avg: see :class:`ghn_fast.Network`.
        is_vit: follows from the genotype; checked where it is given.
        norm: with "bn-track" batch normalisation keeps running statistics, with another name that
            begins with "bn" it keeps none, with None there is no normalisation.
        auxiliary: an auxiliary classifier, which is not offered.
        light: parameters without memory, to be replaced by predicted ones in training a GHN.

    Raises:
        NotImplementedError: `auxiliary`.
        TypeError, ValueError: an argument that describes no network; the message says which.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        genotype: Genotype | Mapping[str, Any],
        n_cells: int,
        ks: int = 3,
        is_imagenet_input: bool = True,
        stem_pool: bool = False,
        stem_type: int = 0,
        is_vit: bool | None = None,
        norm: str | None = "bn-track",
        preproc: bool = True,
        C_mult: int = 2,
        fc_layers: int = 0,
        fc_dim: int = 0,
        glob_avg: bool = True,
        auxiliary: bool = False,
        light: bool = False,
    ) -> None:
        if auxiliary:
            raise NotImplementedError("networks have no auxiliary classifier; use auxiliary=False")
        with uncollected():
            super().__init__(
                *(C, num_classes, genotype, n_cells, ks, is_imagenet_input, stem_pool, stem_type),
                *(norm, preproc, C_mult, fc_layers, fc_dim, glob_avg),
                build=_ghost if light else _fresh,
            )
        if is_vit is not None and is_vit != self._is_vit:
            raise ValueError(f"is_vit is {is_vit}, but the genotype says {self._is_vit}")
        if norm is not None and "track" in norm and not light:
            track_statistics(self)
        self._n_cells = n_cells

    @property
    def drop_path_prob(self) -> float:
        """Always 0: paths are not dropped."""
        return 0.0

    @drop_path_prob.setter
    def drop_path_prob(self, value: float) -> None:
        if value:
            raise NotImplementedError(f"paths are not dropped; drop_path_prob is {value}, not 0")

    def forward(self, input: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The (B, num_classes) logits of (B, 3, H, W) images, and None for auxiliary ones."""
        return super().forward(input), None
