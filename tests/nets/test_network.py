"""DeepNets-1M networks against the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_fast.nets import DARTS, VIT, Genotype, Network, build_ghost, from_dict, to_dict

CUT = Genotype([("conv_3x3", 0), ("none", 1)], [2], [("none", 0), ("none", 1)], [2])
"""Normal cells read only the cell before the previous one, the reduction cells give nothing."""


@pytest.fixture(scope="module")
def conformance(shared: Path) -> list[dict[str, Any]]:
    return json.loads((shared / "conformance" / "deepnets_20.json").read_text())


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def simple(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "C": 8,
        "num_classes": 10,
        "genotype": DARTS,
        "n_cells": 4,
        "is_imagenet_input": False,
    }
    return {**arguments, **changes}


@pytest.mark.parametrize("index", range(20))
def test_published_networks(conformance: list[dict[str, Any]], index: int) -> None:
    case = conformance[index]
    network = Network(**case["net_args"], num_classes=10, is_imagenet_input=False)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    logits.sum().backward()
    alive = {n: p.numel() for n, p in network.named_parameters() if p.grad is not None}
    # The published count leaves out what cannot reach the output.
    predicted = {
        name: numbers[0] for name, numbers in case["predictions"]["ghn2_cifar10"]["params"].items()
    }
    assert alive == predicted
    assert sum(alive.values()) == case["n_params"]


@pytest.mark.parametrize("images", ["cifar10", "imagenet"])
def test_published_parameter_counts(shared: Path, images: str) -> None:
    path = shared / "conformance" / "deepnets1m" / "deepnets1m_train_meta.json"
    for arguments in json.loads(path.read_text())["train"]["nets"]:
        expected = arguments.pop("num_params")[images]
        del arguments["num_nodes"]
        ghost = build_ghost({**arguments, "C": 32}, 10, images == "imagenet")
        assert sum(p.numel() for p in ghost.parameters()) == expected


@pytest.mark.parametrize("is_imagenet_input", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem_type": 1, "glob_avg": False, "ks": 5},
        {"stem_pool": True, "glob_avg": False, "norm": None},
        {"glob_avg": False, "fc_layers": 2, "fc_dim": 16},
        {"genotype": VIT, "preproc": False, "C_mult": 1},
        {"n_cells": 1},
        {"n_cells": 2},
    ],
)
def test_runs_at_both_sizes(changes: dict[str, Any], is_imagenet_input: bool) -> None:
    network = Network(**simple(**changes, is_imagenet_input=is_imagenet_input))
    size = network.expected_input_sz
    assert size == (224 if is_imagenet_input else 32)
    logits = network(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_first_stem_output_is_rectified() -> None:
    # The published stem1 begins with an in-place ReLU, which changes what the first cell reads.
    genotype = Genotype(
        [("skip_connect", 0), ("max_pool_3x3", 1)],
        [2],
        [("skip_connect", 0), ("max_pool_3x3", 1)],
        [2],
    )
    network = Network(**simple(genotype=genotype, stem_type=1, preproc=False, C_mult=1))
    first, _ = network._stem_outputs(torch.randn(2, 3, 32, 32))
    assert first is not None
    assert first.min() == 0


def test_batch_statistics_are_always_used() -> None:
    network = Network(**simple()).eval()
    assert not list(network.buffers())
    images = torch.randn(4, 3, 32, 32)
    assert not torch.allclose(network(images)[:2], network(images[:2]))


def test_dictionary_genotype_builds_the_same_network() -> None:
    published = json.loads(json.dumps(to_dict(DARTS)))
    assert from_dict(published) == DARTS
    assert shapes(Network(**simple(genotype=published))) == shapes(Network(**simple()))


def test_dead_parts_have_parameters_but_are_not_run() -> None:
    genotype = Genotype(
        [("conv_3x3", 0), ("conv_1x1", 1)], [2],
        [("conv_3x3", 0), ("conv_5x5", 1), ("none", 0), ("none", 1)], [3],
    )  # fmt: skip
    network = Network(**simple(genotype=genotype, n_cells=6))  # cells 2 and 4 give nothing
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    used = {name: p.grad is not None for name, p in network.named_parameters()}
    assert not any(used[name] for name in used if name.startswith(("cells.2.", "cells.4.")))
    # Cells 3 and 5 read only the cell before the empty one.
    for cell in (3, 5):
        assert used[f"cells.{cell}._ops.0.op.1.weight"]
        assert not used[f"cells.{cell}._ops.1.op.1.weight"]
        assert not used[f"cells.{cell}.preprocess1.op.1.weight"]
    assert all(used[name] for name in used if name.startswith(("cells.0.", "cells.1.", "stem")))


def test_zeros_stand_for_states_cut_off() -> None:
    genotype = Genotype(
        [("conv_3x3", 0), ("conv_1x1", 1), ("none", 0), ("none", 1)], [2, 3],
        [("conv_3x3", 0), ("conv_1x1", 1), ("none", 0), ("none", 1)], [2, 3],
    )  # fmt: skip
    network = Network(**simple(genotype=genotype, n_cells=1))
    features = network.cells[0](*[torch.randn(2, 24, 8, 8)] * 2)
    assert features.shape == (2, 16, 8, 8)
    assert (features[:, 8:] == 0).all()
    assert (features[:, :8] != 0).any()


@pytest.mark.parametrize("index", range(0, 20, 3))
def test_ghost_has_the_same_parameters(conformance: list[dict[str, Any]], index: int) -> None:
    arguments = conformance[index]["net_args"]
    ghost = build_ghost(arguments, 10, is_imagenet_input=False)
    network = Network(**arguments, num_classes=10, is_imagenet_input=False)
    assert shapes(ghost) == shapes(network)
    assert all(parameter.is_meta for parameter in ghost.parameters())
    for name, parameter in network.named_parameters():
        owner, _, leaf = name.rpartition(".")
        ghost.get_submodule(owner)._parameters[leaf] = parameter
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ghost.eval()(images), network.eval()(images))


def test_ghosts_share_nothing() -> None:
    first, second = (
        build_ghost({"C": 8, "genotype": DARTS, "n_cells": 3}, 10, False) for _ in range(2)
    )
    module = first.cells[0].preprocess0.op
    module.register_forward_hook(lambda *_: None)
    module[1]._parameters["weight"] = torch.nn.Parameter(torch.zeros(8, 24, 1, 1))
    other = second.cells[0].preprocess0.op
    assert not other._forward_hooks
    assert other[1].weight.is_meta
    assert not {id(m) for m in first.modules()} & {id(m) for m in second.modules()}


def edges(name: str, source: int) -> Genotype:
    return DARTS._replace(normal=[(name, source), *DARTS.normal[1:]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"C": 0}, "C must be positive"),
        ({"n_cells": 0}, "n_cells must be positive"),
        ({"stem_type": 2}, "stem_type must be 0 or 1"),
        ({"ks": 4}, "ks must be odd"),
        ({"norm": "group"}, "unknown norm 'group'"),
        ({"fc_layers": 2}, "fc_dim must be positive with 2 fc_layers"),
        ({"preproc": False}, "preproc=False works only"),
        ({"C": 7, "stem_type": 1}, "even number of channels"),
        ({"genotype": VIT, "C": 12}, "do not split evenly"),
        ({"genotype": CUT}, "cut every path"),
        ({"glob_avg": False, "n_cells": 2}, "glob_avg=False needs both reductions"),
        ({"glob_avg": False, "genotype": VIT}, "glob_avg=False needs both reductions"),
        ({"genotype": edges("conv_9x9", 0)}, "unknown operation 'conv_9x9' in the normal cell"),
        ({"genotype": edges("conv_3x3", 2)}, "operation 0 of the normal cell reads state 2"),
        ({"genotype": DARTS._replace(normal=DARTS.normal[:3])}, "two operations per step"),
        ({"genotype": DARTS._replace(reduce_concat=[])}, "reduce_concat is empty"),
        ({"genotype": DARTS._replace(normal_concat=[6])}, r"normal_concat is \[6\]"),
        ({"genotype": {"normal": []}}, "lacks normal_concat, reduce, reduce_concat"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(**simple(**changes))


def test_genotype_of_another_type() -> None:
    with pytest.raises(TypeError, match="expected a Genotype or a dictionary, got str"):
        Network(**simple(genotype="DARTS"))
