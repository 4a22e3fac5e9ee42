"""What keeps its value, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.ghn.place.keep import (
    FAR,
    FOLLOWS,
    MARKED,
    NO_NODE,
    NORM_OFFSET,
    STACKED,
    STACKED_BIAS,
    ZERO,
    ZERO_WEIGHT,
)
from ghn_fast.prediction import PredictionReport


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2().eval()


def predicted(model: nn.Module, ghn: GHN, x: object, **options: object) -> PredictionReport:
    """The report, after a look at whether what it calls kept was."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _, report = ghn_fast.predict(model, ghn, x, return_report=True, **options)  # type: ignore[call-overload]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in report.unpredicted), name
    return report


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())


X = torch.zeros(2, 8)


# --- what starts at zero ------------------------------------------------------------------------


def zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(4, 4, 1),
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
        lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        lambda: nn.ConvTranspose2d(4, 4, 1),
    ],
)
def test_zero_convolutions_keep_their_bias_too(ghn: GHN, make: Callable[[], nn.Module]) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.zero = nn.Conv2d(3, 4, 3, padding=1), zeroed(make())
            self.head = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.main(x)
            return self.head((x + self.zero(x)).mean((2, 3)))

    report = predicted(Branch(), ghn, torch.zeros(1, 3, 8, 8))
    assert report.unpredicted == {"zero.weight": ZERO, "zero.bias": ZERO_WEIGHT}


def test_an_output_layer_of_zeros_is_predicted(ghn: GHN) -> None:
    assert not predicted(body().append(zeroed(nn.Linear(16, 10))), ghn, X).unpredicted
    pixels = nn.Sequential(nn.Conv2d(3, 8, 1), zeroed(nn.Conv2d(8, 3, 1)))
    assert not predicted(pixels, ghn, torch.zeros(1, 3, 8, 8)).unpredicted


class Adapted(nn.Module):
    """A layer and what is added to it at low rank, nothing at first."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 10), nn.Linear(8, 2), nn.Linear(2, 10)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_an_adapter_of_the_output_layer_keeps_its_zeros(ghn: GHN) -> None:
    report = predicted(Adapted(), ghn, torch.zeros(1, 8))
    assert report.unpredicted == {"up.weight": ZERO, "up.bias": ZERO_WEIGHT}


def test_norms_of_zero_are_predicted(ghn: GHN) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), zeroed(nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 1))
    assert not predicted(model, ghn, torch.zeros(1, 3, 8, 8)).unpredicted


def test_several_outputs_of_zeros_are_there_on_purpose(ghn: GHN) -> None:
    """As a ControlNet's, which are added to another network's features."""

    class Control(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.zeros = nn.ModuleList(zeroed(nn.Conv2d(4, 4, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.a(x)
            return [self.zeros[0](x), self.zeros[1](self.b(x))]

    report = predicted(Control(), ghn, torch.zeros(1, 3, 8, 8))
    assert [name for name in report.unpredicted if "weight" in name] == [
        "zeros.0.weight",
        "zeros.1.weight",
    ]


def test_a_model_of_zeros_is_predicted(ghn: GHN) -> None:
    model = zeroed(body().append(nn.Linear(16, 10)))
    assert not predicted(model, ghn, X).unpredicted


def test_a_zero_among_others_is_no_zero(ghn: GHN) -> None:
    model = body().append(nn.Linear(16, 10))
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    assert not predicted(model, ghn, X).unpredicted


# --- biases that say something ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "is_kept"),
    [
        (torch.linspace(-6.9, -2.3, 16), True),  # inverse softplus of step sizes
        (torch.full((16,), -4.6), True),  # the prior of a focal loss
        (torch.full((16,), 1.0), True),  # a gate that starts open
        (torch.linspace(-3, 3, 16), False),
        (torch.full((16,), 0.1), False),
        (torch.zeros(16), False),
    ],
)
def test_biases_that_no_ghn_gives(ghn: GHN, value: Tensor, is_kept: bool) -> None:
    model = body().append(nn.Linear(16, 10))
    with torch.no_grad():
        model[2].bias.copy_(value)
    assert predicted(model, ghn, X).unpredicted == ({"2.bias": FAR} if is_kept else {})


def test_the_bias_of_the_output_layer_is_predicted(ghn: GHN) -> None:
    model = body().append(nn.Linear(16, 10))
    nn.init.constant_(model[4].bias, -4.6)
    assert not predicted(model, ghn, X).unpredicted


def test_marked_parameters(ghn: GHN) -> None:
    model = body().append(nn.Linear(16, 10))
    model[0].weight._no_reinit = True  # type: ignore[assignment]
    model[2].bias._no_reinit = False  # type: ignore[assignment]
    assert predicted(model, ghn, X).unpredicted == {"0.weight": MARKED}


# --- what looks like a layer and is none --------------------------------------------------------


class OffsetNorm(nn.Module):
    """Gemma's: the gain is one plus the weight."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.weight, self.fused = nn.Parameter(torch.zeros(16)), fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return nn.functional.rms_norm(x, (16,), self.weight + 1)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


