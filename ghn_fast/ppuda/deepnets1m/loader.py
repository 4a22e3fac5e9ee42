"""``ppuda.deepnets1m.loader``: the networks of DeepNets-1M in batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ghn_fast.nets import DeepNets1M as CoreNets
from ghn_fast.nets.deepnets1m import SIZES
from ghn_fast.nets.stream import MAX_NODES
from ghn_fast.ppuda.deepnets1m.graph import Graph, GraphBatch

__all__ = ["MAX_NODES_BATCH", "DeepNets1M"]

MAX_NODES_BATCH = MAX_NODES
"""Training batches with more nodes are passed over."""
_MOST_REFUSALS = 1000


class DeepNets1M(Dataset[Graph]):
    """A split of DeepNets-1M as graphs; a `ghn_fast.DeepNets1M` with the public code's arguments.

    Networks are read from the published files where `nets_dir` has them, and sampled anew where
    it has not: then they are of the published distribution, but not the published ones.

    Args:
        split: train, val, test, search, wide, deep, dense, bnfree or predefined.
        nets_dir: the folder of the published files.
        virtual_edges: the longest path with a virtual edge; 1 for none.
        num_nets: at most so many networks.
        arch: only the network of this index.
        large_images: networks for 224 x 224 images.
        verbose: print how many networks there are.

    Raises:
        IndexError: there is no network `arch`.
        ValueError: an unknown split, or `virtual_edges` below 1.
    """

    def __init__(
        self,
        split: str = "train",
        nets_dir: str | Path = "./data",
        virtual_edges: int = 1,
        num_nets: int | None = None,
        arch: int | str | None = None,
        large_images: bool = False,
        verbose: bool = False,
    ) -> None:
        if virtual_edges < 1:
            raise ValueError(f"virtual_edges must be at least 1, not {virtual_edges}")
        self.split = split
        self.is_train = split == "train"
        self.virtual_edges = virtual_edges
        self.large_images = large_images
        self.nets = CoreNets(split, large_images=large_images, nets_dir=_files(nets_dir, split))
        size = len(self.nets) if num_nets is None else min(num_nets, len(self.nets))
        self._indices = range(size) if arch is None else _one(int(arch), size, split)
        if verbose:
            print(f"{len(self)} of {len(self.nets)} networks of the split {split}")

    @staticmethod
    def loader(meta_batch_size: int = 1, **kwargs: Any) -> Any:
        """Batches of graphs.

        Args:
            meta_batch_size: graphs in a training batch; other splits have one in each.
            kwargs: of :class:`DeepNets1M`.

        Returns:
            For "train" an iterator without end, in random order by PyTorch's generator; else
            something to iterate over any number of times, in order, that has a length.
        """
        nets = DeepNets1M(**kwargs)
        if nets.is_train:
            return _training_batches(nets, meta_batch_size)
        return DataLoader(nets, batch_size=1, collate_fn=GraphBatch)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, idx: int) -> Graph:
        return Graph.from_core(self.nets[self._indices[idx]], self.virtual_edges)


def _files(nets_dir: str | Path, split: str) -> Path | None:
    """The folder, if it has the files of the split."""
    if split == "predefined" or split not in SIZES:
        return None
    name = split if split in ("train", "search") else "eval"
    path = Path(nets_dir) / f"deepnets1m_{name}.hdf5"
    if path.is_file():
        return Path(nets_dir)
    warnings.warn(
        f"there is no {path}: networks of the split {split!r} are sampled, and are not the "
        "published ones",
        stacklevel=4,
    )
    return None


def _one(index: int, size: int, split: str) -> range:
    if not 0 <= index < size:
        raise IndexError(f"arch is {index}, but the split {split!r} has {size} networks")
    return range(index, index + 1)


def _training_batches(nets: DeepNets1M, size: int) -> Iterator[GraphBatch]:
    refused = 0
    while True:
        for indices in torch.randperm(len(nets)).split(size):
            batch = GraphBatch(nets[index] for index in indices.tolist())
            if sum(batch.n_nodes) <= MAX_NODES_BATCH:
                refused = 0
                yield batch
                continue
            refused += 1
            if refused == _MOST_REFUSALS:
                raise ValueError(
                    f"{refused} batches of {size} networks in a row have more than "
                    f"{MAX_NODES_BATCH} nodes; use a smaller meta_batch_size"
                )
