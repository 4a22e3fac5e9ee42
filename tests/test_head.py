"""The output layer in closed form: ridge regression, of any size, and nothing else changes."""

from __future__ import annotations

import copy
import math
import re
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import ghn_fast
from ghn_fast.head import best_scale, output_layers, soften_
from ghn_fast.head.ridge import HeldOut

WIDTH = 12


class Classifier(nn.Module):
    """Features that depend on the mode, so that a fit in training mode would differ."""

    def __init__(self, classes: int = 4, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))
        self.fc = nn.Linear(WIDTH, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.body(x)))


def _data(count: int = 200, classes: int = 4, noise: float = 0.7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, 6, generator=generator)
    return centres[labels] + noise * torch.randn(count, 6, generator=generator), labels


def _batches(inputs: Tensor, labels: Tensor, size: int = 32) -> list[Any]:
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def _features(model: Classifier, inputs: Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = torch.tanh(model.eval().body(inputs)).double().numpy()
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [0.5, 30.0, None])
def test_equals_ridge_of_scikit_learn(bias: bool, ridge: float | None) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = Classifier(bias=bias).double()
    inputs, labels = _data()
    inputs = inputs.double()
    report = ghn_fast.fit_head_(model, _batches(inputs, labels), ridge=ridge, balance=False)
    features = _features(model, inputs)
    reference = linear_model.Ridge(alpha=report.ridge, fit_intercept=bias)
    reference.fit(features, np.eye(4)[labels.numpy()])
    weight = model.fc.weight.detach().numpy() / report.scale
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-5)
    if bias:
        own = model.fc.bias.detach().numpy() / report.scale
        expected = reference.intercept_ - reference.intercept_.mean()
        np.testing.assert_allclose(own, expected, atol=1e-5)
    assert ridge is None or report.ridge == ridge


def test_balanced_is_plain_with_as_many_pictures_of_each_class() -> None:
    inputs, _ = _data(80)
    labels = torch.arange(80) % 4
    one, other = Classifier(), Classifier()
    ghn_fast.fit_head_(one, _batches(inputs, labels), ridge=2.0, held_out=0)
    ghn_fast.fit_head_(other, _batches(inputs, labels), ridge=2.0, held_out=0, balance=False)
    torch.testing.assert_close(one.fc.weight, other.fc.weight)


def test_rare_classes_are_not_given_up() -> None:
    inputs, labels = _data(4000, noise=1.5)
    rare = (labels != 0) & (torch.arange(4000) % 40 > 0)
    scarce = _batches(inputs[~rare], labels[~rare])
    accuracy = {}
    for balance in (True, False):
        model = Classifier()
        ghn_fast.fit_head_(model, scarce, balance=balance)
        predicted = model.eval()(inputs).argmax(1)
        accuracy[balance] = np.mean(
            [float((predicted == c)[labels == c].float().mean()) for c in range(4)]
        )
    assert accuracy[True] > accuracy[False] + 0.1


def test_chance_is_the_commonest_class() -> None:
    inputs, labels = _data(1000)
    common = (labels == 0) | (torch.arange(1000) % 9 == 0)
    held = labels[common]
    report = ghn_fast.fit_head_(Classifier(), _batches(inputs[common], held))
    assert report.chance == pytest.approx(100 * float((held == 0).float().mean()), abs=1)
    assert report.chance > 60
    assert f"(chance is {report.chance:.1f} %)" in str(report)
    assert report.accuracy > report.chance


def test_order_and_batches_do_not_matter() -> None:
    inputs, labels = _data()
    one, other = Classifier(), Classifier()
    ghn_fast.fit_head_(one, _batches(inputs, labels), ridge=1.0, held_out=0)
    ghn_fast.fit_head_(other, _batches(inputs.flip(0), labels.flip(0), 7), ridge=1.0, held_out=0)
    torch.testing.assert_close(one.fc.weight, other.fc.weight)


