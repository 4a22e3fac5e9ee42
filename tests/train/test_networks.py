from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from ghn_fast._system.processes import Processes
from ghn_fast.graph import Graph
from ghn_fast.nets import count_parameters
from ghn_fast.nets.families import FAMILIES
from ghn_fast.nets.measure.work import network_work
from ghn_fast.train.config import ConfigError, TrainConfig
from ghn_fast.train.networks import (
    NetworkStream,
    image_counts,
    source,
    training_args,
    values_to_device,
)

LIMITS = TrainConfig(
    widths=(16, 32, 64), max_work=120, max_cells=12, max_parameters=500_000, meta_batch=3
)


def test_networks_are_within_the_limits() -> None:
    found = [training_args(LIMITS, index) for index in range(100)]
    accepted = [net_args for net_args in found if net_args is not None]
    assert 10 < len(accepted) < 100
    assert {net_args["C"] for net_args in accepted} == {16, 32, 64}
    for net_args in accepted:
        assert network_work(net_args) <= 120
        assert net_args["n_cells"] <= 12
        assert count_parameters(net_args) <= 500_000


def test_work_is_that_for_the_images() -> None:
    config = TrainConfig(widths=(16,), max_work=120, max_parameters=None, meta_batch=2)
    stream = NetworkStream(config, 1000, is_imagenet_input=True, image_size=128)
    for network in stream.draw(0)[0]:
        net_args = training_args(config, network.graph.index or 0, 1000, True, 128)
        assert net_args is not None
        assert network.work == network_work(net_args, 128, 1000, is_imagenet_input=True) <= 120


def test_without_limits_nothing_is_passed_over() -> None:
    config = TrainConfig(max_work=None, max_parameters=None)
    assert all(training_args(config, index) for index in range(30))


def test_a_position_gives_the_same_networks_always() -> None:
    one, other = NetworkStream(LIMITS, 10), NetworkStream(LIMITS, 10)
    _, position = one.draw(0)
    batch, after = one.draw(position)
    again, position_again = other.draw(position)
    assert after == position_again
    assert [n.graph.index for n in batch] == [n.graph.index for n in again]
    assert [n.graph.digest() for n in batch] == [n.graph.digest() for n in again]


def test_the_graph_is_that_of_the_network() -> None:
    for model, graph, *_ in NetworkStream(LIMITS, 7).draw(0)[0]:
        assert graph.digest() == Graph.from_model(model).digest()


def test_a_limited_number_of_networks_is_taken_in_turn() -> None:
    stream = NetworkStream(TrainConfig(num_networks=40, meta_batch=3), 10)
    seen, position = [], 0
    while position < 80:
        batch, position = stream.draw(position)
        indices = [network.graph.index for network in batch]
        assert len(set(indices)) == 3
        seen += indices
    assert max(seen) < 40
    assert len(seen) > len(set(seen))


def test_expensive_networks_get_fewer_images() -> None:
    config = TrainConfig(
        meta_batch=12, image_batch=32, max_work=None, max_parameters=None, network_work=1500
    )
    networks, _ = NetworkStream(config, 10).draw(0)
    counts = image_counts(config, networks)
    assert len(set(counts)) > 2
    for count, network in zip(counts, networks, strict=True):
        assert count in (8, 16, 24, 32)
        assert count == config.min_images or count * network.work <= 1500
        assert count == 32 or (count + 8) * network.work > 1500
    assert image_counts(LIMITS, networks) == [LIMITS.image_batch] * 12


def test_impossible_limits_are_named() -> None:
    config = TrainConfig(max_work=0.001, num_networks=10)
    with pytest.raises(
        ConfigError, match=r"among 10 networks fewer than 8 are within max_work=0\.001"
    ):
        NetworkStream(config, 10).draw(0)


def test_too_few_networks_for_a_step_are_named() -> None:
    with pytest.raises(ConfigError, match="num_networks=7 is fewer than the 8 different"):
        NetworkStream(TrainConfig(num_networks=7), 10)


def test_a_limit_of_nodes_draws_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(widths=None, max_work=None, max_parameters=None, meta_batch=3)
    limited = replace(config, max_nodes=300)
    position, seen = 0, []
    for _ in range(5):
        batch, position = NetworkStream(limited, 10).draw(position)
        seen.append(sum(network.graph.num_nodes for network in batch))
    assert max(seen) <= 300
    assert position > 15
    monkeypatch.setattr("ghn_fast.train.networks._MOST_REFUSALS", 20)
    with pytest.raises(ConfigError, match="no 3 networks were found with at most max_nodes=2"):
        NetworkStream(replace(config, max_nodes=2), 10).draw(0)


def test_nodes_are_counted_without_graphs() -> None:
    stream = NetworkStream(LIMITS, 10)
    batch, _ = stream.draw(0)
    counts = stream._count_nodes([network.graph.index or 0 for network in batch])
    assert counts == [network.graph.num_nodes for network in batch]


MIXED = replace(LIMITS, mixture={"deepnets": 1.0, "families": 1.0, "families/plain": 2.0})


def test_parts_of_a_mixture_have_their_shares() -> None:
    drawn = [source(MIXED, index) for index in range(2000)]
    for name, weight in MIXED.mixture.items():
        assert abs(drawn.count(name) - 2000 * weight / 4) < 100
    assert {source(LIMITS, index) for index in range(100)} == {"deepnets"}


