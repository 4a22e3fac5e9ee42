"""The networks that a GHN is trained on: of DeepNets-1M and of the families that people use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ghn_fast._core import core
from ghn_fast._system.device import to_device
from ghn_fast._system.processes import ALONE, Processes, shares
from ghn_fast.ghn import make_config
from ghn_fast.graph import Graph
from ghn_fast.nets import build_ghost, check_image_size, count_parameters, sample_net_args
from ghn_fast.nets.families import BeyondLimitsError, Member, sample_member
from ghn_fast.nets.generate.graphs import graph_of
from ghn_fast.nets.generate.philox import Stream
from ghn_fast.nets.measure.work import network_work
from ghn_fast.train.config import (
    ATTENTION,
    BNFREE,
    DEEPNETS,
    DEEPNETS_PARTS,
    ConfigError,
    TrainConfig,
)

SPLIT = "train"
_FAMILIES_SPLIT = "families/train"
_WIDTH_STREAM = 1_000
"""Number of the random stream of widths; the splits' own numbers are small."""
_SOURCE_STREAM = 1_001
"""That of which part of the mixture a candidate is of."""
_MOST_REFUSALS = 10_000
_REFUSED_MEMBER = 200
"""What a refused member of a family counts as: many were built for it."""
_SLOTS = 2**40
"""Places in the stream of a mixture; more than any run has."""
IMAGE_GROUP = 8
"""Numbers of images that work limits are multiples of it: a CPU's library of convolutions prepares
each shape that it has not met lately, and so meets fewer."""
SMALL_IMAGE_SIZE = 32
LARGE_IMAGE_SIZE = 224


class Drawn(NamedTuple):
    """A network without values, its graph, and its work for an image (``network_work``).

    ``place`` is which of the step's networks it is, over all processes; ``family`` is one of
    :data:`ghn_fast.nets.families.FAMILIES`, or the part of the mixture that is of DeepNets-1M;
    ``number`` is that of the :meth:`NetworkStream.candidate` that it is.
    """

    model: nn.Module
    graph: Graph
    work: float
    place: int = 0
    family: str = DEEPNETS
    number: int = 0