@pytest.mark.parametrize("fused", [True, False])
def test_the_weight_of_a_norm_that_counts_from_one(ghn: GHN, fused: bool) -> None:
    model = body().append(OffsetNorm(fused)).append(nn.Linear(16, 10))
    assert predicted(model, ghn, X).unpredicted == {"4.weight": NORM_OFFSET}


class Adds(nn.Module):
    """One parameter that is added in some way, between two layers."""

    def __init__(self, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16, bias=False), nn.Linear(16, 10)
        self.table, self.run = nn.Parameter(torch.randn(shape) / 4), run

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.b(self.run(self.a(x), self.table))
        return logits


def modulated(x: Tensor, table: Tensor) -> Tensor:
    """By a table of scale and shift, as in PixArt."""
    scale, shift = (x[:, None] + table).chunk(2, dim=1)
    return (scale * x[:, None] + shift).squeeze(1)


def bonus(x: Tensor, table: Tensor) -> Tensor:
    """RWKV's: a part of a layer's output is weighted in another way than the rest."""
    return torch.maximum(x[:1] + table, x)


@pytest.mark.parametrize(("shape", "run"), [((1, 2, 16), modulated), ((16,), bonus)])
def test_tables_that_are_added_are_not_always_positions_or_biases(
    ghn: GHN, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor]
) -> None:
    assert predicted(Adds(shape, run), ghn, X).unpredicted == {"table": NO_NODE}


def test_a_vector_that_is_added_to_all_of_a_layer_is_its_bias(ghn: GHN) -> None:
    assert predicted(Adds((16,), torch.add), ghn, X).rules["table"] == "bias"


