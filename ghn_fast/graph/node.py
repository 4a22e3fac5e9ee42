"""One node of a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ghn_fast.graph.layout import Layout, Origins, Storage


@dataclass(frozen=True)
class Node:
    """One node of a :class:`ghn_fast.graph.Graph`.

    Attributes:
        type: one of :data:`ghn_fast.graph.types.NODE_TYPES`, or of the longer lists there.
        name: the parameter's name, or the operation's (``"input"``, ``"sum"``, ``"max_pool"``).
        shape: of the parameter; of weights (out, in, \\*kernel), but of transposed convolutions as
            they are stored; (1, 1, kh, kw) for max and average pooling; None for the other
            operations.
        parameter: the name in ``model.named_parameters()``; None for operations.
        bias: for normalisation layers, the bias that is predicted together with the weight.
        kernel: for linear layers over flattened maps, how the weight is the kernel (out,
            channels, height, width) of a convolution over the map.
        storage: of the parameter, where it is not stored as ``shape`` says, or holds a stack of
            such weights.
        origins: behind a shuffle of channels, which channels the parameter is for (and ``bias``
            too), in graphs of :data:`ghn_fast.graph.types.CHANNEL_NODE_TYPES`.
        factor: of a weight that its layer multiplies by a constant before it computes with it, as
            with equalised learning rates (arXiv 1710.10196, section 4.1).
    """

    type: str
    name: str
    shape: tuple[int, ...] | None = None
    parameter: str | None = None
    bias: str | None = None
    kernel: Layout | None = None
    storage: Storage | None = None
    origins: Origins | None = None
    factor: float = 1.0

    @property
    def way(self) -> tuple[object, ...]:
        """All that lies between the parameter as it is stored and the layer's weight."""
        return self.kernel, self.storage, self.origins, self.factor

    def over_map(self) -> Node:
        """The node of the convolution that a linear layer over flattened maps is; others as
        they are."""
        if self.kernel is None or self.shape is None:
            return self
        storage = self._stored(self.kernel)
        return replace(self, shape=self.kernel.shape(self.shape), kernel=None, storage=storage)

    def by_origins(self) -> Node:
        """The node of a layer whose channels are in the places that they come from; others as
        they are."""
        if self.origins is None:
            return self
        return replace(self, origins=None, storage=self._stored(self.origins))

    def _stored(self, last: Layout | Origins) -> Storage:
        storage = self.storage or Storage(self.shape or (), ())
        return Storage(storage.shape, (*storage.layouts, last))
