"""Sampling DeepNets-1M networks (arXiv 2110.13100, section 3.1 and appendix A.1).

Network `index` of a split is a pure function of (split, seed, index). The draws and their order
are part of that function, so they must not change. They follow the public generator: first
everything that a rejection can depend on, then a new attempt from the next words of the same
stream until a network is accepted.

The public generator takes the best operation of each edge and the two best edges of each step by
the softmax of independent normal weights. All operations and all edges are exchangeable there, so
that the best operation is uniform over those allowed, the two edges with their order are uniform
over ordered pairs, and the two are independent. This is what is drawn here.

The core draws the same networks, much faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ghn_fast._core import core
from ghn_fast.nets.generate.philox import Stream, check_item
from ghn_fast.nets.measure.count import count_parameters
from ghn_fast.nets.space.genotypes import OPERATIONS, VIT, Genotype
from ghn_fast.nets.space.liveness import plan_network

SPLITS = ("train", "val", "test", "wide", "deep", "dense", "bnfree", "search", "predefined")
EVALUATION_PARAMETERS = 2_500_000
"""Networks of all splits but train have the smallest width with as many CIFAR-10 parameters."""
WIDTH_STEP = 16
MIN_WIDTH = 32
"""The width at which networks are accepted or rejected, and the smallest one."""
REFERENCE_FC_DIM = 256
"""The hidden classifier width of that, and of all splits but train."""
FILE_WIDTHS_STREAM = 100
"""The number of the stream that draws widths for networks read from files."""


@dataclass(frozen=True)
class SplitRules:
    """How the networks of a split are drawn."""

    stream: int
    """the number of the random stream; splits with the same one contain the same networks"""
    cells: tuple[int, int] = (4, 18)
    deep_thresholds: tuple[int, ...] = (7, 8, 9, 10)
    """a network with more cells than the threshold drawn for it counts as deep"""
    steps: tuple[int, int, int] = (1, 2, 4)
    """least steps, most steps of a deep network, most steps"""
    max_parameters: int = 10_000_000
    norm: str = "mixed"
    """mixed (small networks have none half of the time), always, or never"""
    preproc_coins: tuple[int, int] = (10, 2)
    """in how many of ten cases a network that may do without preprocessing has it: without and
    with 'msa'"""


RULES: dict[str, SplitRules] = {
    "train": SplitRules(0),
    "val": SplitRules(1),
    "test": SplitRules(2),
    "wide": SplitRules(2),
    "deep": SplitRules(3, cells=(10, 36), deep_thresholds=(18,), max_parameters=100_000_000),
    "dense": SplitRules(4, steps=(2, 6, 10), max_parameters=100_000_000),
    "bnfree": SplitRules(5, norm="never"),
    "search": SplitRules(
        6,
        cells=(6, 20),
        deep_thresholds=(10,),
        steps=(1, 3, 6),
        norm="always",
        preproc_coins=(8, 2),
    ),
}
"""The splits that are sampled; "predefined" is a list."""

PREDEFINED: tuple[dict[str, Any], ...] = (
    {"genotype": "resnet50"},
    {
        "genotype": VIT,
        "C": 128,
        "n_cells": 12,
        "ks": 3,
        "stem_type": 0,
        "stem_pool": False,
        "norm": "bnorm",
        "preproc": False,
        "C_mult": 1,
        "fc_layers": 1,
        "fc_dim": 0,
        "glob_avg": True,
    },
)
"""ResNet-50, which is no `Network` but torchvision's (see `build_net`), and a transformer."""


def sample_net_args(
    split: str, seed: int, index: int, large_images: bool = False
) -> dict[str, Any]:
    """The arguments of network `index` of a split, a pure function of these arguments.

    Args:
        split: one of `SPLITS`.
        seed: from 0 to 2**64 - 1; not used by "predefined".
        index: from 0 to 2**64 - 1; "predefined" has only 0 and 1.
        large_images: whether it is for 224 x 224 images: the widths of "train" depend on the
            number of parameters of the network for these images, "wide" is twice instead of four
            times as wide as "test".

    Returns:
        All arguments of `Network` but `num_classes` and `is_imagenet_input`. The genotype is a
        `Genotype`, or "resnet50" for the first of "predefined".

    Raises:
        ValueError: an unknown split, a seed or an index out of range.
    """
    if split == "predefined":
        if not 0 <= index < len(PREDEFINED):
            raise ValueError(f"split 'predefined' has networks 0 and 1, not {index}")
        return dict(PREDEFINED[index])
    _check(split, seed, index)
    net_args = core.deepnets_sample(split, seed, index, large_images)
    return {**net_args, "genotype": Genotype(*net_args["genotype"])}


def reference_net_args(
    split: str, seed: int, index: int, large_images: bool = False
) -> dict[str, Any]:
    """What `sample_net_args` gives for the sampled splits, in Python: it defines what they are."""
    _check(split, seed, index)
    rules = RULES[split]
    stream = Stream(seed, rules.stream, index)
    net_args = None
    while net_args is None:
        net_args = _attempt(stream, rules)
    if split == "train":
        net_args["C"], net_args["fc_dim"] = _draw_widths(stream, net_args, large_images)
    else:
        net_args["C"] = evaluation_width(net_args)
        if split == "wide":
            net_args["C"] *= wide_factor(large_images)
    return net_args


def _check(split: str, seed: int, index: int) -> None:
    if split not in RULES:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    check_item(seed, index)


