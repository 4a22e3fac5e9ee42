"""Values of parameters that no node stands for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.ghn.place.fill import LAYER_SCALE, RULES, TABLE_STD, fill


class Holder(nn.Module):
    """A module with one parameter."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


def filled(value: Tensor, kind: str) -> tuple[str, Tensor]:
    """The rule that a tensor of this kind falls under and the value it gets."""
    model = Holder(value)
    rules = fill(model, {"value": kind})
    return rules["value"], model.value.detach()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("class_token", "token"),
        ("token", "token"),
        ("embedding", "embedding"),
        ("relative_position_bias", "relative_position_bias"),
    ],
)
def test_tokens_and_tables_are_small_and_normal(kind: str, rule: str) -> None:
    found, value = filled(noise(100, 64), kind)
    assert found == rule
    assert value.abs().max() <= 2 * TABLE_STD
    assert value.std().item() == pytest.approx(0.88 * TABLE_STD, rel=0.05)  # cut at two
    assert value.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize(
    ("kind", "rule", "expected"),
    [
        ("layer_scale", "layer_scale", LAYER_SCALE),
        ("scale", "gain", 1.0),
        ("weight_gain", "gain", 1.0),
        ("bias", "zero_bias", 0.0),
        ("norm_bias", "zero_bias", 0.0),
    ],
)
def test_vectors_that_are_not_constant(kind: str, rule: str, expected: float) -> None:
    found, value = filled(noise(12), kind)
    assert found == rule
    assert torch.equal(value, torch.full((12,), expected))


@pytest.mark.parametrize("kind", [*RULES, "something new"])
def test_constants_of_the_architecture_are_kept(kind: str) -> None:
    found, value = filled(torch.full((5, 1, 1), 1e-6), kind)
    assert found == "constant"
    assert torch.equal(value, torch.full((5, 1, 1), 1e-6))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_scalars_are_kept(shape: tuple[int, ...]) -> None:
    found, value = filled(torch.full(shape, 2.6593), "scalar")
    assert found == "constant"
    assert torch.equal(value, torch.full(shape, 2.6593))


def test_scalar_without_a_value() -> None:
    assert filled(torch.tensor(float("nan")), "scalar") == ("gain", torch.tensor(1.0))


def test_vector_without_values() -> None:
    found, value = filled(torch.full((4,), float("nan")), "layer_scale")
    assert found == "layer_scale"
    assert torch.equal(value, torch.full((4,), LAYER_SCALE))


@pytest.mark.parametrize(
    "table",
    [
        torch.arange(1.0, 17).log().repeat(6, 1),  # decays of a state space model
        10000 ** -torch.linspace(0, 1, 32),  # frequencies
        torch.arange(20.0).repeat_interleave(3).view(20, 3),
    ],
)
def test_tables_in_order_are_kept(table: Tensor) -> None:
    found, value = filled(table.clone(), "unknown")
    assert found == "ordered"
    assert torch.equal(value, table)


def test_nothing_to_fill() -> None:
    found, value = filled(torch.zeros(0, 3), "class_token")
    assert found == "empty"
    assert value.shape == (0, 3)


def test_unknown_matrices_keep_the_variance() -> None:
    found, value = filled(noise(200, 64), "unknown")
    assert found == "fan_in"
    assert value.std().item() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights(make: Callable[[int, int], nn.RNNBase]) -> None:
    layer = make(30, 20)
    rules = fill(layer, dict.fromkeys(dict(layer.named_parameters()), "unknown"))
    assert rules["weight_hh_l0"] == rules["weight_ih_l0"] == "recurrent_weight"
    assert rules["bias_ih_l0"] == "zero_bias"
    for gate in layer.weight_hh_l0.detach().split(20):
        torch.testing.assert_close(gate @ gate.T, torch.eye(20), atol=1e-5, rtol=0)
    bound = (3 / 30) ** 0.5
    assert 0.9 * bound < layer.weight_ih_l0.abs().max().item() <= bound
    assert not layer.bias_hh_l0.any()


def test_projected_states_have_no_square_matrix() -> None:
    layer = nn.LSTM(8, 12, proj_size=5)
    fill(layer, dict.fromkeys(dict(layer.named_parameters()), "recurrent_weight"))
    assert all(p.isfinite().all() for p in layer.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("parametrised", [True, False])
def test_magnitude_is_that_of_the_direction(parametrised: bool) -> None:
    """So that the layer's weight is what was predicted for its direction."""
    normed = nn.utils.parametrizations.weight_norm if parametrised else nn.utils.weight_norm
    layer = normed(nn.Conv2d(3, 8, 3))
    names = [name for name, _ in layer.named_parameters() if name != "bias"]
    magnitude, direction = names
    with torch.no_grad():
        predicted = layer.get_parameter(direction).copy_(noise(8, 3, 3, 3))
    assert fill(layer, {magnitude: "weight_gain"}) == {magnitude: "weight_norm"}
    layer(torch.zeros(1, 3, 3, 3))  # the older form computes its weight in a hook
    torch.testing.assert_close(layer.weight, predicted)


def test_a_factor_of_a_product_of_matrices_is_no_gain() -> None:
    found, value = filled(noise(64, 4), "weight_gain")
    assert found == "fan_in"
    assert value.std().item() == pytest.approx(0.5, rel=0.1)


def test_padding_row_of_an_embedding_is_zero() -> None:
    layer = nn.Embedding(100, 8, padding_idx=3)
    assert fill(layer, {"weight": "embedding"}) == {"weight": "embedding"}
    assert not layer.weight[3].any()
    assert layer.weight[4].any()


def test_values_depend_on_names_alone() -> None:
    """On neither the values before nor the global random state, which stays as it is."""
    model, again = (nn.ParameterDict({"a": noise(9, 9), "b": noise(9, 9)}) for _ in range(2))
    with torch.no_grad():
        again["a"].mul_(7)
    kinds = {"a": "token", "b": "token"}
    fill(model, kinds)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fill(again, kinds)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model["a"], again["a"])
    assert not torch.equal(model["a"], model["b"])


def test_other_precisions() -> None:
    _, single = filled(noise(6, 6), "token")
    found, half = filled(noise(6, 6).bfloat16(), "token")
    assert found == "token"
    assert torch.equal(half, single.bfloat16())
