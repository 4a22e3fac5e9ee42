"""DeepNets-1M (arXiv 2110.13100, section 3): networks as graphs, sampled or read from files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ghn_fast._core import core
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.graph.graph import Graph
from ghn_fast.nets.generate.graphs import graph_of
from ghn_fast.nets.generate.sampler import SPLITS, sample_net_args
from ghn_fast.nets.published.files import PublishedNets
from ghn_fast.nets.space.genotypes import Genotype, to_dict
from ghn_fast.ops.shortest_paths import MAX_DISTANCE

SIZES = {
    "train": 1_000_000,
    "val": 500,
    "test": 500,
    "wide": 100,
    "deep": 100,
    "dense": 100,
    "bnfree": 100,
    "search": 100_000,
    "predefined": 2,
}
"""The number of networks in each split."""


class DeepNets1M(Dataset[Graph]):
    """The networks of a split as graphs; `Network(**nets[i].net_args, ...)` is the network itself.

    Nothing is downloaded: network i is sampled when it is asked for and is the same on every
    machine. With `nets_dir`, published files are read instead.

    Args:
        split: one of `ghn_fast.nets.SPLITS`.
        seed: of the sampled networks. The evaluation splits are those of seed 0.
        num_nets: how many networks, the published number if None. Without files, "train" and
            the others can have more than were published.
        large_images: networks for 224 x 224 images and, unless `num_classes` is given, 1000
            classes, instead of 32 x 32 and 10.
        nets_dir: folder with `deepnets1m_{train,search,eval}.hdf5` and the JSON files that belong
            to them (`deepnets1m_train_meta.json`).
        num_classes: outputs of the networks in the graphs.

    Raises:
        ValueError: an unknown split or an impossible number of networks.
        FileNotFoundError, NetsFileError: a file in `nets_dir` is missing or damaged.

    Examples:
        >>> nets = ghn_fast.DeepNets1M(split="test")
        >>> len(nets), nets[0]
        (500, ...)
        >>> network = ghn_fast.Network(num_classes=10, is_imagenet_input=False, **nets[0].net_args)
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        num_nets: int | None = None,
        large_images: bool = False,
        nets_dir: str | Path | None = None,
        num_classes: int | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        self.split = split
        self.seed = seed
        self.large_images = large_images
        self.num_classes = num_classes or (1000 if large_images else 10)
        self._published = None
        size = SIZES[split]
        if nets_dir is not None and split != "predefined":
            self._published = PublishedNets(Path(nets_dir), split)
            size = len(self._published)
        limited = self._published is not None or split == "predefined"
        if num_nets is not None and (num_nets < 0 or (limited and num_nets > size)):
            raise ValueError(f"num_nets is {num_nets}, but split {split!r} has {size} networks")
        self._size = size if num_nets is None else num_nets

    @property
    def is_sampled(self) -> bool:
        """Whether networks are neither read from files nor predefined."""
        return self._published is None and self.split != "predefined"

    def __repr__(self) -> str:
        source = f"of seed {self.seed}" if self.is_sampled else "as published"
        size = "224 x 224" if self.large_images else "32 x 32"
        return (
            f"DeepNets1M({self.split}, {self._size:,} networks {source}, for {size} images, "
            f"{self.num_classes} classes)"
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Graph:
        """The graph of network `index`, with `.net_args` and `.index`.

        Raises:
            IndexError: there is no such network.
            NetsFileError: it is damaged in the file.
        """
        index = self._checked(index)
        if self._published is not None:
            return self._published.graph(index, self.seed, self.large_images, self.num_classes)
        net_args = sample_net_args(self.split, self.seed, index, self.large_images)
        return graph_of(net_args, self.num_classes, self.large_images, index)

    def __iter__(self) -> Iterator[Graph]:
        return (self[index] for index in range(len(self)))

    def net_args(self, index: int) -> dict[str, Any]:
        """The arguments of network `index`, without its graph.

        Raises:
            IndexError: there is no such network.
        """
        index = self._checked(index)
        if self._published is not None:
            return self._published.net_args(index, self.seed, self.large_images)
        return sample_net_args(self.split, self.seed, index, self.large_images)

    def arrays(self, indices: Sequence[int], threads: int = 1) -> tuple[GraphBatch, Tensor]:
        """Several networks as a batch and its nodes' shapes, without making a graph of each.

        The batch makes graphs where they are asked for. 10,000 networks a second and thread.

        Args:
            indices: of the networks, which are sampled ones (:attr:`is_sampled`).
            threads: that make them.

        Returns:
            The batch, and the shapes (sum N, 4) int64 as (out, in, height, width), zeros for nodes
            without one.
        """
        num_nodes, types, shapes, _, _, distances, _ = core.deepnets_batch(
            *(self.split, self.seed, list(indices), self.num_classes, self.large_images),
            max_distance=MAX_DISTANCE,
            with_rows=False,
            num_threads=threads,
        )
        sizes = torch.from_numpy(shapes).long()
        has_shape = sizes[:, :1] > 0
        batch = GraphBatch.from_arrays(
            LazyGraphs(self, list(indices)),
            torch.from_numpy(num_nodes),
            torch.from_numpy(types).long(),
            torch.from_numpy(distances),
        )
        return batch, torch.where(has_shape, sizes.clamp(min=1), sizes)

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the arguments and the graphs of all networks.

        The evaluation splits have the same in every version, or results could not be compared.
        """
        content = hashlib.sha256()
        for graph in self:
            arguments = dict(graph.net_args or {})
            if isinstance(arguments.get("genotype"), Genotype):
                arguments["genotype"] = to_dict(arguments["genotype"])
            content.update(json.dumps(arguments, sort_keys=True).encode())
            content.update(graph.digest().encode())
        return content.hexdigest()

    def _checked(self, index: int) -> int:
        if isinstance(index, slice):
            raise TypeError(
                "a network is taken by its number; of several make a torch.utils.data.Subset(nets, "
                "range(start, stop)), or a list"
            )
        if not -self._size <= index < self._size:  # len() has no number of 64 bits
            more = "; num_nets= asks for more" if self.is_sampled else ""
            raise IndexError(f"network {index} of {self._size} in split {self.split!r}{more}")
        return index % self._size


class LazyGraphs(Sequence[Graph]):
    """Graphs that are made when they are asked for; only their numbers travel between processes."""

    def __init__(self, nets: DeepNets1M, indices: list[int]) -> None:
        self._nets = nets
        self._indices = indices
        self._made: dict[int, Graph] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made": {}}

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Graph: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Graph]: ...
    def __getitem__(self, place: int | slice) -> Graph | Sequence[Graph]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        index = self._indices[place]
        if index not in self._made:
            self._made[index] = self._nets[index]
        return self._made[index]
