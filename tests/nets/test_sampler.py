"""The sampled networks: reproducible, buildable, distributed like the published ones."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ghn_fast.nets import SPLITS, build_ghost, build_net, count_parameters, sample_net_args
from ghn_fast.nets.generate import sampler
from ghn_fast.nets.generate.philox import Stream, philox4x32
from ghn_fast.nets.space.genotypes import to_dict
from ghn_fast.nets.space.liveness import plan_network
from tests.nets.joint import SAVED, joint_counts

SAMPLED = tuple(split for split in SPLITS if split != "predefined")
CATEGORIES = ("n_cells", "norm", "preproc", "glob_avg", "stem_pool", "C_mult", "fc_layers")
CATEGORIES += ("stem_type", "ks")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert philox4x32(counter, key) == expected


def test_streams_differ_in_every_part() -> None:
    items = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1 << 40, 0, 0), (0, 0, 1 << 40)]
    draws = set()
    for item in items:
        stream = Stream(*item)
        draws.add(tuple(stream.below(1 << 32) for _ in range(8)))
    assert len(draws) == len(items)


@pytest.mark.parametrize("split", SAMPLED)
def test_core_draws_the_reference(split: str) -> None:
    for index in range(60):
        seed, large = (index * 0x9E3779B97F4A7C15) % (1 << 64), index % 3 == 0
        expected = sampler.reference_net_args(split, seed, index << (index % 58), large)
        assert sample_net_args(split, seed, index << (index % 58), large) == expected


@pytest.mark.parametrize("split", SAMPLED)
def test_networks_obey_their_split(split: str) -> None:
    rules = sampler.RULES[split]
    for index in range(12):
        net_args = sample_net_args(split, 3, index)
        assert net_args == sample_net_args(split, 3, index)
        small = {**net_args, "C": 32, "fc_dim": 256}
        for large in (False, True):
            assert count_parameters(small, 10, large) <= rules.max_parameters
            for arguments in (small, net_args):
                ghost = build_ghost(arguments, 10, large)
                total = sum(p.numel() for p in ghost.parameters())
                assert count_parameters(arguments, 10, large) == total
        assert rules.cells[0] <= net_args["n_cells"] <= rules.cells[1]
        assert plan_network(net_args["genotype"], net_args["n_cells"]) is not None


@pytest.mark.parametrize("split", [s for s in SAMPLED if s not in ("train", "wide")])
def test_evaluation_width_is_the_smallest(split: str) -> None:
    for index in range(20):
        net_args = sample_net_args(split, 0, index)
        assert net_args["C"] % 16 == 0
        assert count_parameters(net_args) >= 2_500_000
        narrower = {**net_args, "C": net_args["C"] - 16}
        assert narrower["C"] < 32 or count_parameters(narrower) < 2_500_000


@pytest.mark.parametrize(("large", "factor"), [(False, 4), (True, 2)])
def test_wide_networks_are_test_networks(large: bool, factor: int) -> None:
    for index in range(10):
        test = sample_net_args("test", 5, index, large)
        wide = sample_net_args("wide", 5, index, large)
        assert wide.pop("C") == factor * test.pop("C")
        assert wide == test


def test_training_widths() -> None:
    nets = [sample_net_args("train", 9, index) for index in range(1500)]
    seen = Counter()
    for net_args in nets:
        parameters = count_parameters({**net_args, "C": 32, "fc_dim": 256})
        dense = {"conv_5x5", "conv_7x7"} & set(net_args["genotype"].operations)
        if parameters > 800_000 or dense or net_args["n_cells"] > 12 or not net_args["glob_avg"]:
            limit = 32
        elif parameters > 400_000 or net_args["n_cells"] > 10:
            limit = 48
        elif parameters > 200_000 or net_args["n_cells"] > 8:
            limit = 64
        else:
            limit = 128
        assert net_args["C"] in range(32, limit + 1, 16)
        assert net_args["fc_dim"] in range(64, 513, 64)
        if limit < 128 or net_args["C"] > 64:
            assert net_args["fc_dim"] <= 256
        seen[limit, net_args["C"]] += 1
    assert len(seen) == 1 + 2 + 3 + 7


def test_predefined() -> None:
    transformer = build_net(sample_net_args("predefined", 0, 1), 10, False)
    assert transformer(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with torch.device("meta"):
        resnet = build_net(sample_net_args("predefined", 0, 0), 10, False)
    assert sum(p.numel() for p in resnet.parameters()) == 23_520_842
    with pytest.raises(ValueError, match="'predefined' has networks 0 and 1, not 2"):
        sample_net_args("predefined", 0, 2)


@pytest.mark.parametrize(
    ("split", "seed", "index", "message"),
    [
        ("tests", 0, 0, "unknown split 'tests'"),
        ("test", -1, 0, "seed must be from 0"),
        ("test", 0, 1 << 64, "index must be from 0"),
    ],
)
def test_bad_arguments(split: str, seed: int, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_net_args(split, seed, index)


DIGESTS = {
    "train": "6f09aaefc5aa51b4",
    "val": "9fbe968f11eacf0a",
    "test": "78d0a7997a4a7d27",
    "wide": "6dc8abfeb843eb5b",
    "deep": "70d18b84d689d734",
    "dense": "098514882494f569",
    "bnfree": "2e8f968424c80eb9",
    "search": "3fa70a9a5cb2b161",
}


@pytest.mark.parametrize("split", SAMPLED)
def test_networks_never_change(split: str) -> None:
    """The splits are defined by what this version draws; results would not be comparable."""
    nets = [sample_net_args(split, 0, index) for index in range(20)]
    digest = hashlib.sha256(json.dumps(nets, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == DIGESTS[split]


# The distribution of the public generator.


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "conformance" / "deepnets_distribution.json").read_text())


def chi_square_p(counts: Counter[str], frequencies: dict[str, float], draws: float) -> float:
    """P-value of both samples (counts; frequencies among `draws`) having one distribution."""
    pairs = [(counts[key], frequencies.get(key, 0.0) * draws) for key in {*counts, *frequencies}]
    ours, theirs = (sum(column) for column in zip(*pairs, strict=True))
    statistic = 0.0
    for one, other in pairs:
        share = (one + other) / (ours + theirs)
        statistic += (one - ours * share) ** 2 / (ours * share)
        statistic += (other - theirs * share) ** 2 / (theirs * share)
    degrees = torch.tensor((len(pairs) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(degrees, torch.tensor(statistic / 2).double()).item()


def p_values(nets: list[dict[str, Any]], reference: dict[str, Any]) -> dict[str, float]:
    """For every quantity of the reference that needs no graph, the p-value of a difference."""
    draws = reference["networks"]
    result = {
        name: chi_square_p(Counter(str(net[name]) for net in nets), reference[name], draws)
        for name in CATEGORIES
    }
    genotypes = [net["genotype"] for net in nets]
    columns: dict[str, Iterable[int]] = {
        "steps": (len(g.normal) // 2 for g in genotypes),
        "concat_width": (len(g.normal_concat) for g in genotypes),
    }
    for name, values in columns.items():
        result[name] = chi_square_p(Counter(map(str, values)), reference[name], draws)
    operations = 2 * draws * sum(int(s) * share for s, share in reference["steps"].items())
    for cell in ("normal", "reduce"):
        counts = Counter(name for g in genotypes for name, _ in getattr(g, cell))
        key = f"operations_{cell}"
        result[key] = chi_square_p(counts, reference[key], operations)
    for images in ("cifar10", "imagenet"):
        key = f"params_millions_{images}_C32"
        sizes = [
            count_parameters({**net, "C": 32, "fc_dim": 256}, 10, images == "imagenet") / 1e6
            for net in nets
        ]
        result[key] = quantiles_p(torch.tensor(sizes), reference[key], draws)
    return result


def quantiles_p(values: torch.Tensor, summary: dict[str, float], draws: int) -> float:
    """P-value of `values` against the quantiles of a sample of `draws` (chi-square over bins)."""
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    edges = torch.tensor([summary[f"q{round(100 * level)}"] for level in levels])
    bins = torch.bucketize(values, edges)
    shares = [b - a for a, b in zip((0.0, *levels), (*levels, 1.0), strict=True)]
    counts = Counter({str(k): int((bins == k).sum()) for k in range(len(shares))})
    return chi_square_p(counts, {str(k): share for k, share in enumerate(shares)}, draws)


def test_distribution_of_train_networks(reference: dict[str, Any]) -> None:
    nets = [sample_net_args("train", 1, index) for index in range(10_000)]
    values = p_values(nets, reference)
    assert len(values) == len(CATEGORIES) + 6
    assert min(values.values()) > 0.005, values


@pytest.mark.parametrize("broken", ["refusals", "limit", "only_pool", "norm", "steps"])
def test_a_broken_rule_is_noticed(
    reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The comparison above has the power to see a wrong rule."""
    rules = sampler.RULES["train"].__dict__
    if broken == "refusals":
        monkeypatch.setattr(sampler, "_is_refused", lambda genotype: False)
    elif broken == "only_pool":
        monkeypatch.setattr(sampler, "OPERATIONS", sampler.OPERATIONS[:4] + sampler.OPERATIONS[4:8])
    else:
        change = {
            "limit": {"max_parameters": 3_000_000},
            "norm": {"norm": "always"},
            "steps": {"steps": (1, 3, 4)},
        }[broken]
        monkeypatch.setitem(sampler.RULES, "train", sampler.SplitRules(**{**rules, **change}))
    nets = [sampler.reference_net_args("train", 1, index) for index in range(2000)]
    assert min(p_values(nets, reference).values()) < 1e-4