class NetworkStream:
    """Meta-batches of networks without end.

    Candidate ``i`` is a pure function of the configuration and ``i``, so the whole state of the
    stream is one integer. Candidates beyond the configured limits are passed over. A step takes
    ``config.networks_per_step`` networks, whoever runs them: what each of several processes gets
    is a pure function of the position and of its rank.

    Whether a network of a family is within the limits shows only once it is built, in some 20 ms.
    So in a mixture every place of a step has candidates of its own, one after another, all of
    the same part of the mixture, and a process builds those of its own places alone. Their shares
    are those of the mixture whatever is passed over.

    Args:
        config: see :class:`TrainConfig`.
        num_classes: outputs of the networks.
        is_imagenet_input: whether the networks are for large images.
        processes: that share each step's networks, balanced by their nodes, or in a mixture by
            the parts that they are of.
        image_size: height and width of the images; None for the usual 224 or 32.

    Raises:
        ConfigError: ``num_networks`` does not suffice for a step, or the mixture has families,
            which are for 32 x 32 images, and the images are of another size; the networks cannot
            have images of that size.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        is_imagenet_input: bool = False,
        processes: Processes = ALONE,
        image_size: int | None = None,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.is_imagenet_input = is_imagenet_input
        self.processes = processes
        self.image_size = image_size or _usual_size(is_imagenet_input)
        self.networks_per_step = config.networks_per_step(processes.size)
        if config.num_networks is not None and config.num_networks < self.networks_per_step:
            raise ConfigError(
                f"num_networks={config.num_networks} is fewer than the {self.networks_per_step} "
                "different networks of a step"
            )
        if set(config.mixture) - set(DEEPNETS_PARTS) and self.image_size != SMALL_IMAGE_SIZE:
            raise ConfigError(
                f"the families of the mixture {config.mixture} are for images of size "
                f"{SMALL_IMAGE_SIZE}, not {self.image_size}"
            )
        try:
            check_image_size(self.image_size, is_imagenet_input)
        except ValueError as error:
            raise ConfigError(f"image_size={self.image_size}: {error}") from None
        self.is_mixture = set(config.mixture) != {DEEPNETS}
        self._cache: dict[int, Drawn] = {}
        self._members: dict[int, Member | None] = {}
        self._arguments: dict[int, dict[str, Any] | None] = {}

    def draw(self, position: int) -> tuple[list[Drawn], int]:
        """This process's networks of the step at this position, and the position after it.

        Raises:
            ConfigError: the configured limits leave too few networks.
        """
        for _ in range(_MOST_REFUSALS):
            self._members.clear()
            drawn, position, is_small = self._drawn_step(position)
            if is_small:
                return drawn, position
        raise ConfigError(
            f"no {self.config.meta_batch} networks were found with at most "
            f"max_nodes={self.config.max_nodes}"
        )

    def _drawn_step(self, position: int) -> tuple[list[Drawn], int, bool]:
        """Those of the step here, and whether all of its networks are within ``max_nodes``."""
        limit = self.config.max_nodes
        if self.is_mixture and limit is None:
            places = self._dealt(position)
            indices = [self._first_within_limits(position + place) for place in places]
            drawn = [
                self._drawn(index)._replace(place=place)
                for place, index in zip(places, indices, strict=True)
            ]
            return drawn, position + self.networks_per_step, True
        indices, position = self._accepted(position)
        nodes = self._count_nodes(indices) if limit is not None or self.processes.size > 1 else []
        is_small = limit is None or (
            sum(nodes) <= limit * self.config.accumulate * self.processes.size
        )
        places = self._share(nodes) if is_small else []
        return [self._drawn(indices[i])._replace(place=i) for i in places], position, is_small

    def at(self, position: int, place: int) -> Drawn:
        """One network of the step at this position, whatever process it is dealt to.

        Raises:
            ConfigError: no candidate for it is within the limits.
        """
        self._members.clear()
        return self._drawn(self._first_within_limits(position + place))._replace(place=place)

    def _dealt(self, position: int) -> list[int]:
        """This process's places of the step here: of each part of the mixture nearly as many as
        the other processes have."""
        places = sorted(
            range(self.networks_per_step), key=lambda place: source(self.config, position + place)
        )
        return sorted(places[self.processes.rank :: self.processes.size])

    def _first_within_limits(self, slot: int) -> int:
        """The candidate of a place in the stream; their numbers are ``_SLOTS`` apart."""
        slot %= self.config.num_networks or _SLOTS
        refusals = attempt = 0
        while refusals < _MOST_REFUSALS:
            index = slot + attempt * _SLOTS
            if self._is_accepted(index):
                return index
            attempt += 1
            refusals += 1 if is_deepnet(self.config, index) else _REFUSED_MEMBER
        raise self._too_few(attempt, 1)

    def candidate(self, index: int) -> Drawn | None:
        """Network ``index``, None if it is beyond the limits."""
        return self._drawn(index) if self._is_accepted(index) else None

    def _accepted(self, position: int) -> tuple[list[int], int]:
        """The next networks within the limits, all different, and the position after them."""
        if self.is_mixture:
            slots = range(position, position + self.networks_per_step)
            return [self._first_within_limits(slot) for slot in slots], slots.stop
        found: dict[int, None] = {}
        after, refusals = position, 0
        while refusals < _MOST_REFUSALS:
            index = after % (self.config.num_networks or 2**63)
            after += 1
            if index not in found and self._is_accepted(index):
                found[index] = None
            else:
                refusals += 1
            if len(found) == self.networks_per_step:
                return list(found), after
        tried = min(after - position, self.config.num_networks or after)
        raise self._too_few(tried, self.networks_per_step)

    def _too_few(self, tried: int, needed: int) -> ConfigError:
        return ConfigError(
            f"among {tried} networks fewer than {needed} are within "
            f"max_work={self.config.max_work}, max_cells={self.config.max_cells} and "
            f"max_parameters={self.config.max_parameters} at widths {self.config.widths}"
        )

    def _is_accepted(self, index: int) -> bool:
        if is_deepnet(self.config, index):
            return self._args(index) is not None
        return self._member(index) is not None

    def _share(self, nodes: list[int]) -> list[int]:
        """Places of this process's networks among those of the step."""
        if self.processes.size == 1:
            return list(range(self.networks_per_step))
        return shares(nodes, self.processes.size)[self.processes.rank]

    def _count_nodes(self, indices: list[int]) -> list[int]:
        """The sizes of graphs; those of DeepNets-1M are not made, as widths do not matter."""
        own = [index for index in indices if source(self.config, index) in (DEEPNETS, ATTENTION)]
        counts, *_ = core.deepnets_batch(
            *(SPLIT, self.config.seed, own, self.num_classes, self.is_imagenet_input),
            max_distance=1,
            with_rows=False,
            num_threads=1,
        )
        nodes = dict(zip(own, map(int, counts), strict=True))
        for index in indices:
            if index not in nodes:
                nodes[index] = self._drawn(index).graph.num_nodes
        return [nodes[index] for index in indices]

    def _member(self, index: int) -> Member | None:
        if index not in self._members:
            self._members[index] = training_member(self.config, index, self.num_classes)
        return self._members[index]

    def _args(self, index: int) -> dict[str, Any] | None:
        if index in self._arguments:
            return self._arguments[index]
        net_args = training_args(
            self.config, index, self.num_classes, self.is_imagenet_input, self.image_size
        )
        if len(self._arguments) < self.config.cached_networks:
            self._arguments[index] = net_args
        return net_args

    def _drawn(self, index: int) -> Drawn:
        if index in self._cache:
            return self._cache[index]
        if is_deepnet(self.config, index):
            drawn = self._deepnet(index)
        else:
            member = self._member(index)
            assert member is not None
            drawn = Drawn(member.model, member.graph, member.work, family=member.family)
        drawn = drawn._replace(number=index)
        if len(self._cache) < self.config.cached_networks:
            self._cache[index] = drawn
        return drawn

    def _deepnet(self, index: int) -> Drawn:
        net_args = self._args(index)
        assert net_args is not None
        model = build_ghost(net_args, self.num_classes, self.is_imagenet_input).eval()
        graph = graph_of(net_args, self.num_classes, self.is_imagenet_input, index)
        work = _work(net_args, self.num_classes, self.is_imagenet_input, self.image_size)
        return Drawn(model, graph, work, family=source(self.config, index))