class Product(nn.Module):
    """A weight that is a product of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 8))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.linear(x, self.left @ self.right))
        return logits


def test_factors_of_a_weight(ghn: GHN) -> None:
    assert predicted(Product(), ghn, X).unpredicted == {"left": NO_NODE, "right": NO_NODE}


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 16))
        self.bias = nn.Parameter(torch.zeros(4, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.baddbmm(self.bias[:, None], x.expand(4, -1, -1), self.weight)
        logits: Tensor = self.head(x.mean(0))
        return logits


def test_experts_keep_their_biases_too(ghn: GHN) -> None:
    report = predicted(Experts(), ghn, X)
    assert report.unpredicted == {"weight": STACKED, "bias": STACKED_BIAS}


# --- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["0", "0.*", ["0.weight", "0.bias"], ("0.weight", "*.bias")])
def test_keep(ghn: GHN, names: str | list[str]) -> None:
    report = predicted(body().append(nn.Linear(16, 10)), ghn, X, keep=names)
    assert report.unpredicted.keys() >= {"0.weight", "0.bias"}
    assert "0.weight" not in report.predicted
    assert "2.weight" in report.predicted
    assert all("as asked (keep=" in reason for reason in report.unpredicted.values())


def test_only(ghn: GHN) -> None:
    report = predicted(body().append(nn.Linear(16, 10)), ghn, X, only="*.weight", keep="4")
    assert report.predicted.keys() == {"0.weight", "2.weight"}
    assert report.unpredicted["0.bias"] == "kept: as asked (not among only=...)"
    assert report.unpredicted["4.weight"] == "kept: as asked (keep='4')"


def test_only_of_nothing_predicts_nothing(ghn: GHN) -> None:
    assert not predicted(body(), ghn, X, only=[]).predicted


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"keep": None}, "NoneType"), ({"keep": [nn.ReLU()]}, "ReLU"), ({"only": [3]}, "int")],
)
def test_what_is_no_name(ghn: GHN, options: dict[str, object], kind: str) -> None:
    with pytest.raises(TypeError, match=rf"takes names of parameters .*'layer4\.\*', not {kind}"):
        predicted(body(), ghn, X, **options)


@pytest.mark.parametrize("option", ["keep", "only"])
def test_names_that_no_parameter_has(ghn: GHN, option: str) -> None:
    model = body()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"no parameter is called 'layer4\.\*'"):
        ghn_fast.predict(model, ghn, X, **{option: "layer4.*"})  # type: ignore[call-overload]
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_tied_parameter_is_kept_under_any_of_its_names(ghn: GHN) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    model[2].weight = model[0].weight
    report = predicted(model, ghn, X, keep="2.weight")
    assert set(report.unpredicted) == {"0.weight"}


def test_a_ghn_in_training_leaves_it_alone_too(ghn: GHN) -> None:
    model = body().append(nn.Linear(16, 10))
    zeroed(model[2])
    own = model[2].weight
    learning = ghn2(max_shape=(16, 16, 3, 3)).train()
    learning(model, ghn_fast.Graph.from_model(model, X))
    assert model[2].weight is own
    assert not own.any()
    assert model[0].weight.grad_fn is not None


# --- what follows from what was predicted -------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("parametrised", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_weight_norm_computes_with_what_was_predicted(
    ghn: GHN, parametrised: bool, training: bool
) -> None:
    normed = nn.utils.parametrizations.weight_norm if parametrised else nn.utils.weight_norm
    model = body().append(nn.Linear(16, 10))
    plain = copy.deepcopy(model)
    normed(model[2])
    graph = ghn_fast.Graph.from_model(model, X)
    ghn_fast.predict(plain, ghn, X)
    if training:
        learning = ghn2().train()
        learning.load_state_dict(ghn.state_dict())
        learning(model, graph)
    else:
        _, report = ghn_fast.predict(model, ghn, X, return_report=True)
        assert list(report.unpredicted.values()) == [FOLLOWS]
    model(X)  # the older form computes its weight in a hook
    torch.testing.assert_close(model[2].weight, plain[2].weight)


@pytest.mark.parametrize("parametrised", [True, False])
def test_spectral_norm_knows_the_norm_of_what_was_predicted(ghn: GHN, parametrised: bool) -> None:
    module = nn.utils.parametrizations if parametrised else nn.utils
    model = body().append(nn.Linear(16, 10))
    module.spectral_norm(model[2])
    ghn_fast.predict(model, ghn, X)
    model.eval()(X)
    assert torch.linalg.matrix_norm(model[2].weight, 2).item() == pytest.approx(1, abs=0.05)


def test_a_magnitude_whose_direction_is_kept_stays(ghn: GHN) -> None:
    model = body().append(nn.Linear(16, 10))
    nn.utils.parametrizations.weight_norm(model[2])
    report = predicted(model, ghn, X, keep="2")
    assert report.unpredicted["2.parametrizations.weight.original0"].startswith("kept: as asked")


@pytest.mark.parametrize("how", ["keep", "only", "marked", "frozen"])
def test_a_magnitude_that_is_kept_stays(ghn: GHN, how: str) -> None:
    model = body().append(nn.Linear(16, 10))
    nn.utils.parametrizations.weight_norm(model[2])
    options: dict[str, str] = {}
    if how == "keep":
        options["keep"] = "*.original0"
    elif how == "only":
        options["only"] = "*.original1"
    elif how == "marked":
        model[2].parametrizations.weight.original0._no_reinit = True  # type: ignore[union-attr]
    else:
        model[2].parametrizations.weight.original0.requires_grad_(False)  # type: ignore[union-attr]
    report = predicted(model, ghn, X, **options)
    assert "2.parametrizations.weight.original1" in report.predicted
    assert report.unpredicted["2.parametrizations.weight.original0"] != FOLLOWS


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("parametrised", [True, False])
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_all_layers_of_a_tied_weight_know_its_norm(ghn: GHN, norm: str, parametrised: bool) -> None:
    make = getattr(nn.utils.parametrizations if parametrised else nn.utils, norm)
    one, two = make(nn.Linear(8, 8)), make(nn.Linear(8, 8))
    names = {"weight_norm": ("original1", "weight_v"), "spectral_norm": ("original", "weight_orig")}
    name = names[norm][0 if parametrised else 1]
    owner, other = (m.parametrizations.weight if parametrised else m for m in (one, two))
    setattr(other, name, getattr(owner, name))
    model = nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), nn.Linear(8, 10)).eval()
    ghn_fast.predict(model, ghn, X)
    model(X)
    torch.testing.assert_close(one.weight, two.weight, atol=0.02, rtol=0)
    if norm == "spectral_norm":
        assert torch.linalg.matrix_norm(two.weight, 2).item() == pytest.approx(1, abs=0.05)


# --- a report that can be read ------------------------------------------------------------------


def test_what_a_report_says(ghn: GHN) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU(8), nn.Linear(8, 7))
    report = predicted(model, ghn, X)
    assert str(report).splitlines() == [
        "decoded 2 of 5 tensors, 72 of 143 parameters",
        "2 output layer of 7; this GHN predicts 10 (2.weight, ...)",
        f"1 {NO_NODE} (1.weight)",
    ]