def test_softmax_is_calibrated_and_accuracy_is_that_of_new_pictures() -> None:
    inputs, labels = _data(3000)
    model = Classifier()
    report = ghn_fast.fit_head_(model, _batches(inputs[:2000], labels[:2000]), balance=False)
    with torch.no_grad():
        probability = model.eval()(inputs[2000:]).softmax(1)
    new = labels[2000:]
    accuracy = 100 * float((probability.argmax(1) == new).double().mean())
    assert report.held_out == pytest.approx(400, abs=4)
    assert report.accuracy == pytest.approx(accuracy, abs=5)
    assert 100 * float(probability.max(1).values.mean()) == pytest.approx(accuracy, abs=4)
    assert report.loss == pytest.approx(float(nn.functional.nll_loss(probability.log(), new)), 0.2)


def test_best_scale_is_where_the_cross_entropy_is_smallest() -> None:
    """With one picture more, of all classes alike."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 5, generator=generator, dtype=torch.float64)
    labels = (3 * logits + torch.randn(500, 5, generator=generator)).argmax(1)
    weights = torch.full((500,), 1 / 500, dtype=torch.float64)
    scale = best_scale(logits, labels, weights)

    def loss(factor: float) -> float:
        logits_then = factor * scale * logits
        return float(nn.functional.cross_entropy(logits_then, labels, label_smoothing=1 / 501))

    assert loss(1) < min(loss(0.98), loss(1.02))


@pytest.mark.parametrize("seed", range(4))
def test_a_few_pictures_without_an_error_do_not_make_it_certain(seed: int) -> None:
    """Their cross-entropy alone has no smallest scale, and 1,000 would be as good as any."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(40) % 4
    inputs = 3 * torch.eye(4, 6)[labels] + 0.5 * torch.randn(40, 6, generator=generator)
    report = ghn_fast.fit_head_(Classifier(), _batches(inputs, labels))
    assert (report.held_out, report.accuracy) == (8, 100.0)
    assert 0.02 < report.loss < 0.3


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.7])
def test_the_share_that_is_asked_for_is_held_out(share: float) -> None:
    inputs, labels = _data(1000)
    report = ghn_fast.fit_head_(Classifier(), _batches(inputs, labels), held_out=share)
    assert report.held_out == pytest.approx(1000 * share, abs=4)


def test_only_the_head_changes() -> None:
    model = Classifier()
    model.body.eval()
    before = copy.deepcopy(model.state_dict())
    weight = model.fc.weight
    ghn_fast.fit_head_(model, _batches(*_data()))
    assert model.training
    assert not model.body.training
    assert model.fc.weight is weight
    assert not model.fc._forward_hooks
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        "fc.weight",
        "fc.bias",
    }


def test_memory_does_not_grow_with_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.head.ridge.MOST_HELD_OUT", 32)
    inputs, labels = _data(2000)
    given: list[weakref.ref[Tensor]] = []

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for part, own in _batches(inputs, labels, 50):
            made = part.clone()
            given.append(weakref.ref(made))
            yield made, own
            del made
            assert sum(reference() is not None for reference in given) <= 2

    model = Classifier()
    report = ghn_fast.fit_head_(model, loader(), balance=False)
    assert (report.pictures, report.held_out) == (2000, 32)
    kept = HeldOut(4, WIDTH, 0.2, torch.device("cpu"))
    assert len(kept.labels) == 32


def test_held_out_ones_are_of_all_classes_even_if_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.head.ridge.MOST_HELD_OUT", 64)
    inputs, labels = _data(1000)
    order = labels.argsort(stable=True)
    report = ghn_fast.fit_head_(Classifier(), _batches(inputs[order], labels[order]))
    assert report.held_out == 64
    assert report.balanced_accuracy > 60


def test_a_thousand_classes() -> None:
    classes = 1000
    model = Classifier(classes)
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(classes, 6, generator=generator)
    labels = torch.arange(6 * classes) % classes
    inputs = centres[labels] + 0.01 * torch.randn(len(labels), 6, generator=generator)
    report = ghn_fast.fit_head_(model, _batches(inputs, labels, 500))
    assert report.classes == 1000
    assert report.accuracy > 5  # 50 times chance, by 12 features


