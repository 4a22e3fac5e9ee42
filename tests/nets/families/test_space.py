"""Random networks of the families that people use."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from ghn_fast.ghn import GHNConfig, make_ghn
from ghn_fast.graph import Graph
from ghn_fast.nets import adjust_net
from ghn_fast.nets.families import FAMILIES, Member, family_of, sample_member, space
from ghn_fast.nets.families.ghosts import Ghosts
from ghn_fast.nets.families.named import named_architectures
from ghn_fast.nets.families.signature import signature


def members(family: str, count: int = 2, max_work: float = 100) -> list[Member]:
    return [
        sample_member("families/val", 0, index, family=family, max_work=max_work)
        for index in range(count)
    ]


def test_a_network_is_a_function_of_seed_split_and_index() -> None:
    first, again = (sample_member("families/train", 3, 17) for _ in range(2))
    assert (first.family, first.work) == (again.family, again.work)
    assert first.graph.digest() == again.graph.digest()
    others = [("families/val", 3, 17), ("families/train", 4, 17), ("families/train", 3, 18)]
    for split, seed, index in others:
        assert sample_member(split, seed, index).graph.digest() != first.graph.digest()


@pytest.mark.parametrize("draw", [family_of, sample_member])
@pytest.mark.parametrize(
    ("seed", "index", "message"),
    [
        (-1, 0, "seed must be from 0 to"),
        (1 << 64, 0, "seed must be from 0 to"),
        (0, -1, "index must be from 0 to"),
        (0, 1 << 64, "index must be from 0 to"),
    ],
)
def test_only_seeds_and_indices_in_range_have_networks(
    draw: Callable[[str, int, int], object], seed: int, index: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw("families/val", seed, index)


def test_all_families_are_drawn_by_their_shares() -> None:
    drawn = [family_of("families/train", 0, index) for index in range(3000)]
    total = sum(share for share, _ in FAMILIES.values())
    for family, (share, _) in FAMILIES.items():
        expected = 3000 * share / total
        assert abs(drawn.count(family) - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_parameters_are_predicted_or_have_values(family: str) -> None:
    ghn = make_ghn(GHNConfig(num_classes=10, max_shape=(16, 16, 3, 3), hid=8)).train()
    images = torch.randn(4, 3, 32, 32)
    for member in members(family):
        assert not member.graph.unused
        parameters = dict(member.model.named_parameters())
        assert not any(parameters[name].is_meta for name in member.graph.other)
        leaves = ghn.attach_leaves([member.model], [member.graph])
        logits = member.model(images)
        logits.square().mean().backward()
        assert logits.shape == (4, 10)
        assert logits.isfinite().all()
        assert all(leaf.grad is not None for leaf in leaves.tensors)


def test_small_networks_are_perceptrons_or_have_flattened_or_averaged_maps() -> None:
    kinds = {"perceptron": 0, "flattened": 0, "averaged": 0}
    for index in range(40):
        model = sample_member("families/train", 0, index, family="small").model
        layers = {type(layer) for layer in model.modules()}
        averaged = nn.AdaptiveAvgPool2d in layers
        kind = "averaged" if averaged else "flattened" if nn.Conv2d in layers else "perceptron"
        kinds[kind] += 1
    assert min(kinds.values()) >= 3
    assert kinds["flattened"] > 20


def test_the_number_of_classes_is_an_argument() -> None:
    for index in range(8):
        member = sample_member("families/test", 0, index, num_classes=7, max_work=150)
        last = [node for node in member.graph.nodes if node.parameter is not None][-2:]
        assert [(node.shape or ())[0] for node in last] == [7, 7]


def test_what_a_ghn_does_not_decode_has_its_authors_values() -> None:
    with Ghosts(seed=0):
        convnext = models.ConvNeXt([models.convnext.CNBlockConfig(16, None, 2)], layer_scale=1e-6)
        transformer = models.VisionTransformer(32, 8, 1, 2, 16, 32)
        swin = models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4])
    assert all((block.layer_scale == 1e-6).all() for block in convnext.features[1])
    assert not transformer.class_token.any()
    attention = swin.features[1][0].attn
    whole = models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4]).features[1][0].attn
    assert 0.01 < attention.relative_position_bias_table.std() < 0.03
    assert torch.equal(attention.relative_position_index, whole.relative_position_index)
    assert attention.qkv.weight.is_meta


def test_ghosts_draw_from_no_global_generator() -> None:
    before = torch.get_rng_state()
    with Ghosts(seed=5):
        models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4])
    assert torch.equal(torch.get_rng_state(), before)


def test_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(8):
        member = sample_member("families/train", 0, index, max_work=150, max_parameters=2_000_000)
        assert member.work <= 150
        assert member.parameters <= 2_000_000
        assert member.family == family_of("families/train", 0, index)
    monkeypatch.setattr(space, "_ATTEMPTS", 3)
    with pytest.raises(ValueError, match=r"beyond max_work=0\.001"):
        sample_member("families/train", 0, 0, family="plain", max_work=0.001)


def test_no_network_is_of_two_splits() -> None:
    """Of a family so small that a long run meets all of its networks."""
    counts = {"families/train": 150, "families/val": 12, "families/test": 12}
    seen = {
        split: {
            sample_member(split, 0, n, family="conv_mixer").graph.digest() for n in range(count)
        }
        for split, count in counts.items()
    }
    for split, other in combinations(seen, 2):
        assert not seen[split] & seen[other]


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match="unknown split 'train'"):
        sample_member("train", 0, 0)
    with pytest.raises(ValueError, match="unknown family 'lenet'"):
        sample_member("families/train", 0, 0, family="lenet")


def test_named_architectures_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = sample_member("families/val", 0, 2)
    monkeypatch.setattr(space, "named_architectures", lambda: {signature(first.graph)})
    other = sample_member("families/val", 0, 2)
    assert other.family == first.family
    assert signature(other.graph) != signature(first.graph)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn", "convnext_tiny"])
def test_named_architectures_are_known_at_any_width(name: str) -> None:
    with torch.device("meta"):
        whole, fitted = models.get_model(name), adjust_net(models.get_model(name))
    for model in (whole, fitted):
        assert signature(Graph.from_model(model)) in named_architectures()


def test_a_signature_is_without_widths_and_stem() -> None:
    def net(width: int, stem: int, kernel: int = 3) -> Graph:
        return Graph.from_model(
            nn.Sequential(nn.Conv2d(3, width, stem), nn.Conv2d(width, 4, kernel), nn.Flatten())
        )

    assert signature(net(8, 3)) == signature(net(16, 7))
    assert signature(net(8, 3)) != signature(net(8, 3, kernel=5))


COUNTED = (
    *("residual", "convnext", "transformer", "swin", "mlp_mixer", "pyramid", "coat", "fastvit"),
    *("levit", "pit", "star", "xcit", "text"),
)


@pytest.mark.parametrize("family", COUNTED)
def test_multiply_adds_are_those_of_pytorch(family: str) -> None:
    images = 2
    for member in members(family):
        model = member.model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.zero_()
        # The attention that PyTorch fuses is not in its own count.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(images, 3, 32, 32))
        expected = counter.get_total_flops() / 2 / images
        assert member.multiply_adds == pytest.approx(expected, rel=0.05)