def values_to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """A network without values, with those that it has nevertheless on a device; in place.

    They are what an architecture computes for itself and a GHN does not predict: layer scales,
    tables of relative positions. They are leaves of no graph, so need no gradient.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                moved = to_device(parameter.detach(), device)
                module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = to_device(buffer, device)
    return model


def image_counts(config: TrainConfig, networks: Sequence[Drawn]) -> list[int]:
    """How many of a step's images each network gets (:attr:`TrainConfig.network_work`)."""
    if config.network_work is None:
        return [config.image_batch] * len(networks)
    affordable = [int(config.network_work / network.work) for network in networks]
    whole_groups = [count - count % IMAGE_GROUP for count in affordable]
    return [min(config.image_batch, max(config.min_images, count)) for count in whole_groups]


def source(config: TrainConfig, index: int) -> str:
    """Which part of the mixture candidate ``index`` is of, one of its names."""
    if set(config.mixture) == {DEEPNETS}:
        return DEEPNETS
    place = Stream(config.seed, _SOURCE_STREAM, index % _SLOTS).below(1 << 32) / (1 << 32)
    names, total = sorted(config.mixture), sum(config.mixture.values())
    for name in names:
        place -= config.mixture[name] / total
        if place < 0:
            return name
    return names[-1]


def is_deepnet(config: TrainConfig, index: int) -> bool:
    """Whether candidate ``index`` is of DeepNets-1M."""
    return source(config, index) in DEEPNETS_PARTS


def training_member(config: TrainConfig, index: int, num_classes: int = 10) -> Member | None:
    """Candidate ``index`` of a mixture, which is of a family, within the limits, or None."""
    _, _, family = source(config, index).partition("/")
    limits = config.max_work, config.max_parameters
    types = make_config(config.ghn).node_types
    try:
        return sample_member(
            _FAMILIES_SPLIT, config.seed, index, num_classes, family or None, *limits, types=types
        )
    except BeyondLimitsError:
        return None


def training_args(
    config: TrainConfig,
    index: int,
    num_classes: int = 10,
    is_imagenet_input: bool = False,
    image_size: int | None = None,
) -> dict[str, Any] | None:
    """The arguments of candidate ``index`` within the limits, or None.

    The arguments are those of :class:`NetworkStream`.
    """
    size = image_size or _usual_size(is_imagenet_input)
    net_args = sample_net_args(SPLIT, config.seed, index, is_imagenet_input)
    part = source(config, index)
    if part == ATTENTION and "msa" not in net_args["genotype"].operations:
        return None
    if part == BNFREE:
        net_args["norm"] = None
    if config.max_cells is not None and net_args["n_cells"] > config.max_cells:
        return None
    for width in _widths(config, index, net_args["C"]):
        net_args["C"] = width
        if _is_affordable(config, net_args, num_classes, is_imagenet_input, size):
            return net_args
    return None


def _usual_size(is_imagenet_input: bool) -> int:
    return LARGE_IMAGE_SIZE if is_imagenet_input else SMALL_IMAGE_SIZE


def _widths(config: TrainConfig, index: int, published: int) -> list[int]:
    """Widths to try: the one drawn for the network, then narrower ones."""
    if config.widths is None:
        return [published]
    choice = Stream(config.seed, _WIDTH_STREAM, index).below(len(config.widths))
    return sorted(config.widths[: choice + 1], reverse=True)


def _is_affordable(
    config: TrainConfig,
    net_args: dict[str, Any],
    num_classes: int,
    is_imagenet_input: bool,
    image_size: int,
) -> bool:
    work = _work(net_args, num_classes, is_imagenet_input, image_size)
    if config.max_work is not None and work > config.max_work:
        return False
    limit = config.max_parameters
    classes = _counted_classes(num_classes, is_imagenet_input)
    return limit is None or count_parameters(net_args, classes, is_imagenet_input) <= limit


def _work(
    net_args: dict[str, Any], num_classes: int, is_imagenet_input: bool, image_size: int
) -> float:
    classes = _counted_classes(num_classes, is_imagenet_input)
    return network_work(net_args, image_size, classes, is_imagenet_input)


def _counted_classes(num_classes: int, is_imagenet_input: bool) -> int:
    """Outputs that limits count: networks for small images have few, and count as CIFAR-10's.

    So a configuration for small images draws the same networks whatever the data.
    """
    return num_classes if is_imagenet_input else 10