def test_classes_without_pictures_are_never_predicted() -> None:
    inputs, labels = _data()
    model = Classifier(6)
    report = ghn_fast.fit_head_(model, _batches(inputs, 1 + labels))
    assert report.absent == (0, 5)
    probability = model.eval()(inputs).detach().softmax(1)
    assert float(probability[:, [0, 5]].max()) < 1e-3
    assert 25 < report.chance < 35  # of four classes that are there


def test_without_a_bias_absent_classes_are_against_the_mean_picture() -> None:
    class Positive(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.sigmoid(self.body(x)))

    inputs, labels = _data()
    model = Positive(6, bias=False)
    assert ghn_fast.fit_head_(model, _batches(inputs, 1 + labels)).absent == (0, 5)
    assert set(model.eval()(inputs).argmax(1).tolist()) == {1, 2, 3, 4}


def test_dictionaries_and_outputs_that_are_objects() -> None:
    class Named(Classifier):
        def forward(self, pixel_values: Tensor) -> Any:
            return {"logits": super().forward(pixel_values)}

    inputs, labels = _data()
    batches = [{"pixel_values": x, "labels": y} for x, y in _batches(inputs, labels)]
    report = ghn_fast.fit_head_(Named(), batches, layer="fc")
    assert report.accuracy > 60


@pytest.mark.parametrize("names", [("features", "targets"), ("x", "target"), ("image", "label")])
def test_dictionaries_with_the_names_of_data_sets(names: tuple[str, str]) -> None:
    inputs, labels = _data()
    own, named = Classifier(), Classifier()
    named.load_state_dict(own.state_dict())
    report = ghn_fast.fit_head_(own, [(inputs, labels)])
    assert ghn_fast.fit_head_(named, [dict(zip(names, (inputs, labels), strict=True))]) == report


