"""The space of all families: which network an index stands for."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

from torch import nn

from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast._system.collection import uncollected
from ghn_fast.graph.graph import Graph
from ghn_fast.graph.types import NODE_TYPES
from ghn_fast.nets.families.coat import coat
from ghn_fast.nets.families.convnext import convnext
from ghn_fast.nets.families.dense import dense
from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.fastvit import fastvit
from ghn_fast.nets.families.fire import fire
from ghn_fast.nets.families.ghostnet import ghostnet
from ghn_fast.nets.families.ghosts import Ghosts
from ghn_fast.nets.families.hybrid import hybrid
from ghn_fast.nets.families.inception import inception
from ghn_fast.nets.families.inverted import efficientnet, mnasnet, mobilenet2, mobilenet3
from ghn_fast.nets.families.levit import levit
from ghn_fast.nets.families.metaformer import metaformer
from ghn_fast.nets.families.mixer import conv_mixer, mlp_mixer
from ghn_fast.nets.families.named import named_architectures
from ghn_fast.nets.families.parts import IMAGE_SIZE
from ghn_fast.nets.families.pit import pit
from ghn_fast.nets.families.plain import plain
from ghn_fast.nets.families.pyramid import pyramid
from ghn_fast.nets.families.regnet import regnet
from ghn_fast.nets.families.reparametrised import reparametrised
from ghn_fast.nets.families.residual import residual
from ghn_fast.nets.families.shuffle import shuffle
from ghn_fast.nets.families.signature import signature
from ghn_fast.nets.families.small import small
from ghn_fast.nets.families.star import star
from ghn_fast.nets.families.swin import swin
from ghn_fast.nets.families.text import text
from ghn_fast.nets.families.transformer import transformer
from ghn_fast.nets.families.work import counted
from ghn_fast.nets.families.xcit import xcit

FAMILIES: dict[str, tuple[int, Callable[[Draw, int], nn.Module]]] = {
    "plain": (4, plain),
    "residual": (6, residual),
    "mobilenet2": (2, mobilenet2),
    "mobilenet3": (2, mobilenet3),
    "mnasnet": (2, mnasnet),
    "efficientnet": (3, efficientnet),
    "regnet": (4, regnet),
    "dense": (2, dense),
    "inception": (2, inception),
    "shuffle": (2, shuffle),
    "fire": (2, fire),
    "convnext": (4, convnext),
    "transformer": (4, transformer),
    "swin": (3, swin),
    "mlp_mixer": (1, mlp_mixer),
    "conv_mixer": (1, conv_mixer),
    "hybrid": (2, hybrid),
    "metaformer": (4, metaformer),
    "reparametrised": (2, reparametrised),
    "ghostnet": (1, ghostnet),
    "pyramid": (2, pyramid),
    "coat": (1, coat),
    "fastvit": (1, fastvit),
    "levit": (1, levit),
    "pit": (1, pit),
    "star": (1, star),
    "xcit": (1, xcit),
    "text": (3, text),
    "small": (4, small),
}
"""Each family's share and how its networks are drawn."""
SPLITS = {"families/train": 300, "families/val": 301, "families/test": 302}
"""The splits and the numbers of their random streams."""
_PARTS, _VAL, _TEST = 16, 0, 1
"""Of all networks two sixteenths are for evaluation."""
_ATTEMPTS, _DRAWS = 20, 400
_CHOICES = [name for name, (share, _) in FAMILIES.items() for _ in range(share)]


class BeyondLimitsError(ValueError):
    """Hardly any network of a family is within the limits."""


class Member(NamedTuple):
    """A network of a family.

    Attributes:
        family: its name in ``FAMILIES``.
        model: in evaluation mode; the parameters of its layers are on the meta device, unless it
            was sampled with values.
        graph: of the model.
        multiply_adds: of its layers, for one image.
        work: for one image, in million multiply-adds, as training counts it.
    """

    family: str
    model: nn.Module
    graph: Graph
    multiply_adds: int
    work: float

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return _parameters(self.model)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def family_of(split: str, seed: int, index: int) -> str:
    """The family of network ``index``, without building it.

    Raises:
        ValueError: an unknown split, a seed or an index out of range.
    """
    return _stream(split, seed, index).pick(_CHOICES)


