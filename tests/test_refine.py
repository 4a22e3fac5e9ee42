from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast.refine import count_layers, orthogonal, refine_last_third_


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Linear(4, 2)
    )


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (4, 64), (64, 4), (5, 5)])
def test_weights_become_orthogonal(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    matrix = orthogonal(weight).flatten(1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
    # A QR decomposition with positive signs keeps what is orthogonal already.
    torch.testing.assert_close(orthogonal(matrix), matrix, rtol=0, atol=1e-5)
    before = weight.flatten(1)
    by_vector = 1 if matrix.shape[0] <= matrix.shape[1] else 0
    assert ((matrix * before).sum(by_vector) > 0).all(), "a row or column has turned round"


@pytest.mark.parametrize("shape", [(4, 3), (3, 3)])
def test_the_first_column_keeps_its_direction_unless_rows_are_fewer(
    shape: tuple[int, int],
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    first = weight[:, 0]
    torch.testing.assert_close(orthogonal(weight)[:, 0], first / first.norm())


def test_a_row_of_zeros_gets_a_direction() -> None:
    weight = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    rows = orthogonal(weight)
    torch.testing.assert_close(rows[0], weight[0] / 5)
    torch.testing.assert_close(rows @ rows.T, torch.eye(2), rtol=0, atol=1e-6)


def test_all_but_the_classification_layer_change() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert ghn_fast.refine_(model) is model
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"0.weight", "2.weight"}
    assert ghn_fast.refine_(make_model(), first_layer=2)[0].weight.equal(before["0.weight"])


def test_layers_are_weights_and_no_other_parameters_of_two_dimensions() -> None:
    from torchvision import models

    with torch.device("meta"):
        assert count_layers(models.resnet50()) == 54  # as arXiv 2207.10049 counts them
        assert count_layers(models.convnext_tiny()) == 59  # and 18 scales (C, 1, 1)


def test_noise_is_scaled_by_the_correlations() -> None:
    model = make_model()
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:2].repeat(2, 1, 1, 1))
    before = model[2].weight.detach().clone()
    generator = torch.Generator().manual_seed(3)
    ghn_fast.refine_(model, orth=False, noise=0.5, first_layer=2, generator=generator)
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(3))
    rows = before.flatten(1).T
    expected = before + 0.5 * torch.corrcoef(rows).std() * noise
    torch.testing.assert_close(model[2].weight.detach(), expected)


@pytest.mark.parametrize("shape", [(5, 2), (4, 4)])
def test_rows_are_correlated_unless_they_are_fewer_than_columns(shape: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(shape[1], shape[0]), nn.Linear(shape[0], 2))
    before = model[0].weight.detach().clone()
    ghn_fast.refine_(model, orth=False, noise=1.0, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = before + torch.corrcoef(before).std() * noise
    torch.testing.assert_close(model[0].weight.detach(), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
def test_a_long_layer_takes_memory_of_its_own_size(tmp_path: Path) -> None:
    """A word embedding has as many rows as there are words, and their correlations are squares."""
    program = """
import resource, torch, ghn_fast
from torch import nn
layer = nn.Linear(8, 20_000)
model = nn.Sequential(layer, nn.Linear(20_000, 2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ghn_fast.refine_(model, orth=False, noise=1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) < 100_000  # KiB; all correlations of the rows are 1.6 GB


def test_repeated_channels_differ_afterwards() -> None:
    block = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight.copy_(block.repeat(4, 1, 1, 1))
    ghn_fast.refine_(nn.Sequential(conv, nn.Linear(8, 2)))
    rows = conv.weight.detach().flatten(1)
    assert torch.pdist(rows).min() > 1
    assert torch.isfinite(rows).all()


def test_only_what_was_tiled_gets_noise() -> None:
    model = make_model()
    first = model[0].weight.detach().clone()
    ghn_fast.refine_(model, orth=False, noise=1.0, min_channels=2)
    assert torch.equal(model[0].weight[:2], first[:2])
    assert torch.equal(model[0].weight[:, :2], first[:, :2])
    assert not torch.equal(model[0].weight[2:, 2:], first[2:, 2:])


def test_weights_of_the_block_s_size_are_left_alone() -> None:
    changed = []
    for min_channels in (7, 8):
        model = make_model()
        before = model[0].weight.detach().clone()
        ghn_fast.refine_(model, min_channels=min_channels)
        changed.append(not torch.equal(model[0].weight, before))
    assert changed == [True, False]


def test_kernels_do_not_count_as_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 9), nn.Linear(2, 2))
    before = model[0].weight.detach().clone()
    ghn_fast.refine_(model, min_channels=4)
    assert torch.equal(model[0].weight, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3), (4, 3)])
def test_weights_without_correlations_get_no_noise(shape: tuple[int, int]) -> None:
    """Where no value of a row differs from the others, rows vary with nothing."""
    model = nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 2))
    nn.init.constant_(model[0].weight, 0.1)
    ghn_fast.refine_(model, orth=False, noise=1.0)
    assert torch.equal(model[0].weight, torch.full(shape[::-1], 0.1))


@pytest.mark.parametrize("option", ["noise", "first_layer", "min_channels"])
def test_negative_numbers_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ghn_fast.refine_(make_model(), **{option: -1})


def test_buffers_are_no_weights() -> None:
    model = make_model()
    fixed = nn.Module()
    fixed.register_buffer("weight", torch.ones(2, 2))
    model.insert(0, fixed)
    ghn_fast.refine_(model)
    assert torch.equal(fixed.weight, torch.ones(2, 2))


def test_tied_weight_of_the_classifier_is_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(12, 4), nn.Linear(4, 4), nn.Linear(4, 12, bias=False))
    model[2].weight = model[0].weight
    before = model[0].weight.detach().clone()
    ghn_fast.refine_(model)
    assert torch.equal(model[0].weight, before)
    product = model[1].weight.detach() @ model[1].weight.detach().T
    torch.testing.assert_close(product, torch.eye(4), rtol=0, atol=1e-5)


def test_computed_weights_are_refused() -> None:
    model = make_model()
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError, match=r"2\.weight is computed from other parameters"):
        ghn_fast.refine_(model)


def test_last_third() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)), nn.Linear(8, 4))
    before = [layer.weight.clone() for layer in model]
    refine_last_third_(model)
    changed = [
        not torch.equal(layer.weight, weight) for layer, weight in zip(model, before, strict=True)
    ]
    assert changed == [False] * 5 + [True, False], "the output layer is the seventh"
    torch.testing.assert_close(model[5].weight @ model[5].weight.T, torch.eye(8))