def test_a_model_that_is_its_output_layer() -> None:
    inputs, labels = _data()
    layer = nn.Linear(6, 4)
    report = ghn_fast.fit_head_(layer, _batches(inputs, labels))
    assert report.layer == ""
    assert str(report).startswith("the layer (6 features, 4 classes) fitted to 200 pictures")
    accuracy = float((layer(inputs).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(report.accuracy / 100, abs=0.1)


def test_batches_without_rows_are_passed_over() -> None:
    inputs, labels = _data()
    own, other = Classifier(), Classifier()
    batches = [(inputs[:0], labels[:0]), *_batches(inputs, labels), (inputs[:0], labels[:0])]
    ghn_fast.calibrate_(own, batches)
    ghn_fast.calibrate_(other, batches[1:-1])
    assert torch.equal(own.body[1].running_var, other.body[1].running_var)
    assert ghn_fast.fit_head_(own, batches) == ghn_fast.fit_head_(other, batches[1:-1])
    with pytest.raises(ValueError, match="all batches of the loader are empty"):
        ghn_fast.fit_head_(own, batches[:1])


def test_a_weight_that_its_dtype_does_not_hold_is_refused() -> None:
    inputs, labels = _data()
    layer = nn.Linear(6, 4).half()
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="too large for float16: its features are very small"):
        ghn_fast.fit_head_(layer, [((inputs * 1e-6).half(), labels)], ridge=1e-20)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("ridge", [float("nan"), float("inf"), -1.0])
def test_a_ridge_is_a_number_from_zero(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge finite and not negative"):
        ghn_fast.fit_head_(Classifier(), _batches(*_data()), ridge=ridge)


def test_pictures_of_one_class_are_refused() -> None:
    inputs, labels = _data()
    with pytest.raises(ValueError, match="all pictures are of class 2"):
        ghn_fast.fit_head_(Classifier(), _batches(inputs, 0 * labels + 2))


def test_a_layer_that_is_called_by_name() -> None:
    class ByName(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=torch.tanh(self.body(x)))

    report = ghn_fast.fit_head_(ByName(), _batches(*_data()))
    assert report == ghn_fast.fit_head_(Classifier(), _batches(*_data()))


def test_inputs_of_another_dtype_than_the_models_are_named() -> None:
    inputs, labels = _data()
    with pytest.raises(TypeError, match="inputs are float64, and the model's parameters float32"):
        ghn_fast.fit_head_(Classifier(), [(inputs.double(), labels)])
    ghn_fast.fit_head_(Classifier().double(), [(inputs.double(), labels)])


def _squeezing() -> nn.Sequential:
    """Ends as SqueezeNet does."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 3, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def test_convolution_whose_output_is_cut_off_below_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.randn(90, 3, 8, 8, generator=generator)
    images[torch.arange(90), labels] += 0.5
    model = _squeezing()
    report = ghn_fast.fit_head_(model, _batches(images, labels))
    assert report.layer == "3"
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    assert report.accuracy > 80
    assert accuracy > 0.8


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "fc"),
        ("squeezenet1_1", "classifier.1"),
        ("mobilenet_v2", "classifier.1"),
        ("googlenet", "fc"),
    ],
)
def test_output_layers_of_torchvision(name: str, layer: str) -> None:
    from torchvision import models

    extra = {"init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, num_classes=7, **extra).eval()
    assert output_layers(model, torch.randn(1, 3, 64, 64)) == [layer]


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.other(x)


class _Product(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] * pair[1]


class _Mean(nn.Module):
    """As networks with a head for distillation give it."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return (pair[0] + pair[1]) / 2


def test_first_of_several_outputs_is_the_classifier() -> None:
    model = _TwoHeads()
    assert ghn_fast.fit_head_(model, _batches(*_data())).layer == "one"


def test_a_mean_of_layers_becomes_the_fit_of_the_first() -> None:
    pair, model = _TwoHeads(), nn.Sequential(_TwoHeads(), _Mean())
    inputs, labels = _data()
    fitted = ghn_fast.fit_head_(pair, _batches(inputs, labels))
    report = ghn_fast.fit_head_(model, _batches(inputs, labels))
    assert report.layer == "0.one"
    assert report.accuracy == fitted.accuracy
    torch.testing.assert_close(model(inputs), pair(inputs)[0])
    assert not model[0].other.weight.any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_softened_layer_has_the_norm_of_a_fresh_one_and_tells_the_same_classes(
    bias: bool,
) -> None:
    model = Classifier(bias=bias)
    model.train()
    inputs, _ = _data()
    fresh = [float(nn.Linear(WIDTH, 4).weight.detach().norm()) for _ in range(300)]
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for value in model.fc.parameters():
            value.mul_(50)
    scale = soften_(model, inputs)
    norm = float(model.fc.weight.detach().norm())
    assert norm == pytest.approx(math.sqrt(4 / 3))
    assert norm == pytest.approx(np.mean(fresh), rel=0.03)
    own = {name: 50 * scale * value if "fc" in name else value for name, value in before.items()}
    assert all(
        torch.allclose(value.float(), own[name].float())
        for name, value in model.state_dict().items()
    )
    assert all(module.training for module in model.modules())
    assert soften_(model, inputs) == pytest.approx(1)


def test_a_small_output_layer_is_left() -> None:
    model = Classifier()
    with torch.no_grad():
        model.fc.weight.mul_(0.1)
    before = copy.deepcopy(model.state_dict())
    assert soften_(model, _data()[0]) == 1
    nn.init.zeros_(model.fc.weight)
    assert soften_(model, _data()[0]) == 1
    assert torch.equal(model.fc.bias, before["fc.bias"])


def _fc_times(factor: float, model: nn.Module | None = None) -> Any:
    model = Classifier() if model is None else model
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.rpartition(".")[0].endswith("fc"):
                value.mul_(factor)
    return model


class _Offset(nn.Module):
    """A number for each class after the output layer, as for classes that are not alike often."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.body, self.fc, self.after = nn.Linear(6, 6), nn.Linear(6, 4), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc(self.body(x)))


def _prior(logits: Tensor) -> Tensor:
    return logits + torch.tensor([30.0, 0.0, -30.0, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _fc_times(50, _Offset(_prior)), "depends on how large its outputs are"),
        (lambda: _fc_times(50, _Offset(torch.sigmoid)), "depends on how large its outputs are"),
        (lambda: _fc_times(torch.inf), "is not finite"),
        (lambda: _fc_times(torch.nan), "is not finite"),
    ],
)
def test_what_would_tell_other_classes_is_not_softened(make: Any, message: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        soften_(model, _data()[0])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_layer_before_a_softmax_is_softened() -> None:
    model, (inputs, _) = _fc_times(50, _Offset(partial(torch.log_softmax, dim=1))), _data()
    before = model(inputs).argmax(1)
    assert soften_(model, inputs) < 0.1
    assert torch.equal(model(inputs).argmax(1), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_of_any_size_are_softened(dtype: torch.dtype) -> None:
    model = _fc_times(3e19, Classifier().to(dtype))
    assert 0 < soften_(model, _data()[0].to(dtype)) < 1e-18
    assert float(model.fc.weight.detach().norm()) == pytest.approx(math.sqrt(4 / 3), rel=0.01)


def test_two_fresh_layers_of_a_mean_are_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), _TwoHeads(), _Mean())
    norms = [layer.weight.detach().norm() for layer in (model[1].one, model[1].other)]
    fresh = math.sqrt(2 * 4 / 3) / math.hypot(*norms)
    assert soften_(model, _data()[0]) == pytest.approx(min(fresh, 1))
    assert fresh > 0.8


def test_a_frozen_bias_is_told_and_a_layer_that_is_trained_alone_is_left() -> None:
    model = _fc_times(50)
    model.fc.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="'fc', the output layer, has a frozen weight or bias"):
        soften_(model, _data()[0])
    model.fc.bias.requires_grad_(True)
    model.body.requires_grad_(False)
    assert soften_(model, _data()[0]) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class _BareSecond(nn.Module):
    """A second task whose weight no layer holds, or a mean of both."""

    def __init__(self, is_mean: bool) -> None:
        super().__init__()
        self.fc, self.second = nn.Linear(6, 4), nn.Parameter(torch.ones(6, 4))
        self.is_mean = is_mean

    def forward(self, x: Tensor) -> Any:
        first, second = self.fc(x), x @ self.second
        return (first + second) / 2 if self.is_mean else (first, second)


def test_a_bare_weight_beside_the_output_layer() -> None:
    batches = _batches(*_data())
    assert ghn_fast.fit_head_(_BareSecond(is_mean=False), batches).layer == "fc"
    with pytest.raises(ValueError, match="no layer 'second': it is a parameter"):
        ghn_fast.fit_head_(_BareSecond(is_mean=True), batches)


@pytest.mark.parametrize("fit", [soften_, lambda model, x: ghn_fast.fit_head_(model, [(x, x)])])
def test_a_frozen_output_layer_is_told(fit: Any) -> None:
    model = Classifier()
    model.fc.requires_grad_(False)
    before = model.fc.weight.clone()
    with pytest.raises(ValueError, match=r"the output layer is frozen.* fit_head_ with layer="):
        fit(model, _data()[0])
    assert torch.equal(model.fc.weight, before)


def test_a_frozen_output_layer_that_is_named_is_fitted() -> None:
    model = Classifier()
    model.fc.requires_grad_(False)
    assert ghn_fast.fit_head_(model, _batches(*_data()), layer="fc").accuracy > 60


def test_all_layers_of_a_mean_and_one_that_is_cut_off_below_zero_are_softened() -> None:
    model, inputs = nn.Sequential(nn.Linear(6, 6), _TwoHeads(), _Mean()), _data()[0]
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for net, given in ((model, inputs), (_squeezing(), images)):
        ends = [net.get_submodule(name) for name in output_layers(net, given)]
        with torch.no_grad():
            for value in (value for end in ends for value in end.parameters()):
                value.mul_(50)
        net.eval()
        before = net(given)
        scale = soften_(net, given)
        assert scale < 0.5
        torch.testing.assert_close(net(given), scale * before)


class _Scaled(nn.Module):
    """Divides by the classes' own numbers after the layer: another class becomes largest."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.tensor([1.0, -1.0, 1.0, -1.0])


def _weight_normed() -> nn.Module:
    model = Classifier()
    weight_norm(model.fc)
    return model


def _tied() -> nn.Module:
    same = nn.Linear(4, 4)
    last = nn.Linear(4, 4)
    last.weight = same.weight
    return nn.Sequential(nn.Linear(6, 4), same, last)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no layer 'head'"):
        ghn_fast.fit_head_(Classifier(), _batches(*_data()), layer="head")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(_TwoHeads(), _Product()), "0.one, 0.other"),
        (_weight_normed, "computed from other"),
        (_Scaled, "what the model does after"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LSTM(8, 4)), "layer"),
        (_tied, "'2' is that of other layers too (1.weight, 2.weight)"),
    ],
)
def test_models_that_have_no_such_layer(make: Any, message: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        ghn_fast.fit_head_(model, _batches(*_data()), layer="2" if make is _tied else None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        ([torch.zeros(4, 6)], "no labels"),
        ([(torch.zeros(4, 6), torch.zeros(4))], "whole numbers"),
        ([(torch.zeros(4, 6), torch.zeros(4, 2, dtype=torch.int64))], "whole numbers"),
        ([(torch.zeros(4, 6), torch.tensor([0, 1, 2, 9]))], "num_classes=10"),
        (
            [(torch.zeros(4, 6), torch.tensor([0, 1, 2, -1]))],
            "from -1 to 2, and the first class is 0",
        ),
        (
            [(torch.zeros(4, 6), torch.tensor([1, 2, 3, 4]))],
            "from 1 to 4, .* the first of which is 0: subtract 1 from labels that are counted",
        ),
        (
            [(torch.randn(2, 6), torch.tensor([1, 2])), (torch.randn(2, 6), torch.tensor([3, 4]))],
            "from 3 to 4, .* the first of which is 0: subtract 1 .*, or build .* num_classes=5",
        ),
        ([(torch.zeros(3, 6), torch.tensor([0, 2, 4]))], "first of which is 0: build .*_classes=5"),
        ([(torch.zeros(3, 6), torch.tensor([1, 2, 5]))], "first of which is 0: build .*_classes=6"),
        (
            [(torch.full((4, 6), torch.inf), torch.tensor([0, 1, 2, 3]))],
            "finite: the inputs or the parameters before it are not finite, or .*calibrate_",
        ),
        ([(torch.zeros(4, 6), torch.tensor([0, 1, 2, 3]))], "same features"),
        ([(torch.randn(4, 6), torch.tensor([0, 1, 2, 3]))], "too few"),
    ],
)
def test_what_cannot_be_fitted_leaves_the_model(batches: Any, message: str) -> None:
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        ghn_fast.fit_head_(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_without_held_out_pictures_a_ridge_is_needed_and_no_figure_given() -> None:
    batches = _batches(*_data())
    with pytest.raises(ValueError, match="pass ridge= too"):
        ghn_fast.fit_head_(Classifier(), batches, held_out=0)
    report = ghn_fast.fit_head_(Classifier(), batches, held_out=0, ridge=1.0)
    assert str(report) == "fc (12 features, 4 classes) fitted to 200 pictures"


def test_a_ridge_that_is_too_small_leaves_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(192, 512), nn.ReLU(), nn.Linear(512, 4))
    before = copy.deepcopy(model.state_dict())
    batches = [(10 + 0.01 * torch.randn(48, 192), torch.arange(48) % 4)] * 2
    with pytest.raises(ValueError, match="ridge of 0 is too small"):
        ghn_fast.fit_head_(model, batches, ridge=0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_that_the_model_does_not_take_are_the_loaders() -> None:
    batches = [(torch.zeros(4, 5), torch.arange(4))]
    with pytest.raises(ghn_fast.graph.TraceError, match="loader has to give"):
        ghn_fast.fit_head_(Classifier(), batches)