def family_split(name: str) -> tuple[str, str | None]:
    """A split, and the one family that its networks are of in names such as
    ``families/test/residual``; other names are as they are."""
    whole, _, family = name.rpartition("/")
    return (whole, family) if whole in SPLITS else (name, None)


def sample_member(
    split: str,
    seed: int,
    index: int,
    num_classes: int = 10,
    family: str | None = None,
    max_work: float | None = None,
    max_parameters: int | None = None,
    with_values: bool = False,
    types: tuple[str, ...] = NODE_TYPES,
) -> Member:
    """Network ``index`` of a split, a pure function of these arguments.

    A network that is beyond the limits is drawn again, of the same family; so is one that
    torchvision or timm has a name for (:mod:`ghn_fast.nets.families.named`), as those are what is
    evaluated on, and one that is of another split: what a network is decides that, so that no
    split has a network of another.

    Args:
        split: one of ``SPLITS``.
        seed: from 0 to 2**64 - 1.
        index: from 0 to 2**64 - 1.
        num_classes: outputs.
        family: the networks of this one only, of ``FAMILIES``; None for all, by their shares.
        max_work: the largest ``Member.work``; None for no limit.
        max_parameters: the largest number of parameters; None for no limit.
        with_values: initialise the parameters, from PyTorch's global generator.
        types: of the nodes of its graph; the network is the same whichever.

    Raises:
        ValueError: an unknown split or family, a seed or an index out of range.
        BeyondLimitsError: many networks in turn are beyond the limits.
    """
    draw = _stream(split, seed, index)
    own = draw.pick(_CHOICES) if family is None else family
    if own not in FAMILIES:
        raise ValueError(f"unknown family {own!r}; there are {', '.join(FAMILIES)}")
    for _ in range(_ATTEMPTS):
        model = _of_split(split, own, draw, index, num_classes, with_values)
        if max_parameters is not None and _parameters(model) > max_parameters:
            continue
        member = _traced(own, model, index, types)
        if max_work is not None and member.work > max_work:
            continue
        if not _is_named(member):
            return member
    raise BeyondLimitsError(
        f"{_ATTEMPTS} networks of the family {own} in turn were beyond max_work={max_work} or "
        f"max_parameters={max_parameters}"
    )


def _of_split(
    split: str, family: str, draw: Draw, index: int, num_classes: int, with_values: bool
) -> nn.Module:
    for _ in range(_DRAWS):
        model = _build(family, draw, index, num_classes, with_values)
        if split_of(model) == split:
            return model
    raise BeyondLimitsError(f"{_DRAWS} networks of the family {family} in turn are not of {split}")


def split_of(model: nn.Module) -> str:
    """The only split that a network can be of, by the shapes of its parameters."""
    shapes = sorted(tuple(parameter.shape) for parameter in model.parameters())
    part = zlib.crc32(repr(shapes).encode()) % _PARTS
    return {_VAL: "families/val", _TEST: "families/test"}.get(part, "families/train")


def _is_named(member: Member) -> bool:
    """Whether torchvision or timm has a name for it, by the types that all graphs have."""
    graph = member.graph
    if any(node.type not in NODE_TYPES for node in graph.nodes):
        graph = Graph.from_model(member.model)
    return signature(graph) in named_architectures()


def _build(family: str, draw: Draw, index: int, num_classes: int, with_values: bool) -> nn.Module:
    with uncollected():
        with nullcontext() if with_values else Ghosts(index % 2**63):
            model = FAMILIES[family][1](draw, num_classes)
        model = use_batch_statistics(model).eval()
    model.expected_input_sz = IMAGE_SIZE  # type: ignore[assignment]
    return model


def _traced(family: str, model: nn.Module, index: int, types: tuple[str, ...]) -> Member:
    with uncollected(), counted(model) as work:
        graph = Graph.from_model(model, types=types)
    graph.index = index
    member = Member(family, model, graph, work.multiply_adds, 0.0)
    return member._replace(work=(work.total + member.parameters) / 1e6)


def _stream(split: str, seed: int, index: int) -> Draw:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    return Draw(seed, SPLITS[split], index)