def _attempt(stream: Stream, rules: SplitRules) -> dict[str, Any] | None:
    """Draws a network, None if the split's rules reject it."""
    cells = rules.cells[0] + stream.below(rules.cells[1] - rules.cells[0] + 1)
    deep = cells > rules.deep_thresholds[stream.below(len(rules.deep_thresholds))]
    min_steps, medium_steps, max_steps = rules.steps
    steps = min_steps + stream.below((medium_steps if deep else max_steps) - min_steps + 1)
    genotype = sample_genotype(stream, steps)
    if _is_refused(genotype):
        return None
    is_vit = "msa" in genotype.operations
    multiplier = 1 + stream.below(2)
    preproc = True
    if steps == 1 and multiplier == 1:
        preproc = stream.chance(rules.preproc_coins[is_vit], 10)
    glob_avg = is_vit or deep or stream.chance(9, 10)
    stem_type = stream.below(2)
    ks = (3, 5, 7)[stream.below(3)]
    stem_pool = stem_type == 0 and stream.coin()
    norm = _draw_norm(stream, rules, cells <= rules.cells[0] + 1 and steps <= medium_steps)
    net_args = {
        "genotype": genotype,
        "C": MIN_WIDTH,
        "n_cells": cells,
        "ks": ks,
        "stem_type": stem_type,
        "stem_pool": stem_pool,
        "norm": norm,
        "preproc": preproc,
        "C_mult": multiplier,
        "fc_layers": 1 + stream.below(2),
        "fc_dim": REFERENCE_FC_DIM,
        "glob_avg": glob_avg,
    }
    if max(count_parameters(net_args, 10, large) for large in (False, True)) > rules.max_parameters:
        return None
    return None if plan_network(genotype, cells) is None else net_args


def sample_genotype(stream: Stream, steps: int) -> Genotype:
    """Draws cells of `steps` steps. Half of the reduction cells have no trainable operations."""
    only_pool = stream.coin()
    drop_concat = steps > 1 and stream.coin()
    first = 0 if steps > 1 else 1  # a single step has no 'none'
    normal = _sample_edges(stream, steps, OPERATIONS[first:])
    reduce = _sample_edges(stream, steps, OPERATIONS[first : 4 if only_pool else None])
    # The last state is always part of the output, or the steps before it would be lost.
    concat = [s for s in range(2, steps + 1) if not drop_concat or stream.coin()] + [steps + 1]
    return Genotype(normal, concat, reduce, list(concat))


def _sample_edges(stream: Stream, steps: int, operations: tuple[str, ...]) -> list[tuple[str, int]]:
    edges = []
    for states in range(2, steps + 2):
        first = stream.below(states)
        second = stream.below(states - 1)
        second += second >= first
        edges += [(operations[stream.below(len(operations))], s) for s in (first, second)]
    return edges


def _is_refused(genotype: Genotype) -> bool:
    """Whether a network is without learned operations, hard to train, or large in memory."""
    cells = [[name for name, _ in cell] for cell in (genotype.normal, genotype.reduce)]
    names = cells[0] + cells[1]
    if not any("conv" in name for name in names) and ("cse" in names or "msa" not in names):
        return True
    return any(
        cell.count("cse") > 1 or cell.count("conv_5x5") + cell.count("conv_7x7") > 1
        for cell in cells
    )


def _draw_norm(stream: Stream, rules: SplitRules, may_lack_norm: bool) -> str | None:
    if rules.norm == "never":
        return None
    lacks_norm = rules.norm == "mixed" and may_lack_norm and stream.coin()
    return None if lacks_norm else "bnorm"


def training_widths(
    seed: int, index: int, net_args: dict[str, Any], large_images: bool
) -> tuple[int, int]:
    """C and fc_dim for training network `index` of a file, where they are left open."""
    return _draw_widths(Stream(seed, FILE_WIDTHS_STREAM, index), net_args, large_images)


def _draw_widths(stream: Stream, net_args: dict[str, Any], large_images: bool) -> tuple[int, int]:
    """Channels, from 32 to 128 by 16, and hidden classifier width, from 64 to 512 by 64.

    The more parameters a network has at width 32, the fewer widths it can have.
    """
    reference = {**net_args, "C": MIN_WIDTH, "fc_dim": REFERENCE_FC_DIM}
    parameters = count_parameters(reference, 10, large_images)
    cells = net_args["n_cells"]
    dense = {"conv_5x5", "conv_7x7"} & set(net_args["genotype"].operations)
    hidden = stream.below(4)
    if parameters > 800_000 or not net_args["glob_avg"] or dense or cells > 12:
        widths = 1
    elif parameters > 400_000 or cells > 10:
        widths = 2
    elif parameters > 200_000 or cells > 8:
        widths = 3
    else:
        widths = 7
    width = MIN_WIDTH + WIDTH_STEP * stream.below(widths)
    if widths == 7 and width <= 64:
        hidden = stream.below(8)
    return width, 64 * (1 + hidden)


def wide_factor(large_images: bool) -> int:
    """Of the widths of the split "wide"."""
    return 2 if large_images else 4


def evaluation_width(net_args: dict[str, Any]) -> int:
    """The smallest multiple of 16, at least 32, that gives 2.5 M CIFAR-10 parameters."""
    width = MIN_WIDTH
    while count_parameters({**net_args, "C": width}) < EVALUATION_PARAMETERS:
        width += WIDTH_STEP
    return width