def test_a_mixture_keeps_the_limits_and_the_families() -> None:
    stream = NetworkStream(MIXED, 10)
    networks, position = [], 0
    while len(networks) < 24:
        batch, position = stream.draw(position)
        networks += batch
    kinds = {network.family for network in networks}
    assert {"deepnets", "plain"} < kinds <= {"deepnets", *FAMILIES}
    for network in networks:
        assert network.work <= 120
        index = network.graph.index or 0
        assert (source(MIXED, index) == "deepnets") == (network.family == "deepnets")
        if source(MIXED, index) == "families/plain":
            assert network.family == "plain"
        if network.family != "deepnets":
            assert sum(p.numel() for p in network.model.parameters()) <= 500_000


def test_a_position_gives_the_same_mixture_always() -> None:
    _, position = NetworkStream(MIXED, 10).draw(0)
    batches = [NetworkStream(MIXED, 10).draw(position) for _ in range(2)]
    assert batches[0][1] == batches[1][1]
    digests = [[network.graph.digest() for network in batch] for batch, _ in batches]
    assert digests[0] == digests[1]


def test_nodes_of_a_mixture_are_counted() -> None:
    stream = NetworkStream(MIXED, 10)
    batch, _ = stream.draw(0)
    counts = stream._count_nodes([network.graph.index or 0 for network in batch])
    assert counts == [network.graph.num_nodes for network in batch]


PARTS = replace(
    LIMITS,
    max_work=400,
    meta_batch=8,
    mixture={"deepnets": 1.0, "deepnets/attention": 1.0, "deepnets/bnfree": 2.0},
)


def test_networks_with_attention_and_without_norms_are_parts_of_their_own() -> None:
    stream = NetworkStream(PARTS, 10)
    networks = [*stream.draw(0)[0], *stream.draw(8)[0]]
    assert {network.family for network in networks} == set(PARTS.mixture)
    for network in networks:
        assert network.family == source(PARTS, network.number)
        types = {node.type for node in network.graph.nodes}
        if network.family == "deepnets/attention":
            assert "ln" in types
        if network.family == "deepnets/bnfree":
            assert "bn" not in types
            assert not any(isinstance(m, nn.BatchNorm2d) for m in network.model.modules())
    counts = stream._count_nodes([network.number for network in networks])
    assert counts == [network.graph.num_nodes for network in networks]


def test_parts_of_deepnets_are_for_images_of_any_size() -> None:
    NetworkStream(PARTS, 10, image_size=64)


def test_families_are_for_small_images() -> None:
    with pytest.raises(ConfigError, match="are for images of size 32, not 64"):
        NetworkStream(MIXED, 10, image_size=64)
    NetworkStream(LIMITS, 10, image_size=64)


def test_limits_that_no_family_is_within_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.nets.families.space._ATTEMPTS", 1)
    config = TrainConfig(mixture={"families": 1.0}, max_work=0.001)
    with pytest.raises(ConfigError, match=r"among 50 networks .* are within max_work=0\.001"):
        NetworkStream(config, 10).draw(0)


def test_a_process_builds_its_own_networks_of_a_mixture_alone() -> None:
    config = replace(MIXED, meta_batch=12)
    (whole, after), built = NetworkStream(config, 10).draw(40), []
    for rank in range(3):
        stream = NetworkStream(replace(config, meta_batch=4), 10, processes=Processes(rank, 3))
        part, after_part = stream.draw(40)
        assert after_part == after == 52
        assert set(stream._members) <= {network.graph.index for network in part}
        built.append(part)
    parts = [Counter(source(MIXED, 40 + network.place) for network in part) for part in built]
    assert all(max(counts) - min(counts) <= 1 for counts in zip(*map(_counts, parts), strict=True))
    together = sorted((network for part in built for network in part), key=lambda n: n.place)
    assert [network.place for network in together] == list(range(12))
    assert [n.graph.digest() for n in together] == [n.graph.digest() for n in whole]


def _counts(parts: Counter[str]) -> list[int]:
    return [parts[name] for name in MIXED.mixture]


def test_what_is_refused_leaves_the_shares_of_a_mixture() -> None:
    config = replace(MIXED, max_work=30, meta_batch=8)
    networks, _ = NetworkStream(config, 10).draw(0)
    assert any((network.graph.index or 0) >= 2**40 for network in networks)
    expected = [source(config, place) == "deepnets" for place in range(8)]
    assert [network.family == "deepnets" for network in networks] == expected


def test_values_that_a_network_has_move_to_a_device() -> None:
    config = TrainConfig(
        mixture={"families/convnext": 1.0}, max_work=200, max_parameters=None, meta_batch=6
    )
    seen: set[str] = set()
    for network in NetworkStream(config, 10).draw(0)[0]:
        tensors = [*network.model.parameters(), *network.model.buffers()]
        seen |= {name for name, p in network.model.named_parameters() if not p.is_meta}
        assert values_to_device(network.model, torch.device("meta")) is network.model
        assert all(tensor.is_meta for tensor in network.model.parameters())
        assert all(tensor.is_meta for tensor in network.model.buffers())
        assert len([*network.model.parameters(), *network.model.buffers()]) == len(tensors)
    assert any("layer_scale" in name for name in seen)


def test_a_size_that_the_networks_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size=40: .* take 32"):
        NetworkStream(TrainConfig(), 10, is_imagenet_input=True, image_size=40)
