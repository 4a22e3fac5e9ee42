"""Values of parameters that are not decoded, in models that have none worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
import ghn_fast.checkpoint
import ghn_fast.graph
from ghn_fast.ghn.place.fill import LAYER_SCALE, RULES, TABLE_STD, Loose, value_of
from ghn_fast.graph import CHANNEL_NODE_TYPES, Graph


def filled(shape: tuple[int, ...], kind: str, name: str = "value") -> tuple[str, Tensor]:
    """The rule that a tensor of this kind falls under and the value it gets."""
    return value_of(Loose(name, torch.Size(shape), nn.Module()), kind)


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
    found, value = filled((100, 64), kind)
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
        ("slope", "slope", 0.25),
    ],
)
def test_vectors(kind: str, rule: str, expected: float) -> None:
    found, value = filled((12,), kind)
    assert found == rule
    assert torch.equal(value, torch.full((12,), expected))


@pytest.mark.parametrize("kind", [*RULES, "something new"])
def test_every_kind_has_a_finite_value_of_any_shape(kind: str) -> None:
    for shape in ((7,), (4, 6), (3, 4, 6), (2, 3, 4, 5, 6, 7)):
        _, value = filled(shape, kind)
        assert value.shape == shape
        assert value.isfinite().all()


@pytest.mark.parametrize("kind", ["scalar", "unknown", "gate"])
def test_scalars_change_nothing(kind: str) -> None:
    assert filled((), kind) == ("gain", torch.tensor(1.0))


def test_kernels_and_matrices_keep_the_variance() -> None:
    assert filled((200, 16, 2, 2), "weight")[1].std().item() == pytest.approx(1 / 8, rel=0.05)
    assert filled((200, 64), "unknown")[1].std().item() == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("shape", [(8, 64, 256), (8, 256, 64)])
def test_stacked_matrices_keep_the_variance_whichever_way_they_are_stored(
    shape: tuple[int, ...],
) -> None:
    _, value = filled(shape, "unknown")
    assert value.std().item() == pytest.approx((2 / 320) ** 0.5, rel=0.05)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights(make: Callable[[int, int], nn.RNNBase]) -> None:
    layer = make(30, 20)
    values = {
        name: value_of(Loose(name, parameter.shape, layer))
        for name, parameter in layer.named_parameters()
    }
    assert values["weight_hh_l0"][0] == values["weight_ih_l0"][0] == "recurrent_weight"
    assert values["bias_ih_l0"][0] == "zero_bias"
    for gate in values["weight_hh_l0"][1].split(20):
        torch.testing.assert_close(gate @ gate.T, torch.eye(20), atol=1e-5, rtol=0)
    bound = (3 / 30) ** 0.5
    assert 0.9 * bound < values["weight_ih_l0"][1].abs().max().item() <= bound


def test_projected_states_have_no_square_matrix() -> None:
    layer = nn.LSTM(8, 12, proj_size=5)
    for name, parameter in layer.named_parameters():
        assert value_of(Loose(name, parameter.shape, layer))[1].isfinite().all()


def test_a_factor_of_a_product_of_matrices_is_no_gain() -> None:
    found, value = filled((64, 4), "weight_gain")
    assert found == "fan_in"
    assert value.std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["embedding", None])
def test_padding_row_of_an_embedding_is_zero(kind: str | None) -> None:
    layer = nn.Embedding(100, 8, padding_idx=3)
    rule, value = value_of(Loose("weight", layer.weight.shape, layer), kind)
    assert rule == "embedding"
    assert not value[3].any()
    assert value[4].any()


@pytest.mark.parametrize(
    ("layer", "name", "rule"),
    [
        (nn.Linear(3, 3), "weight", "fan_in"),
        (nn.Linear(3, 3), "bias", "zero_bias"),
        (nn.LayerNorm(3), "weight", "gain"),
        (nn.LayerNorm(3), "bias", "zero_bias"),
    ],
)
def test_what_was_not_reached_is_known_by_its_owner(layer: nn.Module, name: str, rule: str) -> None:
    loose = Loose(f"never_called.{name}", layer.get_parameter(name).shape, layer)
    assert value_of(loose)[0] == rule


def test_values_depend_on_names_alone() -> None:
    """Not on the global random state, which stays as it is."""
    first = filled((9, 9), "token", "a")[1]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(filled((9, 9), "token", "a")[1], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(filled((9, 9), "token", "b")[1], first)


# --- a whole model ----------------------------------------------------------------------------


class Tokens(nn.Module):
    """With a layer of each fate: decoded, filled, never reached, an embedding, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16, padding_idx=0)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norm = nn.BatchNorm1d(16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.experts = nn.Parameter(torch.randn(4, 16, 16))
        self.never = nn.Linear(3, 3)
        self.fc = nn.Linear(16, 10)
        self.tied = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.tied.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.again(self.tied(self.words(ids)))
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1)
        x = self.rnn(self.norm(x.transpose(1, 2)).transpose(1, 2))[0][:, 0]
        logits: Tensor = self.fc(x * self.experts.mean((0, 1)))
        return logits