# The same with joint counts of 10,000 networks of the public generator.


def described(net_args: dict[str, Any]) -> dict[str, Any]:
    """A network as the public generator's metadata give it."""
    reference = {**net_args, "C": 32, "fc_dim": 256}
    sizes = {
        images: count_parameters(reference, 10, images == "imagenet")
        for images in ("cifar10", "imagenet")
    }
    return {**net_args, "genotype": to_dict(net_args["genotype"]), "num_params": sizes}


def joint_p_values(nets: Iterable[dict[str, Any]]) -> dict[str, float]:
    """For every table of ``joint.py``, the p-value of a difference to the public generator."""
    ours = joint_counts(map(described, nets))
    theirs = json.loads(SAVED.read_text(encoding="utf-8"))
    del theirs["networks"]
    assert ours.keys() == theirs.keys()
    values = {what: two_sample_p(ours[what], Counter(theirs[what])) for what in ours}
    if ours["cut off"]["True"]:
        values["cut off"] = 0.0  # the public generator refuses every such network
    return values


def two_sample_p(one: Counter[str], other: Counter[str]) -> float:
    """Chi-square test of two samples; rare values count as one."""
    rare = {key for key in {*one, *other} if one[key] + other[key] < 20}
    pooled = []
    for counts in (one, other):
        pooled.append(Counter({key: n for key, n in counts.items() if key not in rare}))
        pooled[-1]["rare"] = sum(counts[key] for key in rare)
    draws = sum(other.values())
    return chi_square_p(
        +pooled[0], {key: n / draws for key, n in pooled[1].items() if n}, float(draws)
    )


