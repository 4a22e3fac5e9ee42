"""Starts without training: the variances and the products that they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import ghn_fast
from ghn_fast._system.batch_norm import use_batch_statistics
from ghn_fast.nets import VIT, build_net


def _inputs(size: int = 32, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _variances(model: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    found: dict[str, float] = {}

    def keep(name: str) -> Any:
        return lambda _module, _arguments, output: found.update({name: float(output.var())})

    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(keep(name))
    with torch.no_grad():
        use_batch_statistics(model.eval())(inputs)
    return found


@pytest.mark.parametrize("orth", [True, False])
def test_every_layer_gives_a_variance_of_one(orth: bool) -> None:
    torch.manual_seed(0)
    model = ghn_fast.lsuv_(models.mobilenet_v2(num_classes=10), _inputs(), orth=orth)
    assert model.training
    found = _variances(model, _inputs())
    assert len(found) == 53
    assert all(0.85 < variance < 1.15 for variance in found.values()), found


def test_weights_are_orthonormal_but_for_a_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
    rows = ghn_fast.lsuv_(model, _inputs())[2].weight.detach().flatten(1)
    gram = rows @ rows.T
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(16), rtol=0, atol=1e-4)


def test_the_generator_decides() -> None:
    made = []
    for seed in (0, 0, 1):
        layer, generator = nn.Linear(6, 4, bias=False), torch.Generator().manual_seed(seed)
        made.append(ghn_fast.lsuv_(layer, torch.eye(6), generator=generator))
    assert made[0].weight.equal(made[1].weight)
    assert not made[0].weight.equal(made[2].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_memory_format_and_precision(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(3, 8, 3).to(dtype=dtype, memory_format=torch.channels_last)
    ghn_fast.lsuv_(conv, _inputs().to(dtype))
    assert abs(float(conv(_inputs().to(dtype)).detach().float().var()) - 1) < 0.1


def test_statistics_and_modes_stay() -> None:
    model = models.mobilenet_v2(num_classes=10)
    model.features[3].eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    ghn_fast.lsuv_(model, _inputs())
    assert all(value.equal(before[name]) for name, value in model.named_buffers())
    assert model.training
    assert not model.features[3].training


def test_a_layer_that_is_used_twice_is_scaled_once() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    ghn_fast.lsuv_(model, inputs)
    assert abs(float(layer(inputs).detach().var()) - 1) < 0.1


def test_a_weight_of_two_layers_is_scaled_where_it_is_used_first() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight

    class Louder(nn.Tanh):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 10 * super().forward(inputs)

    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    ghn_fast.lsuv_(nn.Sequential(first, Louder(), second), inputs)
    assert abs(float(first(inputs).detach().var()) - 1) < 0.1


def test_a_weight_of_an_embedding_is_kept() -> None:
    embedding, layer, output = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
    output.weight = embedding.weight
    before = embedding.weight.detach().clone()
    model = nn.Sequential(embedding, layer, output)
    ghn_fast.lsuv_(model, torch.arange(9))
    assert embedding.weight.equal(before)
    assert abs(float(layer(embedding.weight).detach().var()) - 1) < 0.1


def test_what_is_not_finite_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="layer '0' gives is not finite"):
        ghn_fast.lsuv_(model, torch.full((3, 4), math.inf))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def _vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    arguments = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 3}
    return models.VisionTransformer(**arguments, hidden_dim=48, mlp_dim=96, num_classes=10)


def test_products_are_near_the_identity() -> None:
    model: Any = _vision_transformer()
    generator = torch.Generator().manual_seed(3)
    ghn_fast.mimetic_(model, generator=generator)
    attention = model.encoder.layers[0].self_attention
    query, key, value = attention.in_proj_weight.detach().chunk(3)
    generator = torch.Generator().manual_seed(3)
    noises = [torch.randn(48, 48, generator=generator) / math.sqrt(48) for _ in range(4)]
    for head in range(3):
        rows = slice(16 * head, 16 * head + 16)
        u, s, v = torch.linalg.svd(0.7 * noises[head] + 0.7 * torch.eye(48))
        nearest = u[:, :16] * s[:16] @ v[:16]
        torch.testing.assert_close(query[rows].T @ key[rows], nearest, rtol=0, atol=1e-5)
    product = value.T @ attention.out_proj.weight.detach().T
    torch.testing.assert_close(product, 0.4 * noises[3] - 0.4 * torch.eye(48), rtol=0, atol=1e-5)
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()


def test_positions_are_waves_of_rows_and_columns() -> None:
    model: Any = _vision_transformer()
    before = model.encoder.pos_embedding.detach().clone()
    ghn_fast.mimetic_(model)
    table = model.encoder.pos_embedding.detach()
    assert table[:, 0].equal(before[:, 0])
    grid = table[0, 1:].view(4, 4, 48)
    rows, columns = grid[..., :24], grid[..., 24:]
    assert rows[:, :1].expand_as(rows).equal(rows)
    assert columns[:1].expand_as(columns).equal(columns)
    torch.testing.assert_close(rows[3, 0, :2], torch.tensor([3.0, 3 * 10_000 ** (-1 / 12)]).sin())
    kept = _vision_transformer()
    ghn_fast.mimetic_(kept, positions=False)
    assert kept.encoder.pos_embedding.equal(before)


def test_attention_of_other_libraries() -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "patch_size": 8, "depth": 1, "num_classes": 3}
    vit = timm.create_model("vit_tiny_patch16_224", **options)
    own = build_net(
        {"genotype": VIT, "n_cells": 1, "C": 32, "preproc": False, "C_mult": 1}, 10, False
    )
    for model in (vit, own):
        before = {name: value.clone() for name, value in model.named_parameters()}
        ghn_fast.mimetic_(model)
        changed = {n for n, value in model.named_parameters() if not value.equal(before[n])}
        assert any("qkv" in name for name in changed)
        assert all("qkv" in n or "to_out" in n or "proj" in n or "pos" in n for n in changed)


class _JointAttention(nn.Module):
    """With the names of the vit-pytorch package."""

    def __init__(self, queries: int, keys: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(16, queries + 2 * keys, bias=False)
        self.to_out = nn.Sequential(nn.Linear(queries, 16), nn.Dropout(0.0))


def test_more_channels_than_the_input_all_take_part() -> None:
    attention = ghn_fast.mimetic_(
        _JointAttention(96, 96, 4), generator=torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(0)
    query, key, value = attention.to_qkv.weight.detach().chunk(3)
    noise = torch.randn(16, 16, generator=generator) / 4
    product = query[:24].T @ key[:24]
    torch.testing.assert_close(product, 0.7 * noise + 0.7 * torch.eye(16), rtol=0, atol=1e-5)
    projection = attention.to_out[0].weight.detach()
    assert (value.T @ projection.T).diagonal().mean() == pytest.approx(-0.4, abs=0.1)
    assert all(part.norm(dim=1).min() > 0.01 for part in (query, key, value, projection.T))


@pytest.mark.parametrize(("queries", "keys", "heads"), [(16, 4, 4), (18, 18, 4)])
def test_attention_of_unequal_parts_is_left(queries: int, keys: int, heads: int) -> None:
    other = _JointAttention(queries, keys, heads)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="values of one width"):
        ghn_fast.mimetic_(other)
    ghn_fast.mimetic_(nn.ModuleList([other, nn.MultiheadAttention(8, 2)]))
    assert all(value.equal(before[name]) for name, value in other.state_dict().items())


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="ResNet has no attention"):
        ghn_fast.mimetic_(models.resnet18())


def test_selected_weights_are_evenly_spaced_values_of_the_larger_model() -> None:
    small, large = nn.Linear(2, 3), nn.Linear(5, 6)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    assert ghn_fast.select_weights_(small, large) is small
    assert small.weight.equal(large.weight[[0, 2, 4]][:, [0, 2]])
    assert small.bias.equal(large.bias[[0, 2, 4]])
    assert all(value.equal(before[name]) for name, value in large.state_dict().items())


def test_channels_are_chosen_alike_in_all_layers() -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "patch_size": 8, "num_heads": 1, "num_classes": 0}
    small, large = (
        timm.create_model("vit_tiny_patch16_224", embed_dim=width, depth=depth, **options)
        for width, depth in ((8, 1), (24, 2))
    )
    ghn_fast.select_weights_(small, large)
    chosen = torch.arange(8) * 3
    assert small.pos_embed.equal(large.pos_embed[..., chosen])
    joint = small.blocks[0].attn.qkv.weight.chunk(3)
    for own, whole in zip(joint, large.blocks[0].attn.qkv.weight.chunk(3), strict=True):
        assert own.equal(whole[chosen][:, chosen])


def test_what_the_larger_model_lacks_is_kept() -> None:
    small = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 9))
    before = small[1].weight.clone()
    large = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    ghn_fast.select_weights_(small, large)
    assert small[1].weight.equal(before)
    assert small[0].bias.equal(large[0].bias[[0, 2]])
    with pytest.raises(ValueError, match="larger model of the same family"):
        ghn_fast.select_weights_(nn.Linear(9, 9), large)


def test_tables_of_indices_are_not_thinned_out() -> None:
    small = models.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=10)
    large = models.SwinTransformer([4, 4], 48, [2, 2], [3, 6], [7, 7], num_classes=10)
    before = {name: value.clone() for name, value in small.named_buffers()}
    ghn_fast.select_weights_(small, large)
    assert all(value.equal(before[name]) for name, value in small.named_buffers())
    assert small(_inputs(count=1)).isfinite().all()
    counted, whole = nn.BatchNorm1d(2), nn.BatchNorm1d(4)
    whole(torch.randn(3, 4))
    assert ghn_fast.select_weights_(counted, whole).num_batches_tracked == 1


def test_extra_state_is_kept() -> None:
    class Noted(nn.Linear):
        def get_extra_state(self) -> str:
            return "a note"

    small, large = Noted(2, 3), Noted(5, 6)
    assert ghn_fast.select_weights_(small, large).bias.equal(large.bias[[0, 2, 4]])


@pytest.mark.parametrize(
    "start",
    [
        ghn_fast.mimetic_,
        ghn_fast.refine_,
        lambda model: ghn_fast.lsuv_(model, _inputs()),
        lambda model: ghn_fast.select_weights_(model, _vision_transformer()),
    ],
)
def test_what_cannot_be_written_to_is_refused(start: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"'class_token' is on the meta device.*fill=True"):
        start(_vision_transformer().to("meta"))
    with torch.inference_mode():
        model = _vision_transformer()
    with pytest.raises(ValueError, match="'class_token' was made in inference mode"):
        start(model)
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet"):
        start(nn.Sequential(nn.LazyLinear(3), _vision_transformer()))


def test_a_larger_model_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="load its trained weights"):
        ghn_fast.select_weights_(nn.Linear(2, 2), nn.Linear(3, 3, device="meta"))