IDS = torch.ones(2, 5, dtype=torch.int64)


def test_a_model_on_the_meta_device_becomes_a_whole_one() -> None:
    with torch.device("meta"):
        model = Tokens()
    model, report = ghn_fast.predict(model, None, IDS, return_report=True, fill=True)
    assert all(p.isfinite().all() and not p.is_meta for p in model.parameters())
    assert model.again.weight is model.tied.weight
    assert torch.equal(model.norm.running_var, torch.ones(16))
    assert report.unpredicted["token"] == "filled: token"
    assert report.unpredicted["never.weight"] == "filled: fan_in; does not reach the output"
    assert report.unpredicted["rnn.weight_hh_l0"] == "filled: recurrent_weight"
    assert not model.words.weight[0].any()
    assert model(IDS).isfinite().all()


def test_the_same_values_as_of_a_model_that_was_emptied() -> None:
    with torch.device("meta"):
        one = Tokens()
    other = Tokens()
    for parameter in other.parameters():
        parameter.data.fill_(float("nan"))
    for model in (one, other):
        ghn_fast.predict(model, None, IDS, fill=True)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_memory_of_zeros_is_no_constant_of_the_architecture() -> None:
    model = Tokens()
    for parameter in model.parameters():
        parameter.data.zero_()
    ghn_fast.predict(model, None, IDS, fill=True)
    assert model.token.any()
    assert model.experts.any()


def test_what_the_user_keeps_is_not_filled() -> None:
    model = Tokens()
    before = model.token.detach().clone()
    _, report = ghn_fast.predict(model, None, IDS, return_report=True, fill=True, keep="token")
    assert torch.equal(model.token, before)
    assert report.unpredicted["token"] == "kept: as asked (keep='token')"


def test_what_has_no_value_to_keep_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = Tokens()
    model.fc.bias._no_reinit = True  # type: ignore[union-attr]
    full = torch.full_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **where: full(x, float("nan"), **where))
    _, report = ghn_fast.predict(
        model, None, IDS, return_report=True, fill=True, keep=["token", "tied.bias"]
    )
    assert all(p.isfinite().all() for p in model.parameters())
    assert report.unpredicted["token"] == "filled: token"
    assert report.unpredicted["tied.bias"] == "filled: zero_bias"
    assert report.unpredicted["fc.bias"] == "filled: zero_bias"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ghn": "typo.pt"}, ghn_fast.checkpoint.CheckpointError),
        ({"keep": "layer9"}, ValueError),
        ({"graph": Graph.from_model(nn.Linear(8, 10), types=CHANNEL_NODE_TYPES)}, ValueError),
        ({"example_inputs": (IDS, IDS)}, ghn_fast.graph.TraceError),
    ],
)
def test_after_an_error_a_model_is_on_the_meta_device_still(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with torch.device("meta"):
        model = Tokens()
    before = dict(model.named_parameters())
    with pytest.raises(error):
        ghn_fast.predict(model, **{"example_inputs": IDS, "fill": True, **arguments})
    assert all(p is before[name] for name, p in model.named_parameters())
    assert all(b.is_meta for b in model.buffers())


def test_making_buffers_does_not_reset_what_has_values() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    nn.init.constant_(model[1].weight, 7)
    model[1].running_mean.fill_(3)
    model[1].running_var = model[1].running_var.to("meta")
    options = {"fill": True, "keep": "1", "return_report": True}
    _, report = ghn_fast.predict(model, None, torch.zeros(2, 4), **options)
    assert report.unpredicted["1.weight"] == "kept: as asked (keep='1')"
    assert torch.equal(model[1].weight, torch.full((16,), 7.0))
    assert torch.equal(model[1].running_mean, torch.full((16,), 3.0))
    assert torch.equal(model[1].running_var, torch.ones(16))


def test_lazy_parameters_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.LazyLinear(10), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="has no shape yet"):
        ghn_fast.predict(model, None, torch.zeros(2, 4), fill=True)


class Rotary(nn.Module):
    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 10)
        self.norm = nn.BatchNorm1d(10)
        frequencies = torch.linspace(0, 1, 4)
        if buffer:
            self.register_buffer("frequencies", frequencies, persistent=False)
        else:
            self.frequencies = frequencies

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x * self.frequencies))


@pytest.mark.parametrize("buffer", [True, False])
def test_a_constant_that_nothing_makes_is_refused_by_name(buffer: bool) -> None:
    with torch.device("meta"):
        model = nn.Sequential(Rotary(buffer))
    with pytest.raises(ValueError, match=r"'0\.frequencies' .*has no reset_parameters"):
        ghn_fast.predict(model, None, torch.zeros(2, 4), fill=True)
    assert all(p.is_meta for p in model.parameters())
    assert all(b.is_meta for b in model.buffers())