def test_joint_distribution_of_train_networks() -> None:
    values = joint_p_values(sample_net_args("train", 1, index) for index in range(10_000))
    assert min(values.values()) > 0.001, values


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("cells: tuple[int, int] = (4, 18)", "cells: tuple[int, int] = (4, 17)"),
        ("= (7, 8, 9, 10)", "= (7, 8, 9)"),
        ("= (7, 8, 9, 10)", "= (10,)"),
        ("= (1, 2, 4)", "= (1, 3, 4)"),
        ("= (1, 2, 4)", "= (1, 2, 5)"),
        ("max_parameters: int = 10_000_000", "max_parameters: int = 7_000_000"),
        ("= (10, 2)", "= (9, 2)"),
        ("= (10, 2)", "= (10, 5)"),
        ("cells > rules", "cells >= rules"),
        ("stream.chance(9, 10)", "stream.chance(8, 10)"),
        ("glob_avg = is_vit or deep or", "glob_avg = deep or"),
        ("glob_avg = is_vit or deep or", "glob_avg = is_vit or"),
        ("stem_type = stream.below(2)", "stem_type = stream.chance(3, 5)"),
        ("stem_type == 0 and stream.coin()", "stem_type == 0 and stream.chance(3, 5)"),
        ("stem_type == 0 and stream.coin()", "stream.coin()"),
        ("(3, 5, 7)[stream.below(3)]", "(3, 5, 7, 7)[stream.below(4)]"),
        ("multiplier = 1 + stream.below(2)", "multiplier = 1 + stream.chance(3, 5)"),
        ("if steps == 1 and multiplier == 1:", "if steps == 1:"),
        ("<= rules.cells[0] + 1 and", "<= rules.cells[0] and"),
        ("<= rules.cells[0] + 1 and", "<= rules.cells[0] + 2 and"),
        ("and steps <= medium_steps)", "and steps <= max_steps)"),
        ("may_lack_norm and stream.coin()", "may_lack_norm and stream.chance(3, 4)"),
        ('"fc_layers": 1 + stream.below(2)', '"fc_layers": 1 + stream.chance(3, 5)'),
        ("only_pool = stream.coin()", "only_pool = stream.chance(3, 5)"),
        (
            "drop_concat = steps > 1 and stream.coin()",
            "drop_concat = steps > 1 and stream.chance(2, 3)",
        ),
        ("not drop_concat or stream.coin()", "not drop_concat or stream.chance(3, 5)"),
        ("reduce, list(concat))", "reduce, [steps + 1])"),
        ("first = 0 if steps > 1 else 1", "first = 0"),
        ("first = 0 if steps > 1 else 1", "first = 1"),
        ("4 if only_pool", "5 if only_pool"),
        ("second += second >= first", "second += second > first"),
        ("first = stream.below(states)", "first = states - 1"),
        ('("cse" in names or "msa" not in names)', '"msa" not in names'),
        ('("cse" in names or "msa" not in names)', '"cse" in names'),
        ('cell.count("cse") > 1', 'cell.count("cse") > 2'),
        ('cell.count("conv_7x7") > 1', 'cell.count("conv_7x7") > 2'),
        ("is None else net_args", "is None else net_args if preproc else None"),
        ("return None if plan_network(genotype, cells) is None else net_args", "return net_args"),
    ],
)
def test_any_wrong_rule_is_noticed(rule: str, wrong: str) -> None:
    """Each rule of the sampler, made a little wrong, gives networks that are told apart."""
    source = Path(str(sampler.__file__)).read_text(encoding="utf-8")
    assert source.count(rule) == 1
    mutant = ModuleType(sampler.__name__)
    sys.modules[mutant.__name__], original = mutant, sys.modules[mutant.__name__]
    try:
        exec(source.replace(rule, wrong), mutant.__dict__)
    finally:
        sys.modules[mutant.__name__] = original
    rules = mutant.RULES["train"]
    nets: list[dict[str, Any]] = []
    for index in range(5000):
        stream, net_args = Stream(1, rules.stream, index), None
        while net_args is None:
            net_args = mutant._attempt(stream, rules)
        nets.append(net_args)
    assert min(joint_p_values(nets).values()) < 1e-5
