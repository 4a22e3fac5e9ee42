"""Meta-batches of DeepNets-1M networks without end, for a `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info

from ghn_fast.graph.batch import GraphBatch
from ghn_fast.nets.deepnets1m import DeepNets1M
from ghn_fast.nets.generate.philox import Stream

MAX_NODES = 2200
"""The published limit of the nodes of a meta-batch."""
STREAM = 200
"""The number of the random stream that chooses networks."""
_ATTEMPTS = 1 << 20


class MetaBatches(IterableDataset[GraphBatch]):
    """An endless stream of meta-batches; meta-batch `step` is a pure function of `step`.

    The networks of a meta-batch are drawn independently from all networks; where they have more
    nodes than the limit, all are drawn again, as in the published sampler (arXiv 2110.13100,
    appendix B). So the position in the stream is one integer, the same for any number of workers,
    and any part of it can be made anywhere::

        stream = MetaBatches(nets, meta_batch=8, start=resumed_step, rank=rank, num_ranks=ranks)
        loader = DataLoader(stream, batch_size=None, num_workers=4, pin_memory=True)
        for step, graphs in enumerate(loader, resumed_step):
            ...

    Args:
        nets: the networks.
        meta_batch: how many make a meta-batch.
        max_nodes: limit of the sum of their nodes, None for none.
        seed: of the choice of networks.
        start: the first step; each step has a meta-batch for every rank.
        rank, num_ranks: which meta-batch of each step this process gets.

    Raises:
        ValueError: a number out of range, or a data set without networks.
    """

    def __init__(
        self,
        nets: DeepNets1M,
        meta_batch: int = 8,
        max_nodes: int | None = MAX_NODES,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if meta_batch < 1 or start < 0 or not 0 <= rank < num_ranks or len(nets) == 0:
            raise ValueError(
                f"cannot draw meta-batches of {meta_batch} of {len(nets)} networks from step "
                f"{start} on for rank {rank} of {num_ranks}"
            )
        self.nets = nets
        self.meta_batch = meta_batch
        self.max_nodes = max_nodes
        self.seed = seed
        self.start = start
        self.rank = rank
        self.num_ranks = num_ranks

    def __iter__(self) -> Iterator[GraphBatch]:
        # A loader takes meta-batches from its workers in turn, so that the order is that of steps.
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        step = self.start + number
        while True:
            yield self.batch(step)
            step += workers

    def batch(self, step: int) -> GraphBatch:
        """The meta-batch of a step.

        Raises:
            ValueError: hardly any networks are small enough for the limit.
        """
        stream = Stream(self.seed, STREAM, step * self.num_ranks + self.rank)
        for _ in range(_ATTEMPTS):
            batch = self._collate([_below(stream, len(self.nets)) for _ in range(self.meta_batch)])
            if self.max_nodes is None or int(batch.offsets[-1]) <= self.max_nodes:
                return batch
        raise ValueError(f"no {self.meta_batch} networks have at most {self.max_nodes} nodes")

    def _collate(self, indices: list[int]) -> GraphBatch:
        nets = self.nets
        if not nets.is_sampled:
            return GraphBatch([nets[index] for index in indices])
        return nets.arrays(indices)[0]


def _below(stream: Stream, limit: int) -> int:
    """An integer from 0 to limit - 1, which may be larger than a word."""
    word = (stream.below(1 << 32) << 32) | stream.below(1 << 32)
    return (word * limit) >> 64
