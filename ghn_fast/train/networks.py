"""The networks that a GHN is trained on, drawn from the train split of DeepNets-1M."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from ghn_fast.graph import Graph
from ghn_fast.nets import build_ghost, count_parameters, sample_net_args
from ghn_fast.nets.direct import graph_of
from ghn_fast.nets.philox import Stream
from ghn_fast.train.config import ConfigError, TrainConfig
from ghn_fast.train.work import network_work

SPLIT = "train"
_WIDTH_STREAM = 1_000
"""Number of the random stream of widths; the splits' own numbers are small."""
_MOST_REFUSALS = 10_000


class Drawn(NamedTuple):
    """A network without values, its graph, and its work for an image (``network_work``)."""

    model: nn.Module
    graph: Graph
    work: float


class NetworkStream:
    """Meta-batches of networks without end.

    Candidate ``i`` is a pure function of the configuration and ``i``, so the whole state of the
    stream is one integer. Candidates beyond the configured limits are passed over.

    Args:
        config: see :class:`TrainConfig`.
        num_classes: outputs of the networks.
    """

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes
        self._cache: dict[int, Drawn | None] = {}

    def draw(self, position: int) -> tuple[list[Drawn], int]:
        """A meta-batch, all different, from this position on, and the position after it.

        Raises:
            ConfigError: the configured limits leave too few networks.
        """
        batch: dict[int, Drawn] = {}
        for after in range(position, position + _MOST_REFUSALS):
            index = after % (self.config.num_networks or 2**63)
            drawn = None if index in batch else self.candidate(index)
            if drawn is not None:
                batch[index] = drawn
            if len(batch) == self.config.meta_batch:
                return list(batch.values()), after + 1
        raise ConfigError(
            f"among {_MOST_REFUSALS} networks fewer than {self.config.meta_batch} are within "
            f"max_work={self.config.max_work}, max_cells={self.config.max_cells} and "
            f"max_parameters={self.config.max_parameters} at widths {self.config.widths}"
        )

    def candidate(self, index: int) -> Drawn | None:
        """Network ``index``, None if it is beyond the limits."""
        if index in self._cache:
            return self._cache[index]
        net_args = training_args(self.config, index)
        drawn = None
        if net_args is not None:
            model = build_ghost(net_args, self.num_classes, is_imagenet_input=False).eval()
            graph = graph_of(net_args, self.num_classes, index=index)
            drawn = Drawn(model, graph, network_work(net_args))
        if len(self._cache) < self.config.cached_networks:
            self._cache[index] = drawn
        return drawn


def image_counts(config: TrainConfig, networks: Sequence[Drawn]) -> list[int]:
    """How many of a step's images each network gets (:attr:`TrainConfig.network_work`)."""
    if config.network_work is None:
        return [config.image_batch] * len(networks)
    affordable = [int(config.network_work / network.work) for network in networks]
    return [min(config.image_batch, max(config.min_images, count)) for count in affordable]


def training_args(config: TrainConfig, index: int) -> dict[str, Any] | None:
    """The arguments of candidate ``index`` within the limits, or None."""
    net_args = sample_net_args(SPLIT, config.seed, index)
    if config.max_cells is not None and net_args["n_cells"] > config.max_cells:
        return None
    choice = Stream(config.seed, _WIDTH_STREAM, index).below(len(config.widths))
    for width in sorted(config.widths[: choice + 1], reverse=True):
        net_args["C"] = width
        if _is_affordable(config, net_args):
            return net_args
    return None


def _is_affordable(config: TrainConfig, net_args: dict[str, Any]) -> bool:
    if config.max_work is not None and network_work(net_args) > config.max_work:
        return False
    limit = config.max_parameters
    return limit is None or count_parameters(net_args) <= limit
